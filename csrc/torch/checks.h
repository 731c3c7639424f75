// Argument checks of the binding: each names the op, the argument, what was expected and what came.
// They throw std::runtime_error, which torch's dispatcher turns into Python's RuntimeError.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const char* argument, const Parts&... parts) {
  std::ostringstream message;
  message << "pykernels." << op << ": " << argument << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <class... Parts>
void check(bool good, const char* op, const char* argument, const Parts&... parts) {
  if (!good) fail(op, argument, parts...);
}

// A tensor's shape, for a message: put into words only where the check fails, for checks run at every call.
struct ShapeOf {
  const Tensor& tensor;
};
inline ShapeOf shape_of(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& to, ShapeOf shape) {
  to << '(';
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) to << (i ? ", " : "") << shape.tensor.size(i);
  return to << ')';
}

// What torch's suggest_memory_format says of x, of four dimensions: is it channels_last rather than contiguous?
inline bool is_channels_last(const Tensor& x) {
  int64_t least = 0;
  if (x.stride(1) == 0) return false;
  for (int64_t d : {1, 3, 2, 0}) {
    const int64_t size = x.size(d), stride = x.stride(d);
    if (size == 0 || stride < least || (d == 0 && least == x.stride(1))) return false;
    least = size > 1 ? stride * size : stride;
  }
  return true;
}

inline const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    default:
      return "another dtype";
  }
}

// Of a float, an int8 or a byte.
inline int64_t element_bytes(ScalarType t) {
  return t == ScalarType::Byte || t == ScalarType::Char ? 1 : t == ScalarType::Float ? 4 : 2;
}

inline void check_cpu(const Tensor& t, const char* op, const char* argument) {
  check(t.is_cpu(), op, argument, "expected a CPU tensor, got one on another device");
}

inline void check_dtype(const Tensor& t, ScalarType expected, const char* op, const char* argument) {
  check(t.scalar_type() == expected, op, argument, "expected ", dtype_name(expected), ", got ",
        dtype_name(t.scalar_type()));
}

inline void check_shape(const Tensor& t, const std::vector<int64_t>& expected, const char* op, const char* argument) {
  bool good = t.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; good && i < expected.size(); ++i) good = t.size(static_cast<int64_t>(i)) == expected[i];
  if (good) return;
  std::ostringstream s;
  s << '(';
  for (size_t i = 0; i < expected.size(); ++i) s << (i ? ", " : "") << expected[i];
  s << ')';
  fail(op, argument, "expected shape ", s.str(), ", got ", shape_of(t));
}

// Has each element of `t` a place of its own? Each step has to lead past all that the
// smaller ones reach, as in every memory format and whatever is cut out of one.
inline bool is_without_overlap(const Tensor& t) {
  struct Axis {
    int64_t stride, size;
  } axes[64];  // torch has no more dimensions
  int64_t count = 0, reach = 0;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 0) return true;
    if (t.size(d) == 1) continue;
    int64_t at = count++;  // they are sorted by their strides
    for (; at > 0 && axes[at - 1].stride > t.stride(d); --at) axes[at] = axes[at - 1];
    axes[at] = {t.stride(d), t.size(d)};
  }
  for (int64_t i = 0; i < count; ++i) {
    if (axes[i].stride <= reach) return false;
    reach += axes[i].stride * (axes[i].size - 1);
  }
  return true;
}

// `out` is what an op of the CPU writes to.
inline void check_out(const Tensor& out, ScalarType dtype, const std::vector<int64_t>& shape, const char* op) {
  check_cpu(out, op, "out");
  check_dtype(out, dtype, op, "out");
  check_shape(out, shape, op, "out");
  check(is_without_overlap(out), op, "out", "expected elements that do not overlap");
}

// `call` holds the fields of a Numbers, which are all of the type Number: int64_t or double.
template <class Numbers, class Number>
Numbers numbers_in(const char* op, const Tensor& call) {
  constexpr bool whole = std::is_same_v<Number, int64_t>;
  constexpr int64_t count = sizeof(Numbers) / sizeof(Number);
  check_cpu(call, op, "call");
  check(call.scalar_type() == (whole ? ScalarType::Long : ScalarType::Double) && call.is_contiguous() &&
            call.numel() == count,
        op, "call", "expected ", count, whole ? " int64" : " float64", " numbers, got ", dtype_name(call.scalar_type()),
        " of shape ", shape_of(call));
  Numbers numbers;
  std::memcpy(&numbers, call.const_data_ptr(), sizeof numbers);
  return numbers;
}

inline void check_status(Status status, const char* op) {
  if (!status) throw std::runtime_error(std::string("pykernels.") + op + ": " + status.error);
}

inline Activation to_activation(int64_t code, const char* op) {
  check(code >= 0 && code < kActivations, op, "activation", "expected a code in [0, ", kActivations, "), got ", code);
  return static_cast<Activation>(code);
}

// The kernels' element type. Only CUDA's have float16.
inline DType to_dtype(ScalarType t, const char* op, const char* argument, bool cuda = false) {
  switch (t) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Char:
      return DType::i8;
    case ScalarType::Int:
      return DType::i32;
    case ScalarType::Half:
      if (cuda) return DType::f16;
      [[fallthrough]];
    default:
      fail(op, argument, "the ",
           cuda ? "CUDA kernels take float32, bfloat16, float16" : "CPU kernels take float32, bfloat16",
           ", int8 and int32, got ", dtype_name(t));
  }
}

inline DType to_float_dtype(ScalarType t, const char* op, const char* argument, bool cuda = false) {
  check(t == ScalarType::Float || t == ScalarType::BFloat16 || (cuda && t == ScalarType::Half), op, argument,
        "expected torch.float32", cuda ? ", torch.bfloat16 or torch.float16" : " or torch.bfloat16", ", got ",
        dtype_name(t));
  return to_dtype(t, op, argument, cuda);
}

// torch's own pool. Where it fails, some ranges have not run and the output is not written: that throws, in the thread
// that called the kernel and outside of every body.
inline Executor torch_executor() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
            if (torch_parallel_for(begin, end, grain, body, context) != AOTI_TORCH_SUCCESS)
              throw std::runtime_error("pykernels: torch's thread pool failed to run the kernel");
          }};
}

}  // namespace pk::binding
