// What the convolutions whose weights are bound to all else share: conv_bn_act.cpp's, int8_conv2d.cpp's, and the linear
// layers of both. A fully connected layer is a 1x1 convolution of an image whose pixels are the rows of x.
#pragma once

#include <string_view>

#include "torch/conv_bn_act.h"
// conv_bn_act.h first: it names torch's headers.
#include "torch/tensors.h"

namespace pk::binding {

// (k,) float32 or none. `keep` holds what the result points to.
inline const float* per_channel(const MaybeTensor& t, int64_t k, const char* op, const char* argument,
                                MaybeTensor* keep) {
  if (!t.has_value()) return nullptr;
  check_cpu(*t, op, argument);
  check_dtype(*t, ScalarType::Float, op, argument);
  check_shape(*t, {k}, op, argument);
  *keep = dense(*t);
  return static_cast<const float*>(data_of(**keep));
}

// Bytes that the op `of` made.
inline void check_blob(const char* op, const char* argument, const char* of, const Tensor& t) {
  check_cpu(t, op, argument);
  check(t.dim() == 1 && t.scalar_type() == ScalarType::Byte && t.is_contiguous(), op, argument,
        "expected the contiguous 1-D torch.uint8 tensor of ", of, ", got ", dtype_name(t.scalar_type()), " of shape ",
        shape_of(t));
}

// check_status of a plan whose packed weight came as bound_conv.
inline void check_bound_status(Status status, const char* op) {
  constexpr std::string_view name = "packed: ";
  if (!status && std::string_view(status.error).starts_with(name))
    throw std::runtime_error(std::string("pykernels.") + op + ": bound_conv: " + (status.error + name.size()));
  check_status(status, op);
}

// Runs the plan in `workspace`, or where that is too small, because there are more threads than there were, in one of
// its own.
template <class Plan>
void run_in(const Plan& plan, const Tensor& workspace, const Executor& executor) {
  if (workspace.numel() >= plan.workspace_bytes) {
    pk::run(plan, workspace.mutable_data_ptr(), executor);
  } else {
    pk::run(plan, Scratch(plan.workspace_bytes).data(), executor);
  }
}

// The rows of any tensor but a number, as images of one pixel: (rows, features, 1, 1), copied where no stride leads
// from each to the next.
inline Tensor rows_of(const char* op, const char* argument, const Tensor& t) {
  check(t.dim() >= 1, op, argument, "expected at least 1 dimension, got shape ", shape_of(t));
  const int64_t last = t.dim() - 1, features = t.size(last);
  int64_t rows = 1, step = features;
  for (int64_t d = last; d-- > 0;) {
    const int64_t size = t.size(d);
    if (size != 1 && rows == 1) step = t.stride(d);
    const bool even = size <= 1 || rows <= 1 || t.stride(d) == rows * step;
    if (!even && t.numel() > 0) return rows_of(op, argument, torch::stable::contiguous(t));
    rows *= size;
  }
  // The strides of the two dimensions of size 1 are those of an image in channels_last.
  return view_of(t, {rows, features, 1, 1}, {step, t.stride(last), features, features});
}

inline void check_rows(const char* op, const char* argument, const Tensor& t, const Tensor& x) {
  bool good = t.dim() == x.dim();
  for (int64_t d = 0; good && d < x.dim() - 1; ++d) good = t.size(d) == x.size(d);
  check(good, op, argument, "expected the shape of x except for the last dimension, got ", shape_of(t), " and ",
        shape_of(x));
}

inline MaybeTensor residual_rows(const char* op, const Tensor& x, const MaybeTensor& residual) {
  if (!residual.has_value()) return std::nullopt;
  check_rows(op, "residual", *residual, x);
  return rows_of(op, "residual", *residual);
}

// The rows of `out`, which are to be written.
inline Tensor out_rows(const char* op, const Tensor& x, const Tensor& out) {
  check_rows(op, "out", out, x);
  const Tensor rows = rows_of(op, "out", out);
  check(data_of(rows) == data_of(out), op, "out", "expected rows at equal distances, got shape ", shape_of(out));
  return rows;
}

// The result for the rows of x, (rows, k, 1, 1) without gaps, in x's rank.
inline Tensor of_rows(const Tensor& y, const Tensor& x) {
  Ints sizes(x.sizes().begin(), x.sizes().end()), strides(sizes.size(), 1);
  sizes.back() = y.size(1);
  for (size_t d = sizes.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * (sizes[d + 1] > 1 ? sizes[d + 1] : 1);
  return view_of(y, sizes, strides);
}

}  // namespace pk::binding
