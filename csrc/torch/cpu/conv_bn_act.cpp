// conv_bn_act, conv_pack, conv_bn_act_packed: see pykernels/ops/conv_bn_act for what they compute.
#include "torch/conv_bn_act.h"

namespace pk::binding {
namespace {

// x's memory format, as torch's conv2d gives.
Tensor empty_output(const Tensor& x, const ConvShape& shape) {
  const Ints sizes = {shape.n, shape.k, shape.p(), shape.q()};
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                              is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor empty_bytes(int64_t bytes) {
  const Ints sizes = {bytes};
  return torch::stable::empty(sizes, ScalarType::Byte);
}

const float* per_channel(const MaybeTensor& t, int64_t k, const char* op, const char* argument, MaybeTensor* keep) {
  if (!t.has_value()) return nullptr;
  check_cpu(*t, op, argument);
  check_dtype(*t, ScalarType::Float, op, argument);
  check_shape(*t, {k}, op, argument);
  *keep = torch::stable::contiguous(*t);
  return static_cast<const float*>(data_of(**keep));
}

ConvAlgorithm to_algorithm(int64_t code, const char* op) {
  check(code >= 0 && code < kConvAlgorithms, op, "algorithm",
        "expected 0 (direct), 1 (winograd4) or 2 (winograd2), got ", code);
  return static_cast<ConvAlgorithm>(code);
}

Tensor pack(const Tensor& weight, int64_t groups, int64_t algorithm, const char* op) {
  check_isa(op);
  check_cpu(weight, op, "weight");
  check_dim(weight, 4, op, "weight");
  const DType dtype = to_dtype(weight.scalar_type(), op, "weight");
  const ConvAlgorithm chosen = to_algorithm(algorithm, op);
  const Ints sizes = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  const ConvShape shape = weight_shape_of(sizes, groups, op, "weight");
  int64_t bytes = 0;
  check_status(conv_packed_bytes(shape, chosen, &bytes), op);
  Tensor packed = empty_bytes(bytes);
  check_status(
      conv_pack(shape, chosen, dtype, to_conv_tensor(weight), packed.mutable_data_ptr(), bytes, torch_executor()), op);
  return packed;
}

ConvShape shape_of_call(const char* op, const Tensor& x, const Ints& weight_shape, const Ints& stride,
                        const Ints& padding, const Ints& dilation, int64_t groups) {
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
  check(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, op, "x",
        "expected torch.float32 or torch.bfloat16, got ", dtype_name(x.scalar_type()));
  const ConvShape shape = conv_shape_of(op, x, weight_shape, stride, padding, dilation, groups);
  check_status(conv_check(shape), op);
  return shape;
}

Tensor run(const char* op, const Tensor& x, const Tensor& packed, const Ints& weight_shape, const MaybeTensor& scale,
           const MaybeTensor& shift, const MaybeTensor& residual, const Ints& stride, const Ints& padding,
           const Ints& dilation, int64_t groups, int64_t activation, double negative_slope) {
  check_isa(op);
  ConvArgs args;
  args.shape = shape_of_call(op, x, weight_shape, stride, padding, dilation, groups);
  const ConvShape& shape = args.shape;

  MaybeTensor kept_scale, kept_shift;
  args.scale = per_channel(scale, shape.k, op, "scale", &kept_scale);
  args.shift = per_channel(shift, shape.k, op, "shift", &kept_shift);
  if (residual.has_value()) {
    check_cpu(*residual, op, "residual");
    check_dtype(*residual, x.scalar_type(), op, "residual");
    check_shape(*residual, {shape.n, shape.k, shape.p(), shape.q()}, op, "residual");
    args.residual = to_conv_tensor(*residual);
  }
  check_cpu(packed, op, "packed");
  check(packed.dim() == 1 && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(), op, "packed",
        "expected the contiguous 1-D torch.uint8 tensor of conv_pack, got ", dtype_name(packed.scalar_type()),
        " of shape ", shape_of(packed));
  args.packed = data_of(packed);
  args.packed_bytes = packed.numel();
  args.dtype = to_dtype(x.scalar_type(), op, "x");
  args.x = to_conv_tensor(x);
  args.activation = to_activation(activation, op);
  args.negative_slope = static_cast<float>(negative_slope);

  Tensor y = empty_output(x, shape);
  args.y = y.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = y.stride(i);
  const Executor executor = torch_executor();
  int64_t bytes = 0;
  check_status(conv_workspace_bytes(args, executor, &bytes), op);
  const Tensor workspace = empty_bytes(bytes);
  args.workspace = workspace.mutable_data_ptr();
  args.workspace_bytes = bytes;
  check_status(conv_bn_act(args, executor), op);
  return y;
}

Tensor conv_pack_op(Tensor weight, int64_t groups, int64_t algorithm) {
  return pack(weight, groups, algorithm, "conv_pack");
}

Tensor conv_bn_act_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual, Ints stride,
                      Ints padding, Ints dilation, int64_t groups, int64_t activation, double negative_slope,
                      bool /*tf32: CUDA's*/) {
  const char* op = "conv_bn_act";
  check_isa(op);
  check_dtype(weight, x.scalar_type(), op, "weight");
  check_dim(weight, 4, op, "weight");
  const Ints weight_shape = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  ConvAlgorithm algorithm;
  check_status(conv_choose(shape_of_call(op, x, weight_shape, stride, padding, dilation, groups), true, &algorithm),
               op);
  const Tensor packed = pack(weight, groups, static_cast<int64_t>(algorithm), op);
  return run(op, x, packed, weight_shape, scale, shift, residual, stride, padding, dilation, groups, activation,
             negative_slope);
}

Tensor conv_bn_act_packed_op(Tensor x, Tensor packed, Ints weight_shape, MaybeTensor scale, MaybeTensor shift,
                             MaybeTensor residual, Ints stride, Ints padding, Ints dilation, int64_t groups,
                             int64_t activation, double negative_slope, bool /*tf32: CUDA's*/) {
  return run("conv_bn_act_packed", x, packed, weight_shape, scale, shift, residual, stride, padding, dilation, groups,
             activation, negative_slope);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "conv_bn_act(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, int[] stride, "
      "int[] padding, int[] dilation, int groups, int activation, float negative_slope, bool tf32=False) -> Tensor");
  m.def("conv_pack(Tensor weight, int groups, int algorithm) -> Tensor");
  m.def(
      "conv_bn_act_packed(Tensor x, Tensor packed, int[] weight_shape, Tensor? scale, Tensor? shift, "
      "Tensor? residual, int[] stride, int[] padding, int[] dilation, int groups, int activation, "
      "float negative_slope, bool tf32=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&conv_bn_act_op));
  m.impl("conv_pack", TORCH_BOX(&conv_pack_op));
  m.impl("conv_bn_act_packed", TORCH_BOX(&conv_bn_act_packed_op));
}

}  // namespace pk::binding
