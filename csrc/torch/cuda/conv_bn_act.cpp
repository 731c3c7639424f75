// conv_bn_act, conv_pack and conv_bn_act_packed on CUDA; the schemas are in csrc/torch/cpu/conv_bn_act.cpp.
#include "torch/cuda/conv.h"

namespace pk::binding {
namespace {

// What both forms share. `packed` null: it is made of `weight` here.
Tensor run(const char* op, const Tensor& x, const Tensor* weight, const Tensor* packed, const Ints& weight_shape,
           const MaybeTensor& scale, const MaybeTensor& shift, const MaybeTensor& residual, const ConvCall& call) {
  const OnDevice on(op, x, "x");
  check_dim(x, 4, op, "x");
  ConvArgs args;
  args.dtype = on.float_dtype(x.scalar_type(), "x");
  args.shape = conv_shape_of(op, x, weight_shape, call.geometry);
  args.x = to_conv_tensor(x);
  call.fill(op, &args);
  MaybeTensor kept_scale, kept_shift, made;
  args.scale = on.vector(scale, args.shape.k, "scale", &kept_scale);
  args.shift = on.vector(shift, args.shape.k, "shift", &kept_shift);
  if (residual.has_value()) {
    on.check(*residual, "residual");
    check_dtype(*residual, x.scalar_type(), op, "residual");
  }
  if (packed != nullptr) {
    on.check(*packed, "packed");
    check_dtype(*packed, x.scalar_type(), op, "packed");
    check(packed->is_contiguous(), op, "packed", "expected the contiguous tensor of conv_pack");
    args.packed = data_of(*packed);
    args.packed_bytes = packed->numel() * static_cast<int64_t>(size_of(args.dtype));
  } else {
    on.check(*weight, "weight");
  }
  cuda::ConvPlan plan;
  on.plan(args, &plan);
  if (residual.has_value()) {
    check_residual(*residual, args.shape, op);
    plan.args.residual = to_conv_tensor(*residual);
  }
  if (packed != nullptr) {
    check_shape(*packed, {plan.packing.rows, plan.packing.columns}, op, "packed");
  } else {
    made = conv_packed(on, plan.packing, *weight);
    plan.args.packed = data_of(*made);
  }
  const Tensor y = conv_output(on, x, x.scalar_type(), &plan.args);
  on.run_by(plan);
  return y;
}

// The algorithm is chosen at the call: the packed weight is the same for all.
Tensor conv_pack_op(Tensor weight, int64_t groups, int64_t algorithm) {
  const char* op = "conv_pack";
  check(algorithm >= 0 && algorithm < kConvAlgorithms, op, "algorithm",
        "expected 0 (direct), 1 (winograd4) or 2 (winograd2), got ", algorithm);
  const OnDevice on(op, weight, "weight");
  const DType dtype =
      weight.scalar_type() == ScalarType::Char ? DType::i8 : on.float_dtype(weight.scalar_type(), "weight");
  cuda::ConvPackingPlan plan;
  check_status(make_packing_plan(weight_shape_of(sizes_of(weight, op), groups, op, "weight"), dtype, &plan), op);
  return conv_packed(on, plan, weight);
}

Tensor conv_bn_act_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual,
                      ConvCall call) {
  const char* op = "conv_bn_act";
  check_dtype(weight, x.scalar_type(), op, "weight");
  return run(op, x, &weight, nullptr, sizes_of(weight, op), scale, shift, residual, call);
}

Tensor conv_bn_act_packed_op(Tensor x, Tensor packed, Ints weight_shape, MaybeTensor scale, MaybeTensor shift,
                             MaybeTensor residual, ConvCall call) {
  return run("conv_bn_act_packed", x, nullptr, &packed, weight_shape, scale, shift, residual, call);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("conv_bn_act", &boxed<&conv_bn_act_op>);
  m.impl("conv_pack", TORCH_BOX(&conv_pack_op));
  m.impl("conv_bn_act_packed", &boxed<&conv_bn_act_packed_op>);
}

}  // namespace pk::binding
