// max_pool2d, avg_pool2d, global_avg_pool2d: see pykernels/ops/pool2d for what they compute. pool2d_bound: the same for
// callers who know all but x beforehand, without gradients: `call` holds the numbers of a PoolCall (arguments.py).
// pool2d_out: for those who have the memory too. int8_global_avg_pool2d: of int8, in float32.
#include "pykernels/pool2d.h"

#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

// The order is that of PoolCall.
struct PoolNumbers {
  int64_t kind, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, ceil_mode, count_include_pad, divisor,
      zero_point;
};
constexpr PoolNumbers kWhole = {static_cast<int64_t>(PoolKind::average), 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0};

void strides_of(const Tensor& t, int64_t (&strides)[4]) {
  for (int64_t i = 0; i < 4; ++i) strides[i] = t.stride(i);
}

bool is_int8(const Tensor& x) { return x.scalar_type() == ScalarType::Char; }

// A window of 0 x 0 is one of the whole map. `scale`: of int8, for a result in float32.
Pool2dPlan plan_of(const char* op, const Tensor& x, const PoolNumbers& call, double scale = 0.0) {
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
  Pool2dArgs args;
  const bool whole = call.r == 0 && call.s == 0;
  args.kind = static_cast<PoolKind>(call.kind);
  args.dtype = is_int8(x) ? DType::i8 : to_float_dtype(x.scalar_type(), op, "x");
  args.n = x.size(0), args.c = x.size(1), args.h = x.size(2), args.w = x.size(3);
  args.r = whole ? args.h : call.r;
  args.s = whole ? args.w : call.s;
  args.stride_h = call.stride_h, args.stride_w = call.stride_w;
  args.pad_h = call.pad_h, args.pad_w = call.pad_w;
  args.dilation_h = call.dilation_h, args.dilation_w = call.dilation_w;
  args.ceil_mode = call.ceil_mode != 0, args.count_include_pad = call.count_include_pad != 0;
  args.divisor = call.divisor;
  check(call.zero_point >= -128 && call.zero_point <= 127, op, "zero_point", "expected an int in [-128, 127], got ",
        call.zero_point);
  args.zero_point = static_cast<int32_t>(call.zero_point);
  args.scale = static_cast<float>(scale);
  args.x = data_of(x);
  strides_of(x, args.x_stride);
  Pool2dPlan plan;
  check_status(make_plan(args, &plan), op);
  return plan;
}

// y's memory format is x's, as torch gives it.
Tensor run_new(const char* op, const Tensor& x, const PoolNumbers& call) {
  Pool2dPlan plan = plan_of(op, x, call);
  const Tensor y = empty_image(x, plan.p, plan.q);
  plan.args.y = y.mutable_data_ptr();
  strides_of(y, plan.args.y_stride);
  pk::run(plan, torch_executor());
  return y;
}

int64_t one_of(const Ints& two, size_t i, const char* op, const char* argument) {
  check(two.size() == 2, op, argument, "expected 2 ints, got ", two.size());
  return two[i];
}

PoolNumbers numbers_of(const char* op, PoolKind kind, const Ints& size, const Ints& stride, const Ints& padding) {
  PoolNumbers n = {};
  n.kind = static_cast<int64_t>(kind);
  n.r = one_of(size, 0, op, "kernel_size"), n.s = one_of(size, 1, op, "kernel_size");
  check(n.r >= 1 && n.s >= 1, op, "kernel_size", "expected ints >= 1");
  n.stride_h = one_of(stride, 0, op, "stride"), n.stride_w = one_of(stride, 1, op, "stride");
  n.pad_h = one_of(padding, 0, op, "padding"), n.pad_w = one_of(padding, 1, op, "padding");
  n.dilation_h = n.dilation_w = 1;
  return n;
}

Tensor max_pool2d_op(Tensor x, Ints kernel_size, Ints stride, Ints padding, Ints dilation, bool ceil_mode) {
  const char* op = "max_pool2d";
  PoolNumbers n = numbers_of(op, PoolKind::max, kernel_size, stride, padding);
  n.dilation_h = one_of(dilation, 0, op, "dilation"), n.dilation_w = one_of(dilation, 1, op, "dilation");
  n.ceil_mode = ceil_mode;
  return run_new(op, x, n);
}

