// group_norm_act: see pykernels/ops/group_norm_act for what it computes. group_norm_act_bound: the same without
// gradients, where `call` holds the numbers; group_norm_act_out: for callers who have the memory too. They are those of
// a GroupNormCall (arguments.py). 0 groups are one for each channel.
#include "pykernels/group_norm_act.h"

#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

// The order is that of GroupNormCall.
struct NormNumbers {
  double groups, eps, activation, negative_slope;
};

BatchNormTensor to_image(const Tensor& t) {
  return {data_of(t), t.size(1), {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}};
}

const float* vector_of(const char* op, const MaybeTensor& t, int64_t channels, const char* argument) {
  if (!t.has_value()) return nullptr;
  check_cpu(*t, op, argument);
  check_dtype(*t, ScalarType::Float, op, argument);
  check_shape(*t, {channels}, op, argument);
  check(t->stride(0) == 1 || channels <= 1, op, argument, "expected adjacent elements");
  return static_cast<const float*>(data_of(*t));
}

// Whether pixels lie at equal distances, and channels or pixels are adjacent.
bool lies_well(const Tensor& x) {
  const bool rows_adjoin = x.size(2) <= 1 || x.size(3) <= 1 || x.stride(2) == x.size(3) * x.stride(3);
  return rows_adjoin && (x.stride(1) == 1 || x.stride(x.size(3) > 1 ? 3 : 2) == 1);
}

void check_image(const char* op, const Tensor& x) {
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
}

void run_into(const char* op, const Tensor& given, const MaybeTensor& weight, const MaybeTensor& bias,
              const MaybeTensor& residual, const NormNumbers& call, const Tensor& y) {
  const Tensor x = lies_well(given) ? given : torch::stable::contiguous(given);
  GroupNormActArgs args;
  args.n = x.size(0), args.c = x.size(1), args.h = x.size(2), args.w = x.size(3);
  check(call.groups >= 0 && call.groups <= 1ll << 31, op, "groups", "expected an int >= 0, got ", call.groups);
  const int64_t each = args.c > 1 ? args.c : 1;
  args.groups = call.groups > 0 ? static_cast<int64_t>(call.groups) : each;
  args.dtype = to_float_dtype(x.scalar_type(), op, "x");
  args.eps = call.eps;
  args.x = to_image(x);
  args.weight = vector_of(op, weight, args.c, "weight");
  args.bias = vector_of(op, bias, args.c, "bias");
  check(call.activation >= 0 && call.activation < kActivations, op, "activation", "expected a code in [0, ",
        kActivations, "), got ", call.activation);
  args.activation = static_cast<Activation>(call.activation);
  args.negative_slope = static_cast<float>(call.negative_slope);
  if (residual.has_value()) {
    check_cpu(*residual, op, "residual");
    check_dtype(*residual, x.scalar_type(), op, "residual");
    check_shape(*residual, {args.n, args.c, args.h, args.w}, op, "residual");
    args.residual = to_image(*residual);
  }
  args.y = y.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = y.stride(i);
  GroupNormActPlan plan;
  check_status(make_plan(args, &plan), op);
  Scratch workspace(static_cast<int64_t>(plan.workspace_bytes));
  pk::run(plan, workspace.data(), torch_executor());
}

Tensor group_norm_act_op(Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, int64_t groups,
                         double eps, int64_t activation, double negative_slope) {
  const char* op = "group_norm_act";
  check_image(op, x);
  to_float_dtype(x.scalar_type(), op, "x");
  const Tensor y = empty_image(x, x.size(2), x.size(3));
  const NormNumbers call = {static_cast<double>(groups), eps, static_cast<double>(activation), negative_slope};
  run_into(op, x, weight, bias, residual, call, y);
  return y;
}

Tensor group_norm_act_bound_op(Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, Tensor call) {
  const char* op = "group_norm_act_bound";
  check_image(op, x);
  to_float_dtype(x.scalar_type(), op, "x");
  const Tensor y = empty_image(x, x.size(2), x.size(3));
  run_into(op, x, weight, bias, residual, numbers_in<NormNumbers, double>(op, call), y);
  return y;
}

void group_norm_act_out_op(Tensor x, MaybeTensor weight, MaybeTensor bias, MaybeTensor residual, Tensor call,
                           Tensor out) {
  const char* op = "group_norm_act_out";
  check_image(op, x);
  const auto numbers = numbers_in<NormNumbers, double>(op, call);
  check_out(out, x.scalar_type(), {x.size(0), x.size(1), x.size(2), x.size(3)}, op);
  run_into(op, x, weight, bias, residual, numbers, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "group_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int groups, float eps, "
      "int activation, float negative_slope) -> Tensor");
  m.def("group_norm_act_bound(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor call) -> Tensor");
  m.def(
      "group_norm_act_out(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor call, Tensor(a!) out) -> "
      "()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("group_norm_act", TORCH_BOX(&group_norm_act_op));
  m.impl("group_norm_act_bound", TORCH_BOX(&group_norm_act_bound_op));
  m.impl("group_norm_act_out", TORCH_BOX(&group_norm_act_out_op));
}

}  // namespace pk::binding
