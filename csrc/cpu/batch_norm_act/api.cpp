// The entry points: a plan checks the call and picks the ISA's table.
#include "common/sizes.h"
#include "cpu/batch_norm_act/kernels.h"

namespace pk {

Status make_plan(const BatchNormActArgs& args, BatchNormActPlan* plan) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  const auto code = static_cast<int32_t>(args.activation);
  if (code < 0 || code >= kActivations) return {"activation: not a code of pykernels.ops.ACTIVATIONS"};
  if (args.parameters != nullptr && parameters_of(args.activation) == 0) {
    return {"parameters: expected none, because the activation has no constants"};
  }
  if (args.n < 0 || args.c < 0 || args.h < 0 || args.w < 0) return {"x: expected sizes that are not negative"};
  if (!product_fits({args.n + 1, args.c + 1, args.h + 1, args.w + 1, 4})) return {"x: the sizes are too large"};
  int64_t channels = 0;
  for (int64_t i = 0; i < args.pieces; ++i) channels += args.x[i].channels;
  if (channels != args.c) return {"x: expected pieces with as many channels together as scale and shift are for"};
  Isa isa;
  PK_TRY(active_isa(&isa));
  *plan = {args, PK_TABLE_OF(batch_norm_act_kernels, isa)};
  return kOk;
}

void run(const BatchNormActPlan& plan, const Executor& executor) {
  const BatchNormActArgs& args = plan.args;
  if (args.n * args.c * args.h * args.w == 0) return;
  plan.kernels->run(args, executor);
}

}  // namespace pk
