// pykernels._native._introspect: what this build can do and what it would choose. No tensors, no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pykernels/conv_bn_act.h"
#include "pykernels/isa.h"

namespace py = pybind11;

namespace {

template <class Predicate>
std::vector<std::string> isas(Predicate predicate) {
  std::vector<std::string> names;
  for (int i = 0; i < pk::kIsas; ++i) {
    const auto isa = static_cast<pk::Isa>(i);
    if (predicate(isa)) names.emplace_back(pk::isa_name(isa));
  }
  return names;
}

void raise_if(pk::Status status) {
  if (!status) throw py::value_error(status.error);
}

std::string active() {
  pk::Isa isa;
  raise_if(pk::active_isa(&isa));
  return pk::isa_name(isa);
}

using Four = std::array<int64_t, 4>;
using Two = std::array<int64_t, 2>;

int conv_algorithm(Four x, Four weight, Two stride, Four padding, Two dilation, int64_t groups, bool packs) {
  const pk::ConvShape shape = {x[0],       x[1],        x[2],        x[3],       weight[0],  weight[2],
                               weight[3],  stride[0],   stride[1],   padding[0], padding[1], padding[2],
                               padding[3], dilation[0], dilation[1], groups};
  auto algorithm = pk::ConvAlgorithm::direct;
  if (x[1] == weight[1] * groups) static_cast<void>(pk::conv_choose(shape, packs, &algorithm));
  return static_cast<int>(algorithm);
}

// A snapshot's value that stands for any, and that for a name which is not there.
PyObject* any_value() { return Py_NotImplemented; }
PyObject* missing() { return Py_Ellipsis; }

bool same_dict(PyObject* dict, PyObject* snapshot, PyObject* pack, PyObject* call) {
  const Py_ssize_t size = PyTuple_GET_SIZE(snapshot);
  Py_ssize_t position = 0, i = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (key == pack || key == call) continue;
    if (i + 2 > size || PyTuple_GET_ITEM(snapshot, i) != key) return false;
    PyObject* const then = PyTuple_GET_ITEM(snapshot, i + 1);
    if (then != value && then != any_value()) return false;
    i += 2;
  }
  return i == size;
}

bool same_list(PyObject* list, PyObject* snapshot) {
  const Py_ssize_t size = PyTuple_GET_SIZE(snapshot);
  if (PyList_GET_SIZE(list) != size) return false;
  for (Py_ssize_t i = 0; i < size; ++i) {
    if (PyList_GET_ITEM(list, i) != PyTuple_GET_ITEM(snapshot, i)) return false;
  }
  return true;
}

// The dict of `owner`, itself or a class's; null of a closure's cell.
PyObject* dict_of(PyObject* owner) {
  PyObject* const dict = PyType_Check(owner) ? reinterpret_cast<PyTypeObject*>(owner)->tp_dict : owner;
  if (dict != nullptr && PyDict_Check(dict)) return dict;
  if (!PyCell_Check(owner)) throw py::type_error("unchanged: entries: expected dicts, classes and cells as owners");
  return nullptr;
}

// CPython up to 3.11 gives a dict another number at every change, so that one of the same number need not be looked
// through. Later versions keep the numbers for themselves.
#if PY_VERSION_HEX < 0x030C0000
uint64_t number_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }
#else
uint64_t number_of(PyObject*) { return 0; }  // which no dict has
#endif

