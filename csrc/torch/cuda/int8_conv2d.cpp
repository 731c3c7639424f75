// int8_conv2d on CUDA; the schema is in csrc/torch/cpu/int8_conv2d.cpp.
#include "torch/cuda/checks.h"
// checks.h first: it names torch's headers.
#include "pykernels/cuda/conv_bn_act.h"
#include "pykernels/int8_matmul.h"
#include "torch/conv_bn_act.h"

namespace pk::binding {
namespace {

constexpr const char* kOp = "int8_conv2d";

// The weight is packed at every call: a pass over memory that is small beside the convolution's.
Tensor pack(const OnDevice& on, const ConvShape& shape, const Tensor& weight) {
  int64_t size[2];
  check_status(cuda::conv_packed_size(shape, DType::i8, size), kOp);
  const Tensor packed = on.empty({size[0], size[1]}, ScalarType::Char);
  check_status(cuda::conv_pack(shape, DType::i8, to_conv_tensor(weight), packed.mutable_data_ptr(), on.stream()), kOp);
  return packed;
}

Tensor int8_conv2d(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual,
                   double residual_scale, Ints stride, Ints padding, Ints dilation, int64_t groups, int64_t activation,
                   double negative_slope, double y_scale, ScalarType out_dtype) {
  const OnDevice on(kOp, x, "x");
  check_dtype(x, ScalarType::Char, kOp, "x");
  check_dim(x, 4, kOp, "x");
  on.check(weight, "weight");
  check_dtype(weight, ScalarType::Char, kOp, "weight");
  check_dim(weight, 4, kOp, "weight");
  cuda::Int8Conv args;
  args.shape = conv_shape_of(kOp, x, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, stride, padding,
                             dilation, groups);
  const ConvShape& shape = args.shape;
  const Tensor packed = pack(on, shape, weight);  // which checks the shape
  check(weight.size(1) * shape.r * shape.s <= kInt8MaxK, kOp, "weight", "expected at most ", kInt8MaxK,
        " numbers a filter, beyond which int32 sums may wrap, got shape ", shape_of(weight));
  args.packed = data_of(packed);
  args.packed_bytes = packed.numel();
  args.x = to_conv_tensor(x);
  MaybeTensor kept_scale, kept_shift;
  args.scale = on.vector(scale, shape.k, "scale", &kept_scale);
  args.shift = on.vector(shift, shape.k, "shift", &kept_shift);
  if (residual) {
    on.check(*residual, "residual");
    check_shape(*residual, {shape.n, shape.k, shape.p(), shape.q()}, kOp, "residual");
    args.residual = to_conv_tensor(*residual);
    args.residual_dtype = to_cuda_dtype(residual->scalar_type(), kOp, "residual");
  }
  args.residual_scale = static_cast<float>(residual_scale);
  args.activation = to_activation(activation, kOp);
  args.negative_slope = static_cast<float>(negative_slope);
  args.y_scale = static_cast<float>(y_scale);
  args.y_dtype = to_cuda_dtype(out_dtype, kOp, "out_dtype");
  const Tensor y = on.empty({shape.n, shape.k, shape.p(), shape.q()}, out_dtype,
                            is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  args.y = y.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = y.stride(i);
  check_status(cuda::int8_conv_workspace_bytes(args, &args.workspace_bytes), kOp);
  const Tensor workspace = on.workspace(static_cast<size_t>(args.workspace_bytes));
  args.workspace = workspace.mutable_data_ptr();
  check_status(cuda::int8_conv(args, on.stream()), kOp);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d)); }

}  // namespace pk::binding
