// pykernels._native._guard: the checks before a program's call. It handles Python objects only, and asks tensors what
// Python can ask.
#include <pybind11/pybind11.h>

#include "python/recall.h"
#include "python/unchanged.h"
#include "torch/notes.h"

namespace py = pybind11;

namespace {

bool unchanged(const py::object& containers, const py::object& snapshots, const py::object& entries,
               const py::object& numbers) {
  const int same = pk::python::unchanged(containers.ptr(), snapshots.ptr(), entries.ptr(), numbers.ptr());
  if (same < 0) throw py::error_already_set();
  return same == 1;
}

// Without pybind11's conversion of arguments, which takes as long as the rest.
PyMethodDef kRecall = {"recall", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&pk::python::recall)),
                       METH_FASTCALL,
                       "recall(context, known, ran, args, kwargs): the result of the first entry of `known` for which "
                       "everything is as it was, or MISS. See csrc/python/recall.h."};

}  // namespace

PYBIND11_MODULE(_guard, m) {
  m.doc() = "Whether all that a program depends on is as it was, and its call if so.";
  m.def("unchanged", &unchanged, py::arg("containers"), py::arg("snapshots"), py::arg("entries"), py::arg("numbers"),
        "Are dicts, lists and sets as their snapshots, tuples of (key, value, ...), tuples of items and frozensets, to "
        "the "
        "very object? And the entries, flat triples of an owner (dict, class, cell), a name and a value? "
        "NotImplemented in "
        "a dict's snapshot stands for any value, Ellipsis for an entry that is not there; the keys _pack and "
        "_compiled_call_impl of dicts do not count. `numbers` is the caller's for the next time: zeros, 8 for each "
        "container and each entry.");
  m.attr("recall") = py::reinterpret_steal<py::object>(PyCFunction_New(&kRecall, nullptr));
  m.def("forget_note", &pk::binding::forget_note, py::arg("note"), "Lets go of the tensors that note_tensors noted.");
  m.attr("MISS") = py::reinterpret_borrow<py::object>(pk::python::miss());
}
