#include "python/recall.h"

#include <cmath>
#include <exception>
#include <utility>
#include <vector>

#include "pykernels/isa.h"
#include "python/ref.h"
#include "python/unchanged.h"
#include "torch/notes.h"

namespace pk::python {
namespace {

// An entry's fields.
enum Field : Py_ssize_t { modes, args, kwargs, watched, sources, weights, run, constants, program, fields };
// The fields of its `sources`.
enum Source : Py_ssize_t { counters, steps, tensors, versions, note, isa, source_fields };

constexpr Py_ssize_t kAhead = 8;  // objects that are fetched while one is looked at

PyObject* item(PyObject* tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple, i); }

// The names of what a tensor is asked, made once.
struct Names {
  static PyObject* of(const char* name) { return PyUnicode_InternFromString(name); }
  PyObject* shape = of("shape");
  PyObject* stride = of("stride");
  PyObject* dtype = of("dtype");
  PyObject* device = of("device");
  PyObject* requires_grad = of("requires_grad");
  PyObject* layout = of("layout");
  PyObject* is_neg = of("is_neg");
  PyObject* is_conj = of("is_conj");
  PyObject* is_complex = of("is_complex");
  PyObject* steps = of("steps");
  PyObject* version = of("_version");
};

const Names& names() {
  static const Names all;
  return all;
}

// The last dtype that was asked whether it is of complex numbers, which alone may be conjugated lazily.
bool is_real(PyObject* dtype) {
  static PyObject* last = nullptr;
  if (dtype == last) return true;
  if (!Ref(PyObject_GetAttr(dtype, names().is_complex)).is(Py_False)) return false;
  last = dtype;  // dtypes live for ever
  return true;
}

// torch.strided; null, with a Python error, where there is no torch.
PyObject* strided() {
  static PyObject* found = nullptr;
  if (found == nullptr) {
    const Ref torch(PyImport_ImportModule("torch"));
    if (torch.get() != nullptr) found = PyObject_GetAttrString(torch.get(), "strided");
  }
  return found;
}

bool attribute_is(PyObject* x, PyObject* name, PyObject* expected) {
  return Ref(PyObject_GetAttr(x, name)).is(expected);
}

bool method_is(PyObject* x, PyObject* name, PyObject* expected) {
  return Ref(PyObject_CallMethodNoArgs(x, name)).is(expected);
}

// Compares arguments with what `signature` in pykernels/optimize/_signatures.py says of those that a program ran for,
// and collects their tensors.
class Arguments {
 public:
  Arguments() = default;
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;
  ~Arguments() {
    for (PyObject* t : tensors_) Py_DECREF(t);
  }
  bool are(PyObject* x, PyObject* signature) {
    if (PyTuple_GET_SIZE(signature) == kOfTensor) return is_tensor(x, signature);
    PyObject *const kind = item(signature, 0), *const rest = item(signature, 1);
    if (PyUnicode_Check(kind)) return is_again(x, rest);
    if (reinterpret_cast<PyObject*>(Py_TYPE(x)) != kind) return false;
    if (kind != reinterpret_cast<PyObject*>(&PyTuple_Type) && Py_TYPE(rest) == Py_TYPE(x)) {
      // A value: a number, a torch.Size. No signature holds -0.0, which equals 0.0.
      if (PyFloat_Check(x) && std::signbit(PyFloat_AS_DOUBLE(x)) && PyFloat_AS_DOUBLE(x) == 0) return false;
      return PyObject_RichCompareBool(x, rest, Py_EQ) == 1;
    }
    if (PyTuple_Check(x)) return are_items(x, rest);
    if (PyList_Check(x)) {
      const Ref items(PyList_AsTuple(x));
      return items.get() != nullptr && are_items(items.get(), rest);
    }
    return PyDict_Check(x) && are_pairs(x, rest);
  }
  const std::vector<PyObject*>& tensors() const { return tensors_; }

