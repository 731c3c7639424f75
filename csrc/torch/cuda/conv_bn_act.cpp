// conv_bn_act, conv_pack and conv_bn_act_packed on CUDA; the schemas are in csrc/torch/cpu/conv_bn_act.cpp.
#include "torch/cuda/checks.h"
// checks.h first: it names torch's headers.
#include "pykernels/cuda/conv_bn_act.h"
#include "torch/conv_bn_act.h"

namespace pk::binding {
namespace {

// Of a weight of this shape: refuses what the kernels don't take, too.
Ints packed_shape_of(const char* op, const ConvShape& shape, DType dtype) {
  int64_t size[2];
  check_status(cuda::conv_packed_size(shape, dtype, size), op);
  return {size[0], size[1]};
}

Tensor pack(const OnDevice& on, const Tensor& weight, int64_t groups, const char* op) {
  check_dim(weight, 4, op, "weight");
  const DType dtype =
      weight.scalar_type() == ScalarType::Char ? DType::i8 : to_cuda_float(weight.scalar_type(), op, "weight");
  const Ints sizes = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  const ConvShape shape = weight_shape_of(sizes, groups, op, "weight");
  const Tensor packed = on.empty(packed_shape_of(op, shape, dtype), weight.scalar_type());
  check_status(cuda::conv_pack(shape, dtype, to_conv_tensor(weight), packed.mutable_data_ptr(), on.stream()), op);
  return packed;
}

// What both forms share. `packed` null: it is made of `weight` here.
Tensor run(const char* op, const Tensor& x, const Tensor* weight, const Tensor* packed, const Ints& weight_shape,
           const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& residual, const Ints& stride,
           const Ints& padding, const Ints& dilation, int64_t groups, int64_t activation, double negative_slope,
           bool tf32) {
  const OnDevice on(op, x, "x");
  check_dim(x, 4, op, "x");
  ConvArgs args;
  args.dtype = to_cuda_float(x.scalar_type(), op, "x");
  args.shape = conv_shape_of(op, x, weight_shape, stride, padding, dilation, groups);
  const ConvShape& shape = args.shape;
  const Ints packed_shape = packed_shape_of(op, shape, args.dtype);
  args.tf32 = tf32;
  args.activation = to_activation(activation, op);
  args.negative_slope = static_cast<float>(negative_slope);
  MaybeTensor kept_scale, kept_shift, made;
  args.scale = on.vector(scale, shape.k, "scale", &kept_scale);
  args.shift = on.vector(shift, shape.k, "shift", &kept_shift);
  if (residual.has_value()) {
    on.check(*residual, "residual");
    check_dtype(*residual, x.scalar_type(), op, "residual");
    check_shape(*residual, {shape.n, shape.k, shape.p(), shape.q()}, op, "residual");
    args.residual = to_conv_tensor(*residual);
  }
  if (packed != nullptr) {
    on.check(*packed, "packed");
    check_dtype(*packed, x.scalar_type(), op, "packed");
    check_shape(*packed, packed_shape, op, "packed");
    check(packed->is_contiguous(), op, "packed", "expected the contiguous tensor of conv_pack");
  } else {
    on.check(*weight, "weight");
    made = pack(on, *weight, groups, op);
    packed = &*made;
  }
  args.packed = data_of(*packed);
  args.packed_bytes = packed->numel() * static_cast<int64_t>(size_of(args.dtype));
  args.x = to_conv_tensor(x);
  // x's memory format, as torch's conv2d gives.
  const Tensor y = on.empty({shape.n, shape.k, shape.p(), shape.q()}, x.scalar_type(),
                            is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  args.y = y.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = y.stride(i);
  int64_t bytes = 0;
  check_status(cuda::conv_workspace_bytes(args, &bytes), op);
  const Tensor workspace = on.workspace(static_cast<size_t>(bytes));
  args.workspace = workspace.mutable_data_ptr();
  args.workspace_bytes = bytes;
  check_status(cuda::conv_bn_act(args, on.stream()), op);
  return y;
}

// The algorithm is chosen at the call: the packed weight is the same for all.
Tensor conv_pack_op(Tensor weight, int64_t groups, int64_t algorithm) {
  const char* op = "conv_pack";
  check(algorithm >= 0 && algorithm < kConvAlgorithms, op, "algorithm",
        "expected 0 (direct), 1 (winograd4) or 2 (winograd2), got ", algorithm);
  return pack(OnDevice(op, weight, "weight"), weight, groups, op);
}

Tensor conv_bn_act_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual, Ints stride,
                      Ints padding, Ints dilation, int64_t groups, int64_t activation, double negative_slope,
                      bool tf32) {
  const char* op = "conv_bn_act";
  check_dtype(weight, x.scalar_type(), op, "weight");
  check_dim(weight, 4, op, "weight");
  const Ints weight_shape = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  return run(op, x, &weight, nullptr, weight_shape, scale, shift, residual, stride, padding, dilation, groups,
             activation, negative_slope, tf32);
}

Tensor conv_bn_act_packed_op(Tensor x, Tensor packed, Ints weight_shape, MaybeTensor scale, MaybeTensor shift,
                             MaybeTensor residual, Ints stride, Ints padding, Ints dilation, int64_t groups,
                             int64_t activation, double negative_slope, bool tf32) {
  return run("conv_bn_act_packed", x, nullptr, &packed, weight_shape, scale, shift, residual, stride, padding, dilation,
             groups, activation, negative_slope, tf32);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("conv_bn_act", TORCH_BOX(&conv_bn_act_op));
  m.impl("conv_pack", TORCH_BOX(&conv_pack_op));
  m.impl("conv_bn_act_packed", TORCH_BOX(&conv_bn_act_packed_op));
}

}  // namespace pk::binding
