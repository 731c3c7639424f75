// The entry points: a plan checks the call and picks the ISA's table.
#include <cmath>

#include "common/sizes.h"
#include "cpu/upsample2d/kernels.h"

namespace pk {

Status make_plan(const Upsample2dArgs& args, Upsample2dPlan* plan) {
  const auto mode = static_cast<int32_t>(args.mode);
  if (mode < 0 || mode >= kUpsampleModes) return {"mode: expected an UpsampleMode"};
  if (args.dtype != DType::f32 && args.dtype != DType::bf16 && args.dtype != DType::i8) {
    return {"x: expected float32, bfloat16 or int8"};
  }
  if (args.n < 0 || args.c < 0) return {"x: expected sizes that are not negative"};
  constexpr int64_t kLargest = int64_t{1} << 31;
  for (const int64_t size : {args.h, args.w}) {
    if (size < 1 || size > kLargest) return {"x: expected H and W of 1 to 2^31"};
  }
  for (const int64_t size : {args.p, args.q}) {
    if (size < 1 || size > kLargest) return {"size: expected sizes of 1 to 2^31"};
  }
  for (const double scale : {args.scale_h, args.scale_w}) {
    if (!(scale >= 0) || std::isinf(scale)) return {"scale_factor: expected numbers that are not negative"};
  }
  if (!product_fits({args.n + 1, args.c + 1, args.h, args.w, 4}) ||
      !product_fits({args.n + 1, args.c + 1, args.p, args.q, 4})) {
    return {"the sizes are too large"};
  }
  Isa isa;
  PK_TRY(active_isa(&isa));
  *plan = {args, PK_TABLE_OF(upsample2d_kernels, isa)};
  return kOk;
}

void run(const Upsample2dPlan& plan, const Executor& executor) {
  if (plan.args.n == 0 || plan.args.c == 0) return;
  plan.kernels->run(plan.args, executor);
}

}  // namespace pk