 private:
  static constexpr Py_ssize_t kOfTensor = 6;  // shape, strides, class, dtype, device, requires_grad

  bool is_tensor(PyObject* x, PyObject* signature) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(x)) != item(signature, 2)) return false;
    for (PyObject* t : tensors_) {
      if (t == x) return false;
    }
    const Names& n = names();
    // A nested tensor has no shape, or another layout.
    if (!Ref(PyObject_GetAttr(x, n.shape)).equals(item(signature, 0)) ||
        !Ref(PyObject_CallMethodNoArgs(x, n.stride)).equals(item(signature, 1)) ||
        !attribute_is(x, n.dtype, item(signature, 3)) ||
        !Ref(PyObject_GetAttr(x, n.device)).equals(item(signature, 4)) ||
        !attribute_is(x, n.requires_grad, item(signature, 5)) || !attribute_is(x, n.layout, strided()) ||
        !method_is(x, n.is_neg, Py_False) || (!is_real(item(signature, 3)) && !method_is(x, n.is_conj, Py_False))) {
      return false;
    }
    const Ref attributes(PyObject_GenericGetDict(x, nullptr));
    if (attributes.get() == nullptr || !PyDict_Check(attributes.get()) || PyDict_GET_SIZE(attributes.get()) != 0) {
      return false;
    }
    tensors_.push_back(Py_NewRef(x));  // a list that holds it may change before it is used
    return true;
  }

  bool is_again(PyObject* x, PyObject* i) const {
    const Py_ssize_t at = PyLong_AsSsize_t(i);
    return at >= 0 && at < static_cast<Py_ssize_t>(tensors_.size()) && tensors_[static_cast<size_t>(at)] == x;
  }

  bool are_items(PyObject* items, PyObject* signatures) {
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    if (PyTuple_GET_SIZE(signatures) != count) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!are(item(items, i), item(signatures, i))) return false;
    }
    return true;
  }

  // The items are copied first: what a tensor is asked may run other code, which may change the dict.
  bool are_pairs(PyObject* dict, PyObject* signatures) {
    const Ref pairs(PyDict_Items(dict));
    const Ref items(pairs.get() == nullptr ? nullptr : PyList_AsTuple(pairs.get()));
    if (items.get() == nullptr || PyTuple_GET_SIZE(items.get()) != PyTuple_GET_SIZE(signatures)) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(signatures); ++i) {
      if (!are_items(item(items.get(), i), item(signatures, i))) return false;
    }
    return true;
  }

  std::vector<PyObject*> tensors_;
};

bool is_still(PyObject* still) {
  for (Py_ssize_t i = 0; i + 1 < PyTuple_GET_SIZE(still); i += 2) {
    if (!Ref(PyObject_CallNoArgs(item(still, i))).is(item(still, i + 1))) return false;
  }
  return true;
}

bool are_modes(PyObject* functions, PyObject* expected) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(functions); ++i) {
    if (!Ref(PyObject_CallNoArgs(item(functions, i))).is(item(expected, i))) return false;
  }
  return true;
}

bool is_of_isa(PyObject* name) {
  Isa active;
  return name == Py_None || (active_isa(&active) && PyUnicode_CompareWithASCIIString(name, isa_name(active)) == 0);
}

// What the constants were made of, as `Sources.are_current` in pykernels/optimize/_sources.py has it.
bool are_current(PyObject* made_of) {
  if (made_of == Py_None) return true;
  // An optimizer's step may count no version: every step counts, then, for whoever's tensors it was.
  if (!PyDict_Check(item(made_of, counters)) || !is_of_isa(item(made_of, isa)) ||
      PyDict_GetItemWithError(item(made_of, counters), names().steps) != item(made_of, steps)) {
    return false;
  }
  try {
    if (!binding::are_as_noted(PyLong_AsLongLong(item(made_of, note)))) return false;
  } catch (const std::exception&) {
    return false;
  }
  PyObject *const all = item(made_of, tensors), *const then = item(made_of, versions);
  const Py_ssize_t count = PyTuple_GET_SIZE(all);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(item(all, i + kAhead));
    if (!Ref(PyObject_GetAttr(item(all, i), names().version)).equals(item(then, i))) return false;
  }
  return true;
}

