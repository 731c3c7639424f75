// The entry points. A plan checks the call, finds out how x lies in memory, and picks the ISA's table. A run cuts it
// into pixels.
#include "common/sizes.h"
#include "cpu/layer_norm/kernels.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace {

// The least that a thread is woken for, in elements; and pixels that go to the kernel at once where they are adjacent.
constexpr int64_t kGrain = 16384, kAtOnce = 64;

int64_t size_of(const LayerNormArgs& a) { return a.dtype == DType::f32 ? 4 : 2; }

bool rows_adjoin(const LayerNormArgs& a, const int64_t* stride) {
  return a.h <= 1 || a.w <= 1 || stride[2] == a.w * stride[3];
}
// The step from pixel to pixel, where rows adjoin.
int64_t step_of(const LayerNormArgs& a, const int64_t* stride) { return stride[a.w > 1 ? 3 : 2]; }

bool columns_are_adjacent(const LayerNormArgs& a, const int64_t* stride) {
  return rows_adjoin(a, stride) && step_of(a, stride) == 1;
}
bool channels_are_adjacent(const LayerNormArgs& a, const int64_t* stride) {
  return rows_adjoin(a, stride) && (a.c <= 1 || stride[1] == 1);
}

}  // namespace

Status make_plan(const LayerNormArgs& args, LayerNormPlan* plan) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  if (args.weight_dtype != DType::f32 && args.weight_dtype != args.dtype) return {"weight: expected float32 or x's"};
  if (args.n < 0 || args.c < 0 || args.h < 0 || args.w < 0) return {"x: expected sizes that are not negative"};
  if (!product_fits({args.n + 1, args.c + 1, args.h + 1, args.w + 1, 4})) return {"x: the sizes are too large"};
  if (!(args.eps >= 0)) return {"eps: expected a number that is not negative"};
  *plan = {};
  plan->args = args;
  LayerNormArgs& a = plan->args;
  plan->by_channels = channels_are_adjacent(a, a.x_stride) && channels_are_adjacent(a, a.y_stride);
  if (!plan->by_channels && !(columns_are_adjacent(a, a.x_stride) && columns_are_adjacent(a, a.y_stride))) {
    return {"x: expected pixels at equal distances, and adjacent channels or adjacent pixels, in x and y alike"};
  }
  a.x_stride[3] = step_of(a, a.x_stride);
  a.y_stride[3] = step_of(a, a.y_stride);
  Isa isa;
  PK_TRY(active_isa(&isa));
  plan->kernels = PK_TABLE_OF(layer_norm_kernels, isa);
  return kOk;
}

void run(const LayerNormPlan& plan, const Executor& executor) {
  const LayerNormArgs& a = plan.args;
  const int64_t pixels = a.h * a.w, at_once = plan.by_channels ? 1 : kAtOnce;
  if (a.n * a.c * pixels == 0) return;
  const int64_t pieces = (pixels - 1) / at_once + 1;  // of an image
  parallel_for(executor, 0, a.n * pieces, kGrain / (a.c * at_once) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t n = i / pieces, first = i % pieces * at_once;
      const int64_t left = pixels - first, count = (end - i) * at_once < left ? (end - i) * at_once : left;
      const char* const x = static_cast<const char*>(a.x) + size_of(a) * (n * a.x_stride[0] + first * a.x_stride[3]);
      char* const y = static_cast<char*>(a.y) + size_of(a) * (n * a.y_stride[0] + first * a.y_stride[3]);
      (plan.by_channels ? plan.kernels->rows : plan.kernels->columns)(a, x, y, count);
      i += (count - 1) / at_once + 1;
    }
  });
}

}  // namespace pk
