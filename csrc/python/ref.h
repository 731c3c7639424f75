// A reference to a Python object that goes with its scope.
#pragma once

#include <Python.h>

namespace pk::python {

// Owns a reference, or null.
class Ref {
 public:
  explicit Ref(PyObject* object) : object_(object) {}
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  bool is(PyObject* other) const { return object_ == other; }
  bool equals(PyObject* other) const {
    return object_ != nullptr && (object_ == other || PyObject_RichCompareBool(object_, other, Py_EQ) == 1);
  }

 private:
  PyObject* object_;
};

}  // namespace pk::python
