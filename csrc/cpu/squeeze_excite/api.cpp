// The entry points: a plan checks the call and picks the ISA's table.
#include "common/sizes.h"
#include "cpu/squeeze_excite/kernels.h"

namespace pk {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;

}  // namespace

Status make_plan(const SqueezeExciteArgs& args, SqueezeExcitePlan* plan) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16 && args.dtype != DType::i8) {
    return {"x: expected float32, bfloat16 or int8"};
  }
  for (const int32_t zero : {args.x_zero, args.y_zero}) {
    if (zero < -128 || zero > 127) return {"zero_point: expected a number in [-128, 127]"};
  }
  for (const Activation activation : {args.activation, args.gate}) {
    const auto code = static_cast<int32_t>(activation);
    if (code < 0 || code >= kActivations) return {"activation: not a code of pykernels.ops.ACTIVATIONS"};
  }
  for (const int64_t size : {args.n, args.c, args.m}) {
    if (size < 0 || size > kLargest) return {"x: expected n, c and m of 0 to 2^31"};
  }
  for (const int64_t size : {args.h, args.w}) {
    if (size < 1 || size > kLargest) return {"x: expected H and W of 1 to 2^31"};
  }
  if (!product_fits({args.n + 1, args.c + 1, args.h, args.w, 4}) ||
      !product_fits({args.n + 1, args.c + 1, args.m + 1, 4})) {
    return {"the sizes are too large"};
  }
  if (args.dtype == DType::i8 && args.h * args.w > int64_t{1} << 23) {
    return {"x: expected at most 2^23 pixels of int8, beyond which int32 sums may wrap"};
  }
  Isa isa;
  PK_TRY(active_isa(&isa));
  *plan = {args, 4 * args.n * ((2 + Strips(args).count) * args.c + args.m), PK_TABLE_OF(squeeze_excite_kernels, isa)};
  return kOk;
}

void run(const SqueezeExcitePlan& plan, void* workspace, const Executor& executor) {
  const SqueezeExciteArgs& args = plan.args;
  if (args.n == 0 || args.c == 0) return;
  plan.kernels->run(args, static_cast<float*>(workspace), executor);
}

}  // namespace pk
