// What the CUDA ops of convolution share.
#pragma once

#include "torch/cuda/checks.h"
// checks.h first: it names torch's headers.
#include "pykernels/cuda/conv_bn_act.h"
#include "torch/conv_bn_act.h"

namespace pk::binding {

inline Ints sizes_of(const Tensor& weight, const char* op) {
  check_dim(weight, 4, op, "weight");
  return {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
}

inline Tensor conv_packed(const OnDevice& on, const cuda::ConvPackingPlan& plan, const Tensor& weight) {
  const Tensor packed = on.empty({plan.rows, plan.columns}, weight.scalar_type());
  on.pack_by(plan, to_conv_tensor(weight), packed.mutable_data_ptr());
  return packed;
}

// In x's memory format, as torch's conv2d gives.
template <class Args>
Tensor conv_output(const OnDevice& on, const Tensor& x, ScalarType dtype, Args* args) {
  const ConvShape& shape = args->shape;
  const Tensor y = on.empty({shape.n, shape.k, shape.p(), shape.q()}, dtype,
                            is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  args->y = y.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args->y_stride[i] = y.stride(i);
  return y;
}

inline void check_residual(const Tensor& residual, const ConvShape& shape, const char* op) {
  check_shape(residual, {shape.n, shape.k, shape.p(), shape.q()}, op, "residual");
}

}  // namespace pk::binding
