#include "python/unchanged.h"

#include <cstdint>

#include "python/ref.h"

namespace pk::python {
namespace {

// The value in a snapshot that stands for any value, and the one for a name that is not there.
PyObject* any_value() { return Py_NotImplemented; }
PyObject* missing() { return Py_Ellipsis; }

// Keys of a module's dict that come and go without a meaning.
bool is_skipped(PyObject* key) {
  static PyObject* const pack = PyUnicode_InternFromString("_pack");
  static PyObject* const call = PyUnicode_InternFromString("_compiled_call_impl");
  return key == pack || key == call;
}

constexpr Py_ssize_t kAhead = 12;  // objects that are fetched while one is looked at

bool same_dict(PyObject* dict, PyObject* snapshot) {
  const Py_ssize_t size = PyTuple_GET_SIZE(snapshot);
  Py_ssize_t position = 0, i = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (is_skipped(key)) continue;
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

// CPython up to 3.11 gives a dict another number at every change, so that one of the same number need not be looked
// through. Later versions keep the numbers for themselves.
#if PY_VERSION_HEX < 0x030C0000
uint64_t number_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }
#else
uint64_t number_of(PyObject*) { return 0; }  // which no dict has
#endif

int same_container(PyObject* container, PyObject* snapshot, uint64_t* number) {
  const bool is_dict = PyDict_Check(container);
  const uint64_t now = is_dict ? number_of(container) : 0;
  if (now != 0 && now == *number) return 1;  // the snapshot, which lies elsewhere, is not even looked at
  if (PySet_Check(container) ? !PyFrozenSet_Check(snapshot) : !PyTuple_Check(snapshot)) {
    PyErr_SetString(PyExc_TypeError, "unchanged: snapshots: expected tuples, and frozensets of sets");
    return -1;
  }
  if (is_dict) {
    if (!same_dict(container, snapshot)) return 0;
    *number = now;
    return 1;
  }
  if (PyList_Check(container)) return same_list(container, snapshot) ? 1 : 0;
  if (PySet_Check(container)) return PyObject_RichCompareBool(container, snapshot, Py_EQ);
  PyErr_SetString(PyExc_TypeError, "unchanged: containers: expected dicts, lists and sets");
  return -1;
}

// The dict of a class, owned; or `owner` itself.
PyObject* dict_of(PyObject* owner) {
  if (!PyType_Check(owner)) return Py_NewRef(owner);
#if PY_VERSION_HEX < 0x030C0000
  return Py_XNewRef(reinterpret_cast<PyTypeObject*>(owner)->tp_dict);
#else
  return PyType_GetDict(reinterpret_cast<PyTypeObject*>(owner));  // Python's own classes have no tp_dict
#endif
}

int same_entry(PyObject* owner, PyObject* name, PyObject* then, uint64_t* number) {
  const Ref held(dict_of(owner));
  PyObject* const dict = held.get();
  PyObject* value = nullptr;
  uint64_t now = 0;
  if (dict != nullptr && PyDict_Check(dict)) {
    now = number_of(dict);
    if (now != 0 && now == *number) return 1;
    value = PyDict_GetItemWithError(dict, name);
    if (value == nullptr && PyErr_Occurred()) return -1;
  } else if (PyCell_Check(owner)) {
    value = PyCell_GET(owner);
  } else if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "__class__") == 0) {
    value = reinterpret_cast<PyObject*>(Py_TYPE(owner));
  } else {
    PyErr_SetString(PyExc_TypeError, "unchanged: entries: expected dicts, classes and cells as owners, or __class__");
    return -1;
  }
  if ((value == nullptr ? missing() : value) != then) return 0;
  *number = now;
  return 1;
}

bool are_as_agreed(PyObject* containers, PyObject* snapshots, PyObject* entries, PyObject* numbers) {
  if (!PyTuple_Check(containers) || !PyTuple_Check(snapshots) || !PyTuple_Check(entries) ||
      !PyByteArray_Check(numbers)) {
    PyErr_SetString(PyExc_TypeError, "unchanged: expected three tuples and a bytearray");
    return false;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(containers), flat = PyTuple_GET_SIZE(entries);
  if (PyTuple_GET_SIZE(snapshots) != count) {
    PyErr_SetString(PyExc_ValueError, "unchanged: snapshots: expected one for each");
    return false;
  }
  if (PyByteArray_GET_SIZE(numbers) != static_cast<Py_ssize_t>(sizeof(uint64_t)) * (count + flat / 3)) {
    PyErr_SetString(PyExc_ValueError, "unchanged: numbers: expected 8 bytes for each container and entry");
    return false;
  }
  return true;
}

}  // namespace

int unchanged(PyObject* containers, PyObject* snapshots, PyObject* entries, PyObject* numbers) {
  if (!are_as_agreed(containers, snapshots, entries, numbers)) return -1;
  const Py_ssize_t count = PyTuple_GET_SIZE(containers), flat = PyTuple_GET_SIZE(entries);
  auto* number = reinterpret_cast<uint64_t*>(PyByteArray_AS_STRING(numbers));
  for (Py_ssize_t i = 0; i < count; ++i, ++number) {
    if (i + kAhead < count) __builtin_prefetch(PyTuple_GET_ITEM(containers, i + kAhead));
    const int same = same_container(PyTuple_GET_ITEM(containers, i), PyTuple_GET_ITEM(snapshots, i), number);
    if (same != 1) return same;
  }
  for (Py_ssize_t i = 0; i + 2 < flat; i += 3, ++number) {
    if (i + 3 * kAhead < flat) __builtin_prefetch(PyTuple_GET_ITEM(entries, i + 3 * kAhead));
    const int same = same_entry(PyTuple_GET_ITEM(entries, i), PyTuple_GET_ITEM(entries, i + 1),
                                PyTuple_GET_ITEM(entries, i + 2), number);
    if (same != 1) return same;
  }
  return 1;
}

}  // namespace pk::python