// By pointers alone, so that no code of the user's runs and a thousand objects take a few microseconds. `numbers` has
// room for one of each container and of each entry's owner: those at which it was last seen to be as in its snapshot.
bool unchanged(const py::tuple& containers, const py::tuple& snapshots, const py::tuple& entries,
               const py::bytearray& numbers) {
  static PyObject* const pack = PyUnicode_InternFromString("_pack");
  static PyObject* const call = PyUnicode_InternFromString("_compiled_call_impl");
  const Py_ssize_t count = PyTuple_GET_SIZE(containers.ptr()), flat = PyTuple_GET_SIZE(entries.ptr());
  if (PyTuple_GET_SIZE(snapshots.ptr()) != count) throw py::value_error("unchanged: snapshots: expected one for each");
  if (PyByteArray_GET_SIZE(numbers.ptr()) != static_cast<Py_ssize_t>(sizeof(uint64_t)) * (count + flat / 3)) {
    throw py::value_error("unchanged: numbers: expected 8 bytes for each container and entry");
  }
  auto* number = reinterpret_cast<uint64_t*>(PyByteArray_AS_STRING(numbers.ptr()));
  for (Py_ssize_t i = 0; i < count; ++i, ++number) {
    PyObject* const container = PyTuple_GET_ITEM(containers.ptr(), i);
    PyObject* const snapshot = PyTuple_GET_ITEM(snapshots.ptr(), i);
    if (!PyTuple_Check(snapshot)) throw py::type_error("unchanged: snapshots: expected tuples");
    if (PyDict_Check(container)) {
      const uint64_t now = number_of(container);
      if (now != 0 && now == *number) continue;
      if (!same_dict(container, snapshot, pack, call)) return false;
      *number = now;
    } else if (PyList_Check(container)) {
      if (!same_list(container, snapshot)) return false;
    } else {
      throw py::type_error("unchanged: containers: expected dicts and lists");
    }
  }
  for (Py_ssize_t i = 0; i + 2 < flat; i += 3, ++number) {
    PyObject* const owner = PyTuple_GET_ITEM(entries.ptr(), i);
    PyObject* const dict = dict_of(owner);
    const uint64_t now = dict == nullptr ? 0 : number_of(dict);
    if (now != 0 && now == *number) continue;
    PyObject* const name = PyTuple_GET_ITEM(entries.ptr(), i + 1);
    PyObject* value = dict == nullptr ? PyCell_GET(owner) : PyDict_GetItemWithError(dict, name);
    if (value == nullptr) value = missing();
    if (value != PyTuple_GET_ITEM(entries.ptr(), i + 2)) return false;
    *number = now;
  }
  return true;
}

}  // namespace

PYBIND11_MODULE(_introspect, m) {
  m.doc() = "CPU features, the choice of instruction set and algorithm, and how the library was built.";
  m.def(
      "isas_compiled", [] { return isas(pk::isa_compiled); }, "ISAs that this build has kernels for, in rising order.");
  m.def("isas_supported", [] { return isas(pk::isa_supported); }, "ISAs that this CPU and operating system can run.");
  m.def("active_isa", &active, "The ISA in force. ValueError if PYKERNELS_ISA asks for what cannot be had.");
  m.def(
      "force_isa",
      [](const std::optional<std::string>& name) { raise_if(pk::force_isa(name ? name->c_str() : nullptr)); },
      py::arg("name").none(true), "Force an ISA for the process; None returns to PYKERNELS_ISA or detection.");
  m.def(
      "conv_algorithm", &conv_algorithm, py::arg("x"), py::arg("weight"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::kw_only(), py::arg("packs") = false,
      "The algorithm for conv_pack that is likely fastest for these shapes: 0 direct, 1 winograd4, 2 winograd2; 0 for "
      "shapes that do not go together. With `packs`, packing the weight for the one call counts.");
  m.def(
      "unchanged", &unchanged, py::arg("containers"), py::arg("snapshots"), py::arg("entries"), py::arg("numbers"),
      "Are dicts and lists as their snapshots, tuples of (key, value, ...) and of items, to the very object? And the "
      "entries, flat triples of an owner (dict, class, cell), a name and a value? NotImplemented in a dict's snapshot "
      "stands for any value, Ellipsis for an entry that is not there; the keys _pack and _compiled_call_impl of dicts "
      "do not count. `numbers` is the caller's for the next time: zeros, 8 for each container and each entry.");
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"compiler", PK_COMPILER}, {"torch", PK_TORCH_VERSION}, {"build type", PK_BUILD_TYPE}};
      },
      "Compiler, the torch that it was built against, build type.");
}
