// The entry points. A plan checks the call, works out the size of y and picks the ISA's table. A run chooses the loop
// by the layout of x and y.
#include "common/sizes.h"
#include "cpu/pool2d/kernels.h"

namespace pk {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;

// torch's: with ceil_mode the last window may reach out of the image, but begins in it or in the padding before it.
int64_t outputs(int64_t size, int64_t taps, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode) {
  const int64_t room = size + 2 * pad - dilation * (taps - 1) - 1;
  if (room < 0 && !(ceil_mode && room + stride - 1 >= 0)) return 0;
  const int64_t count = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (count - 1) * stride >= size + pad ? count - 1 : count;
}

}  // namespace

Status make_plan(const Pool2dArgs& args, Pool2dPlan* plan) {
  const auto kind = static_cast<int32_t>(args.kind);
  if (kind < 0 || kind >= kPoolKinds) return {"kind: expected a PoolKind"};
  if (args.dtype != DType::f32 && args.dtype != DType::bf16 && args.dtype != DType::i8) {
    return {"x: expected float32, bfloat16 or int8"};
  }
  if (args.zero_point < -128 || args.zero_point > 127) return {"zero_point: expected a number in [-128, 127]"};
  const bool int8 = args.dtype == DType::i8, average = args.kind == PoolKind::average;
  if (!(int8 && average) && args.zero_point != 0) return {"zero_point: expected 0, but for averages of int8"};
  if (args.scale != 0.0f && !(int8 && average)) return {"scale: expected none, but for averages of int8"};
  for (const int64_t size : {args.n, args.c}) {
    if (size < 0 || size > kLargest) return {"x: expected n and c of 0 to 2^31"};
  }
  for (const int64_t size : {args.h, args.w}) {
    if (size < 1 || size > kLargest) return {"x: expected H and W of 1 to 2^31"};
  }
  for (const int64_t size : {args.r, args.s}) {
    if (size < 1 || size > kLargest) return {"kernel_size: expected sizes of 1 to 2^31"};
  }
  for (const int64_t step : {args.stride_h, args.stride_w}) {
    if (step < 1 || step > kLargest) return {"stride: expected sizes of 1 to 2^31"};
  }
  for (const int64_t step : {args.dilation_h, args.dilation_w}) {
    if (step < 1 || step > kLargest) return {"dilation: expected sizes of 1 to 2^31"};
  }
  if (args.kind == PoolKind::average && (args.dilation_h != 1 || args.dilation_w != 1)) {
    return {"dilation: expected 1 for an average"};
  }
  if (args.divisor < -kLargest || args.divisor > kLargest) return {"divisor: expected a number of at most 2^31"};
  if (!product_fits({args.n + 1, args.c + 1, args.h, args.w, 4}) || !product_fits({args.r, args.dilation_h}) ||
      !product_fits({args.s, args.dilation_w})) {
    return {"the sizes are too large"};
  }
  if (int8 && average && (!product_fits({args.r, args.s}) || args.r * args.s > kInt8PoolWindow)) {
    return {"kernel_size: expected at most 2^23 elements of int8, beyond which int32 sums may wrap"};
  }
  const int64_t high = (args.r - 1) * args.dilation_h + 1, wide = (args.s - 1) * args.dilation_w + 1;
  if (args.pad_h < 0 || args.pad_w < 0 || args.pad_h > high / 2 || args.pad_w > wide / 2) {
    return {"padding: expected at least 0 and at most half the window"};
  }
  plan->args = args;
  plan->p = outputs(args.h, args.r, args.stride_h, args.pad_h, args.dilation_h, args.ceil_mode);
  plan->q = outputs(args.w, args.s, args.stride_w, args.pad_w, args.dilation_w, args.ceil_mode);
  if (plan->p < 1 || plan->q < 1) return {"x: expected an image no smaller than the window"};
  if (!product_fits({args.n + 1, args.c + 1, plan->p, plan->q, 4}) ||
      !product_fits({plan->q, args.c + 1, args.r, args.s})) {
    return {"the sizes are too large"};
  }
  Isa isa;
  PK_TRY(active_isa(&isa));
  plan->kernels = PK_TABLE_OF(pool2d_kernels, isa);
  return kOk;
}

void run(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  if (a.n == 0 || a.c == 0) return;
  if (a.dtype == DType::i8) return plan.kernels->int8(plan, executor);
  const bool channels = a.c == 1 || a.x_stride[1] == 1;
  const bool columns = (a.w == 1 || a.x_stride[3] == 1) && (plan.q == 1 || a.y_stride[3] == 1);
  // `planes` merges the rows of a window into one buffer of kPoolSpan columns.
  const bool narrow = (a.s - 1) * a.dilation_w < kPoolSpan / 2 && a.stride_w < kPoolSpan / 2;
  const bool whole = a.kind == PoolKind::average && a.r == a.h && a.s == a.w && a.pad_h == 0 && a.pad_w == 0;
  if (whole && channels && a.c > 1) return plan.kernels->mean_channels(plan, executor);
  if (whole && columns) return plan.kernels->mean_planes(plan, executor);
  if (columns && narrow && !(channels && a.c > 1 && a.y_stride[1] == 1)) return plan.kernels->planes(plan, executor);
  plan.kernels->channels(plan, executor);
}

}  // namespace pk
