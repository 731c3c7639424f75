// conv_bn_act, conv_pack, conv_bn_act_packed: see pykernels/ops/conv_bn_act for what they compute.
#include "torch/conv_bn_act.h"

namespace pk::binding {
namespace {

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

Ints sizes_of(const Tensor& t) { return {t.size(0), t.size(1), t.size(2), t.size(3)}; }

ConvAlgorithm to_algorithm(int64_t code, const char* op) {
  check(code >= 0 && code < kConvAlgorithms, op, "algorithm",
        "expected 0 (direct), 1 (winograd4) or 2 (winograd2), got ", code);
  return static_cast<ConvAlgorithm>(code);
}

// Everything but packed, residual, y and workspace, as far as a plan reads it. `keep` holds what scale and shift point
// to.
ConvArgs args_of(const char* op, const Tensor& x, const Ints& weight_shape, const MaybeTensor& scale,
                 const MaybeTensor& shift, const Ints& stride, const Ints& padding, const Ints& dilation,
                 int64_t groups, int64_t activation, double negative_slope, MaybeTensor (&keep)[2]) {
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
  check(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, op, "x",
        "expected torch.float32 or torch.bfloat16, got ", dtype_name(x.scalar_type()));
  ConvArgs args;
  args.shape = conv_shape_of(op, x, weight_shape, stride, padding, dilation, groups);
  args.dtype = to_dtype(x.scalar_type(), op, "x");
  args.x = to_conv_tensor(x);
  args.scale = per_channel(scale, args.shape.k, op, "scale", &keep[0]);
  args.shift = per_channel(shift, args.shape.k, op, "shift", &keep[1]);
  args.y_stride[1] = is_channels_last(x) ? 1 : 0;  // y has x's memory format, as torch's conv2d gives; the rest in run
  args.activation = to_activation(activation, op);
  args.negative_slope = static_cast<float>(negative_slope);
  return args;
}

Tensor pack(const ConvPlan& plan, const Tensor& weight, const Executor& executor) {
  Tensor packed = empty_bytes(plan.packed_bytes);
  conv_pack(plan, to_conv_tensor(weight), packed.mutable_data_ptr(), executor);
  return packed;
}

Tensor run(const char* op, const ConvPlan& plan, ConvArgs* args, const Tensor& x, const Tensor& packed,
           const MaybeTensor& residual, const Executor& executor) {
  const Ints sizes = {plan.shape.n, plan.shape.k, plan.shape.p(), plan.shape.q()};
  if (residual.has_value()) {
    check_cpu(*residual, op, "residual");
    check_dtype(*residual, x.scalar_type(), op, "residual");
    check_shape(*residual, sizes, op, "residual");
    args->residual = to_conv_tensor(*residual);
  }
  using torch::headeronly::MemoryFormat;
  Tensor y = torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                  args->y_stride[1] == 1 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  args->y = y.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args->y_stride[i] = y.stride(i);
  args->packed = data_of(packed);
  args->packed_bytes = packed.numel();
  // A small convolution takes less time than an allocation through torch.
  char small[4096];
  MaybeTensor large;
  args->workspace = small;
  if (plan.workspace_bytes > static_cast<int64_t>(sizeof small)) {
    large = empty_bytes(plan.workspace_bytes);
    args->workspace = large->mutable_data_ptr();
  }
  args->workspace_bytes = plan.workspace_bytes;
  check_status(conv_run(plan, *args, executor), op);
  return y;
}

Tensor conv_pack_op(Tensor weight, int64_t groups, int64_t algorithm) {
  const char* op = "conv_pack";
  check_cpu(weight, op, "weight");
  check_dim(weight, 4, op, "weight");
  const DType dtype = to_dtype(weight.scalar_type(), op, "weight");
  const ConvShape shape = weight_shape_of(sizes_of(weight), groups, op, "weight");
  ConvPlan plan;
  check_status(conv_plan_pack(shape, to_algorithm(algorithm, op), dtype, &plan), op);
  return pack(plan, weight, torch_executor());
}

Tensor conv_bn_act_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual, Ints stride,
                      Ints padding, Ints dilation, int64_t groups, int64_t activation, double negative_slope,
                      bool /*tf32: CUDA's*/) {
  const char* op = "conv_bn_act";
  check_cpu(weight, op, "weight");
  check_dtype(weight, x.scalar_type(), op, "weight");
  check_dim(weight, 4, op, "weight");
  MaybeTensor keep[2];
  ConvArgs args = args_of(op, x, sizes_of(weight), scale, shift, stride, padding, dilation, groups, activation,
                          negative_slope, keep);
  const Executor executor = torch_executor();
  ConvPlan plan;
  check_status(conv_plan_unpacked(args, executor.threads, &plan), op);
  return run(op, plan, &args, x, pack(plan, weight, executor), residual, executor);
}

Tensor conv_bn_act_packed_op(Tensor x, Tensor packed, Ints weight_shape, MaybeTensor scale, MaybeTensor shift,
                             MaybeTensor residual, Ints stride, Ints padding, Ints dilation, int64_t groups,
                             int64_t activation, double negative_slope, bool /*tf32: CUDA's*/) {
  const char* op = "conv_bn_act_packed";
  check_cpu(packed, op, "packed");
  check(packed.dim() == 1 && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(), op, "packed",
        "expected the contiguous 1-D torch.uint8 tensor of conv_pack, got ", dtype_name(packed.scalar_type()),
        " of shape ", shape_of(packed));
  MaybeTensor keep[2];
  ConvArgs args =
      args_of(op, x, weight_shape, scale, shift, stride, padding, dilation, groups, activation, negative_slope, keep);
  args.packed = data_of(packed);
  args.packed_bytes = packed.numel();
  const Executor executor = torch_executor();
  ConvPlan plan;
  check_status(conv_plan_packed(args, executor.threads, &plan), op);
  return run(op, plan, &args, x, packed, residual, executor);
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
