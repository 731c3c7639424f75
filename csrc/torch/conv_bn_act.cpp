// conv_bn_act, conv_pack, conv_bn_act_packed: see pykernels/ops/conv_bn_act for what they compute.
#include "pykernels/conv_bn_act.h"

#include "torch/checks.h"

namespace pk::binding {
namespace {

using Ints = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

const void* data_of(const Tensor& t) { return t.const_data_ptr(); }

ConvTensor to_conv_tensor(const Tensor& t) {
  ConvTensor result;
  result.data = data_of(t);
  for (int64_t i = 0; i < 4; ++i) result.stride[i] = t.stride(i);
  return result;
}

void check_length(const Ints& values, size_t expected, const char* op, const char* argument) {
  check(values.size() == expected, op, argument, "expected ", expected, " values, got ", values.size());
}

void check_dim(const Tensor& t, int64_t expected, const char* op, const char* argument) {
  check(t.dim() == expected, op, argument, "expected ", expected, " dimensions, got shape ", shape_of(t));
}

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

// The shape of a weight alone, with an x that any weight suits.
ConvShape weight_shape_of(const Ints& weight, int64_t groups, const char* op, const char* argument) {
  check_length(weight, 4, op, argument);
  check(groups >= 1, op, "groups", "expected at least 1, got ", groups);
  for (int64_t size : weight) check(size >= 0, op, argument, "expected sizes that are not negative, got ", size);
  check(weight[1] <= (int64_t{1} << 31) / groups, op, argument, "expected fewer channels, got ", weight[1], " x ",
        groups, " groups");
  ConvShape shape{};
  shape.n = 0;
  shape.c = weight[1] * groups;
  shape.k = weight[0];
  shape.r = shape.h = weight[2];
  shape.s = shape.w = weight[3];
  shape.stride_h = shape.stride_w = shape.dilation_h = shape.dilation_w = 1;
  shape.groups = groups;
  return shape;
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
  check_length(stride, 2, op, "stride");
  check_length(padding, 4, op, "padding");
  check_length(dilation, 2, op, "dilation");
  check(stride[0] >= 1 && stride[1] >= 1, op, "stride", "expected at least 1, got (", stride[0], ", ", stride[1], ")");
  for (int64_t p : padding) check(p >= 0, op, "padding", "expected at least 0, got ", p);
  check(dilation[0] >= 1 && dilation[1] >= 1, op, "dilation", "expected at least 1, got (", dilation[0], ", ",
        dilation[1], ")");

  ConvShape shape = weight_shape_of(weight_shape, groups, op, "weight");
  check(x.size(1) == shape.c, op, "x", "expected ", shape.c, " channels (weight's ", weight_shape[1], " x ", groups,
        " groups), got shape ", shape_of(x));
  shape.n = x.size(0);
  shape.h = x.size(2);
  shape.w = x.size(3);
  shape.stride_h = stride[0];
  shape.stride_w = stride[1];
  shape.pad_top = padding[0];
  shape.pad_left = padding[1];
  shape.pad_bottom = padding[2];
  shape.pad_right = padding[3];
  shape.dilation_h = dilation[0];
  shape.dilation_w = dilation[1];
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
                      Ints padding, Ints dilation, int64_t groups, int64_t activation, double negative_slope) {
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
                             int64_t activation, double negative_slope) {
  return run("conv_bn_act_packed", x, packed, weight_shape, scale, shift, residual, stride, padding, dilation, groups,
             activation, negative_slope);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "conv_bn_act(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, int[] stride, "
      "int[] padding, int[] dilation, int groups, int activation, float negative_slope) -> Tensor");
  m.def("conv_pack(Tensor weight, int groups, int algorithm) -> Tensor");
  m.def(
      "conv_bn_act_packed(Tensor x, Tensor packed, int[] weight_shape, Tensor? scale, Tensor? shift, "
      "Tensor? residual, int[] stride, int[] padding, int[] dilation, int groups, int activation, "
      "float negative_slope) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&conv_bn_act_op));
  m.impl("conv_pack", TORCH_BOX(&conv_pack_op));
  m.impl("conv_bn_act_packed", TORCH_BOX(&conv_bn_act_packed_op));
}

}  // namespace pk::binding
