// Calls a program in one step: if everything is as it was when a program last ran for such arguments, it runs.
#pragma once

#include <Python.h>

namespace pk::python {

// recall(context, known, ran, args, kwargs) -> the result, or `miss()`.
//
//   context  (still, modes): flat pairs of a function and what it has to return (the very object), and the functions
//            whose results an entry names in its own `modes`
//   known    entries, each a tuple: see pykernels/optimize/_recall.py, which makes them
//   ran      a list of one item, which becomes the program of the entry that ran
//
// What a program's run raises is raised, and so is what the handlers of signals raise meanwhile; an error of the
// comparison is a miss.
PyObject* recall(PyObject* self, PyObject* const* arguments, Py_ssize_t count);

// The object that stands for: none of these, ask Python.
PyObject* miss();

}  // namespace pk::python
