// Whether dicts, lists, sets and single entries are as they were, compared by identity.
#pragma once

#include <Python.h>

namespace pk::python {

// Compares pointers only, so that none of the user's code runs and a thousand objects take a few microseconds; only
// sets are compared as Python does. `containers` are dicts, lists and sets, `snapshots` for each a tuple of (key,
// value, ...) or of items, or a frozenset; `entries` are flat triples of an owner (dict, class, cell), a name and a
// value. `numbers` is a bytearray, zeros at first, with eight bytes for each container and each entry: under which
// number of its dict it was last seen to be as it should. 1 or 0; -1 with a Python error where one of them is of
// another kind.
int unchanged(PyObject* containers, PyObject* snapshots, PyObject* entries, PyObject* numbers);

}  // namespace pk::python
