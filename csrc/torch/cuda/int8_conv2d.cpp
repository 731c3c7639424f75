// int8_conv2d on CUDA; the schema is in csrc/torch/cpu/int8_conv2d.cpp.
#include "torch/cuda/conv.h"
// conv.h first: it names torch's headers.
#include "pykernels/int8_matmul.h"

namespace pk::binding {
namespace {

constexpr const char* kOp = "int8_conv2d";

// The weight is packed at every call: a pass over memory that is small beside the convolution's.
Tensor int8_conv2d(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual,
                   Int8ConvCall call) {
  const OnDevice on(kOp, x, "x");
  check_dtype(x, ScalarType::Char, kOp, "x");
  check_dim(x, 4, kOp, "x");
  on.check(weight, "weight");
  check_dtype(weight, ScalarType::Char, kOp, "weight");
  cuda::Int8ConvArgs args;
  args.shape = conv_shape_of(kOp, x, sizes_of(weight, kOp), call.geometry);
  args.x = to_conv_tensor(x);
  MaybeTensor kept_scale, kept_shift;
  args.scale = on.vector(scale, args.shape.k, "scale", &kept_scale);
  args.shift = on.vector(shift, args.shape.k, "shift", &kept_shift);
  if (residual) {
    on.check(*residual, "residual");
    check_dim(*residual, 4, kOp, "residual");
    args.residual = to_conv_tensor(*residual);
    args.residual_dtype = on.dtype(residual->scalar_type(), "residual");
  }
  call.fill(kOp, &args);
  cuda::Int8ConvPlan plan;
  on.plan(args, &plan);
  check(weight.size(1) * args.shape.r * args.shape.s <= kInt8MaxK, kOp, "weight", "expected at most ", kInt8MaxK,
        " numbers a filter, beyond which int32 sums may wrap, got shape ", shape_of(weight));
  if (residual) check_residual(*residual, args.shape, kOp);
  const Tensor packed = conv_packed(on, plan.packing, weight);
  plan.args.packed = data_of(packed);
  const Tensor y = conv_output(on, x, call.out_dtype, &plan.args);
  on.run_by(plan);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("int8_conv2d", &boxed<&int8_conv2d>); }

}  // namespace pk::binding