bool want_no_gradients(PyObject* parameters) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parameters); ++i) {
    if (i + kAhead < PyTuple_GET_SIZE(parameters)) __builtin_prefetch(item(parameters, i + kAhead));
    if (!attribute_is(item(parameters, i), names().requires_grad, Py_False)) return false;
  }
  return true;
}

bool is_unchanged(PyObject* watch) {
  return unchanged(item(watch, 0), item(watch, 1), item(watch, 2), item(watch, 3)) == 1;
}

bool is_entry(PyObject* entry) {
  if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) < fields) return false;
  PyObject* const made_of = item(entry, sources);
  return made_of == Py_None || (PyTuple_Check(made_of) && PyTuple_GET_SIZE(made_of) == source_fields);
}

// Forgets an error of the comparison, which makes a miss. False for what may be somebody else's: the functions that are
// called may be Python's, and there the handlers of signals run, and raise a KeyboardInterrupt or a TimeoutError.
bool forget_error() {
  if (PyErr_Occurred() == nullptr) return true;
  for (PyObject* ours : {PyExc_RuntimeError, PyExc_TypeError, PyExc_ValueError, PyExc_AttributeError}) {
    if (PyErr_ExceptionMatches(ours)) {
      PyErr_Clear();
      return true;
    }
  }
  return false;
}

PyObject* run_it(PyObject* entry, const std::vector<PyObject*>& given) {
  std::vector<PyObject*> arguments{item(entry, constants)};
  arguments.insert(arguments.end(), given.begin(), given.end());
  return PyObject_Vectorcall(item(entry, run), arguments.data(), arguments.size(), nullptr);
}

}  // namespace

PyObject* miss() {
  static PyObject* const object = PyObject_CallNoArgs(reinterpret_cast<PyObject*>(&PyBaseObject_Type));
  return object;
}

PyObject* recall(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 5 || !PyTuple_Check(arguments[0]) || PyTuple_GET_SIZE(arguments[0]) != 2 ||
      !PyTuple_Check(arguments[1]) || !PyList_Check(arguments[2]) || PyList_GET_SIZE(arguments[2]) != 1) {
    PyErr_SetString(PyExc_TypeError, "recall: expected context, known, ran, args and kwargs, see recall.h");
    return nullptr;
  }
  PyObject *const context = arguments[0], *const ran = arguments[2];
  const Ref known(Py_NewRef(arguments[1]));  // the stub may get others while these are looked at
  if (PyTuple_GET_SIZE(known.get()) == 0 || !is_still(item(context, 0))) {
    return forget_error() ? Py_NewRef(miss()) : nullptr;
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(known.get()); ++i) {
    PyObject* const entry = item(known.get(), i);
    if (!is_entry(entry)) {
      PyErr_SetString(PyExc_TypeError, "recall: known: expected tuples as in pykernels/optimize/_recall.py");
      return nullptr;
    }
    Arguments given;
    const bool is_like_it = given.are(arguments[3], item(entry, args)) &&
                            given.are(arguments[4], item(entry, kwargs)) &&
                            are_modes(item(context, 1), item(entry, modes)) && is_unchanged(item(entry, watched)) &&
                            are_current(item(entry, sources)) && want_no_gradients(item(entry, weights));
    if (!is_like_it) {
      if (!forget_error()) return nullptr;
      continue;
    }
    if (PyList_GET_ITEM(ran, 0) != item(entry, program)) {
      PyList_SetItem(ran, 0, Py_NewRef(item(entry, program)));
    }
    return run_it(entry, given.tensors());
  }
  return Py_NewRef(miss());
}

}  // namespace pk::python