Tensor avg_pool2d_op(Tensor x, Ints kernel_size, Ints stride, Ints padding, bool ceil_mode, bool count_include_pad,
                     int64_t divisor, int64_t zero_point) {
  const char* op = "avg_pool2d";
  PoolNumbers n = numbers_of(op, PoolKind::average, kernel_size, stride, padding);
  n.ceil_mode = ceil_mode;
  n.count_include_pad = count_include_pad;
  n.divisor = divisor;
  n.zero_point = zero_point;
  return run_new(op, x, n);
}

Tensor without_map(const Tensor& y) { return view_of(y, {y.size(0), y.size(1)}, {y.size(1) > 1 ? y.size(1) : 1, 1}); }

Tensor global_avg_pool2d_op(Tensor x, bool keepdim, int64_t zero_point) {
  PoolNumbers n = kWhole;
  n.zero_point = zero_point;
  const Tensor y = run_new("global_avg_pool2d", x, n);
  return keepdim ? y : without_map(y);
}

Pool2dPlan int8_mean_plan(const char* op, const Tensor& x, double scale, int64_t zero_point) {
  check_cpu(x, op, "x");
  check_dtype(x, ScalarType::Char, op, "x");
  check(scale >= 0x1p-126 && scale <= 0x1p126, op, "scale", "expected a number of 2^-126 to 2^126, got ", scale);
  PoolNumbers n = kWhole;
  n.zero_point = zero_point;
  return plan_of(op, x, n, scale);
}

Tensor int8_global_avg_pool2d_op(Tensor x, double scale, int64_t zero_point, bool keepdim) {
  Pool2dPlan plan = int8_mean_plan("int8_global_avg_pool2d", x, scale, zero_point);
  const Tensor y = empty_image(x, 1, 1, ScalarType::Float);
  plan.args.y = y.mutable_data_ptr();
  strides_of(y, plan.args.y_stride);
  pk::run(plan, torch_executor());
  return keepdim ? y : without_map(y);
}

Tensor pool2d_bound_op(Tensor x, Tensor call) {
  const char* op = "pool2d_bound";
  return run_new(op, x, numbers_in<PoolNumbers, int64_t>(op, call));
}

void run_into(const char* op, Pool2dPlan* plan, bool whole, ScalarType dtype, const Tensor& out) {
  const int64_t dims = whole && out.dim() == 2 ? 2 : 4;  // a mean needs no dimensions of size 1
  Ints shape = {plan->args.n, plan->args.c, plan->p, plan->q};
  shape.resize(static_cast<size_t>(dims));
  check_out(out, dtype, shape, op);
  plan->args.y = out.mutable_data_ptr();
  for (int64_t i = 0; i < dims; ++i) plan->args.y_stride[i] = out.stride(i);
  pk::run(*plan, torch_executor());
}

void pool2d_out_op(Tensor x, Tensor call, Tensor out) {
  const char* op = "pool2d_out";
  const auto n = numbers_in<PoolNumbers, int64_t>(op, call);
  Pool2dPlan plan = plan_of(op, x, n);
  run_into(op, &plan, n.r == 0, x.scalar_type(), out);
}

void int8_global_avg_pool2d_out_op(Tensor x, double scale, int64_t zero_point, Tensor out) {
  const char* op = "int8_global_avg_pool2d_out";
  Pool2dPlan plan = int8_mean_plan(op, x, scale, zero_point);
  run_into(op, &plan, true, ScalarType::Float, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "max_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "avg_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
      "int divisor, int zero_point=0) -> Tensor");
  m.def("global_avg_pool2d(Tensor x, bool keepdim, int zero_point=0) -> Tensor");
  m.def("int8_global_avg_pool2d(Tensor x, float scale, int zero_point, bool keepdim) -> Tensor");
  m.def("int8_global_avg_pool2d_out(Tensor x, float scale, int zero_point, Tensor(a!) out) -> ()");
  m.def("pool2d_bound(Tensor x, Tensor call) -> Tensor");
  m.def("pool2d_out(Tensor x, Tensor call, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d_op));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d_op));
  m.impl("global_avg_pool2d", TORCH_BOX(&global_avg_pool2d_op));
  m.impl("int8_global_avg_pool2d", TORCH_BOX(&int8_global_avg_pool2d_op));
  m.impl("int8_global_avg_pool2d_out", TORCH_BOX(&int8_global_avg_pool2d_out_op));
  m.impl("pool2d_bound", TORCH_BOX(&pool2d_bound_op));
  m.impl("pool2d_out", TORCH_BOX(&pool2d_out_op));
}

}  // namespace pk::binding
