// int8_conv2d: pykernels/ops/int8_conv2d says what it computes; csrc/torch/cuda has the CUDA implementation.
// int8_conv_bind: all of a convolution but x and the residual in one tensor, the weight packed; int8_conv2d_bound runs
// it.
#include "torch/conv_bn_act.h"
// conv_bn_act.h first: it names torch's headers.
#include "torch/huge_pages.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

const float* per_channel(const MaybeTensor& t, int64_t k, const char* op, const char* argument, MaybeTensor* keep) {
  if (!t.has_value()) return nullptr;
  check_cpu(*t, op, argument);
  check_dtype(*t, ScalarType::Float, op, argument);
  check_shape(*t, {k}, op, argument);
  *keep = dense(*t);
  return static_cast<const float*>(data_of(**keep));
}

Tensor pack(const char* op, const Tensor& weight, const MaybeTensor& scale, const MaybeTensor& shift,
            const MaybeTensor& table, const Int8ConvCall& call, const Executor& executor) {
  check_cpu(weight, op, "weight");
  check_dtype(weight, ScalarType::Char, op, "weight");
  check_dim(weight, 4, op, "weight");
  Int8ConvPacking args;
  args.shape = weight_shape_of({weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, call.geometry.groups,
                               op, "weight");
  call.geometry.fill(op, &args.shape);
  call.fill(op, &args.options);
  args.weight = to_conv_tensor(weight);
  MaybeTensor keep[3];
  args.scale = per_channel(scale, args.shape.k, op, "scale", &keep[0]);
  args.bias = per_channel(shift, args.shape.k, op, "shift", &keep[1]);
  if (table.has_value()) {
    check_cpu(*table, op, "table");
    check_dtype(*table, ScalarType::Char, op, "table");
    check_shape(*table, {256}, op, "table");
    keep[2] = dense(*table);
    args.table = static_cast<const int8_t*>(data_of(*keep[2]));
  }
  Int8ConvPackingPlan plan;
  check_status(make_packing_plan(args, &plan), op);
  const Tensor packed = empty_on_huge_pages(plan.packed_bytes);
  pk::pack(plan, packed.mutable_data_ptr(), executor);
  return packed;
}

Tensor run(const char* op, const Tensor& x, const Tensor& packed, const MaybeTensor& residual, ScalarType out_dtype,
           const Executor& executor) {
  check_cpu(x, op, "x");
  check_dtype(x, ScalarType::Char, op, "x");
  check_dim(x, 4, op, "x");
  Int8ConvArgs args;
  args.n = x.size(0), args.h = x.size(2), args.w = x.size(3);
  args.x = to_conv_tensor(x);
  args.packed = packed_data(packed);
  args.packed_bytes = packed.numel();
  if (residual.has_value()) {
    check_cpu(*residual, op, "residual");
    check_dim(*residual, 4, op, "residual");
    args.residual = to_conv_tensor(*residual);
    args.residual_dtype = to_dtype(residual->scalar_type(), op, "residual");
    // Of an empty one: there is a residual all the same.
    if (args.residual.data == nullptr) args.residual.data = &args;
  }
  Int8ConvPlan plan;
  check_status(make_plan(args, executor.threads, &plan), op);
  const ConvShape& s = plan.shape;
  check(x.size(1) == s.c, op, "x", "expected ", s.c, " channels, got shape ", shape_of(x));
  check(plan.options.out_dtype == to_dtype(out_dtype, op, "out_dtype"), op, "out_dtype",
        "expected the one that was bound, got ", dtype_name(out_dtype));
  if (residual.has_value()) check_shape(*residual, {s.n, s.k, s.p(), s.q()}, op, "residual");
  // In x's memory format, as torch's conv2d gives; torch counts no size as less than 1.
  const auto at_least_1 = [](int64_t size) { return size > 1 ? size : int64_t{1}; };
  const int64_t p = s.p(), q = s.q(), image = at_least_1(s.k) * at_least_1(p) * at_least_1(q);
  const int64_t sizes[4] = {s.n, s.k, p, q}, planes[4] = {image, p * q, q, 1}, last[4] = {image, 1, q * s.k, s.k};
  std::memcpy(plan.args.y_stride, is_channels_last(x) ? last : planes, sizeof plan.args.y_stride);
  const Tensor y = empty_strided(sizes, plan.args.y_stride, 4, out_dtype);
  plan.args.y = y.mutable_data_ptr();
  pk::run(plan, Scratch(plan.workspace_bytes).data(), executor);
  return y;
}

Tensor int8_conv2d_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual,
                      Int8ConvCall call) {
  const char* op = "int8_conv2d";
  const Executor executor = torch_executor();
  const Tensor packed = pack(op, weight, scale, shift, std::nullopt, call, executor);
  return run(op, x, packed, residual, call.out_dtype, executor);
}

Tensor int8_conv_bind_op(Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor table, Int8ConvCall call) {
  return pack("int8_conv_bind", weight, scale, shift, table, call, torch_executor());
}

Tensor int8_conv2d_bound_op(Tensor x, Tensor bound_conv, MaybeTensor residual, ScalarType out_dtype) {
  const char* op = "int8_conv2d_bound";
  check_cpu(bound_conv, op, "bound_conv");
  check(bound_conv.dim() == 1 && bound_conv.scalar_type() == ScalarType::Byte && bound_conv.is_contiguous(), op,
        "bound_conv", "expected the contiguous 1-D torch.uint8 tensor of int8_conv_bind, got ",
        dtype_name(bound_conv.scalar_type()), " of shape ", shape_of(bound_conv));
  return run(op, x, bound_conv, residual, out_dtype, torch_executor());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  define<Int8ConvCall>(
      m, "int8_conv2d(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, {}) -> Tensor");
  define<Int8ConvCall>(m, "int8_conv_bind(Tensor weight, Tensor? scale, Tensor? shift, Tensor? table, {}) -> Tensor");
  m.def("int8_conv2d_bound(Tensor x, Tensor bound_conv, Tensor? residual, ScalarType out_dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("int8_conv2d", &boxed<&int8_conv2d_op>);
  m.impl("int8_conv_bind", &boxed<&int8_conv_bind_op>);
  m.impl("int8_conv2d_bound", TORCH_BOX(&int8_conv2d_bound_op));
}

}  // namespace pk::binding
