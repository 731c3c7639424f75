// The arguments of the int8 family's ops, on every device. Whether a tensor is on the right one is the caller's check.
#pragma once

#include "torch/checks.h"
// checks.h first: it names torch's headers.
#include "pykernels/int8_matmul.h"

namespace pk::binding {

using MaybeTensor = std::optional<Tensor>;

struct EpilogueArguments {
  const MaybeTensor &a_scale, &b_scale, &a_zero_point, &bias;
  int64_t activation;
};

inline void check_matrix(const Tensor& t, const char* op, const char* argument) {
  check(t.dim() == 2, op, argument, "expected a matrix, got shape ", shape_of(t));
}

// A vector of n, or of one element for all.
inline void check_vector(const Tensor& t, int64_t n, ScalarType dtype, const char* op, const char* argument) {
  check_dtype(t, dtype, op, argument);
  check(t.dim() <= 1 && (t.numel() == 1 || (t.dim() == 1 && t.size(0) == n)), op, argument,
        "expected one element, or shape (", n, "), got shape ", shape_of(t));
}

inline void set_int8_a(const char* op, const Tensor& a, Int8Matmul* p) {
  check_dtype(a, ScalarType::Char, op, "a");
  check_matrix(a, op, "a");
  p->m = a.size(0);
  p->k = a.size(1);
  p->a = a.const_data_ptr();
  p->a_stride_m = a.stride(0);
  // A column of one element has no stride worth the name, and rows of stride 1 are the fast ones.
  p->a_stride_k = p->k > 1 ? a.stride(1) : 1;
}

// x with contiguous rows, which the problem then has as an a of `dtype` to be quantised.
inline Tensor set_float_a(const char* op, const Tensor& x, DType dtype, Int8Matmul* p) {
  check_matrix(x, op, "x");
  const Tensor rows = x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  p->m = rows.size(0);
  p->k = rows.size(1);
  p->a_dtype = dtype;
  p->a = rows.const_data_ptr();
  p->a_stride_m = rows.stride(0);
  p->a_stride_k = 1;
  return rows;
}

inline void set_b(const char* op, const Tensor& b, Int8Matmul* p) {
  check_dtype(b, ScalarType::Char, op, "b");
  check_matrix(b, op, "b");
  check(b.size(0) == p->k, op, "b", "expected ", p->k, " rows, as the left side has columns, got shape ", shape_of(b));
  p->n = b.size(1);
  p->b = static_cast<const int8_t*>(b.const_data_ptr());
  p->b_stride_k = p->k > 1 ? b.stride(0) : 1;
  p->b_stride_n = b.stride(1);
}

inline void set_packed(const char* op, const Tensor& packed, int64_t n, Int8Matmul* p) {
  check_dtype(packed, ScalarType::Byte, op, "packed");
  check(packed.dim() == 1 && (packed.numel() <= 1 || packed.stride(0) == 1), op, "packed",
        "expected the contiguous 1-d tensor that int8_pack makes, got shape ", shape_of(packed));
  check(n >= 0, op, "n", "expected at least 0, got ", n);
  p->n = n;
  p->packed = packed.const_data_ptr();
  p->packed_bytes = packed.numel();
  // An empty tensor has no address, and a null one means "not packed".
  alignas(16) static const char nothing = 0;
  if (p->packed_bytes == 0) p->packed = &nothing;
}

// Sees x as (outer, channels, inner), with one channel for axis < 0; its sizes.
inline std::vector<int64_t> set_slices(const char* op, const Tensor& x, int64_t axis, QuantizeInt8* p) {
  check(axis < x.dim(), op, "axis", "expected less than ", x.dim(), " for shape ", shape_of(x), ", got ", axis);
  p->inner = 1;
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) {
    sizes.push_back(x.size(i));
    // An empty tensor's other sizes may be of any size.
    int64_t& size = i < axis ? p->outer : i == axis ? p->channels : p->inner;
    check(!__builtin_mul_overflow(size, x.size(i), &size), op, "x", "expected a smaller shape, got ", shape_of(x));
  }
  return sizes;
}

}  // namespace pk::binding
