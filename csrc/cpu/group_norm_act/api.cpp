// The entry points. A run takes the moments and turns them into a scale and a shift for each channel of each image. The
// kernel of batch_norm_act does the rest: group by group where columns are adjacent, so that the second pass finds the
// group in a cache; else image by image, because each pixel holds all groups.
#include <cmath>

#include "common/sizes.h"
#include "cpu/group_norm_act/kernels.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace {

using Args = GroupNormActArgs;
using Plan = GroupNormActPlan;

// Elements whose moments are taken at once, in float32, and merged in double: the error doesn't grow with the group.
// Fixed, so that results don't depend on the threads.
constexpr int64_t kChunk = 32768;
// The least that a thread is woken for, in elements.
constexpr int64_t kGrain = 16384;

int64_t chunks_of(const Plan& plan) { return plan.chunk ? (plan.args.h * plan.args.w - 1) / plan.chunk + 1 : 0; }

const char* element(const Args& a, const void* data, int64_t at) {
  return static_cast<const char*>(data) + at * (a.dtype == DType::f32 ? 4 : 2);
}

// Channels [first, first + count) of image n, a group, of these moments.
void normalise(const Args& a, const Moments& m, int64_t first, int64_t count, float* scale, float* shift) {
  const double inverse = 1 / std::sqrt(m.squares / m.count + a.eps);
  for (int64_t c = first; c < first + count; ++c) {
    const double by = inverse * (a.weight ? static_cast<double>(a.weight[c]) : 1);
    scale[c] = static_cast<float>(by);
    shift[c] = static_cast<float>((a.bias ? static_cast<double>(a.bias[c]) : 0) - m.mean * by);
  }
}

// The second pass over `count` channels of an image: what no call of it changes.
Status plan_apply(const Args& a, int64_t count, BatchNormActPlan* plan) {
  BatchNormTensor x;
  x.channels = count;
  BatchNormActArgs b;
  b.n = 1, b.c = count, b.h = a.h, b.w = a.w;
  b.dtype = a.dtype;
  b.x = &x;
  b.pieces = 1;
  b.activation = a.activation;
  b.negative_slope = a.negative_slope;
  b.residual = a.residual;
  for (int i = 0; i < 4; ++i) b.y_stride[i] = a.y_stride[i];
  PK_TRY(make_plan(b, plan));
  plan->args.x = nullptr;  // x ends here
  return kOk;
}

// It, for the channels from `first` on of image n; scale and shift are the image's.
void apply(const Plan& plan, int64_t n, int64_t first, const float* scale, const float* shift,
           const Executor& executor) {
  const Args& a = plan.args;
  const auto part = [&](const void* data, const int64_t* stride) {
    return element(a, data, n * stride[0] + first * stride[1]);
  };
  BatchNormActPlan call = plan.apply;
  BatchNormTensor x = a.x;
  x.data = part(a.x.data, a.x.stride);
  x.channels = call.args.c;
  call.args.x = &x;
  call.args.scale = scale + first;
  call.args.shift = shift + first;
  if (a.residual.data) call.args.residual.data = part(a.residual.data, a.residual.stride);
  call.args.y = const_cast<char*>(part(a.y, a.y_stride));
  run(call, executor);
}

void run_planes(const Plan& plan, float* scale, float* shift, const Executor& executor) {
  const Args& a = plan.args;
  const int64_t size = a.c / a.groups, pixels = a.h * a.w;
  const bool whole = a.x.stride[1] == pixels;  // a group is one run of memory
  const int64_t adjacent = whole ? size * pixels : pixels;
  parallel_for(executor, 0, a.n * a.groups, kGrain / (size * pixels) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / a.groups, first = i % a.groups * size;
      Moments group;
      for (int64_t c = first; c < first + size; c += whole ? size : 1) {
        const int64_t start = n * a.x.stride[0] + c * a.x.stride[1];
        for (int64_t at = 0; at < adjacent; at += kChunk) {
          const int64_t left = adjacent - at, count = left < kChunk ? left : kChunk;
          Moments m;
          m.count = static_cast<double>(count);
          plan.kernels->plane(a.dtype, element(a, a.x.data, start + at), count, &m.mean, &m.squares);
          group.add(m);
        }
      }
      normalise(a, group, first, size, scale + n * a.c, shift + n * a.c);
      apply(plan, n, first, scale + n * a.c, shift + n * a.c, serial_executor());
    }
  });
}

void run_channels(const Plan& plan, float* scale, float* shift, float* moments, const Executor& executor) {
  const Args& a = plan.args;
  const int64_t chunks = chunks_of(plan), pixels = a.h * a.w, step = a.x.stride[3];
  const auto of_chunk = [&](int64_t i) {
    float* const at = moments + 3 * i * a.c;
    return ChannelMoments{at, at + a.c, at + 2 * a.c};
  };
  const auto pixels_of = [&](int64_t chunk) {
    const int64_t left = pixels - chunk * plan.chunk;
    return left < plan.chunk ? left : plan.chunk;
  };
  const int64_t size = a.c / a.groups;
  const auto image = [&](int64_t n, const Executor& team) {
    parallel_for(team, 0, chunks, kGrain / (plan.chunk * a.c) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const void* const x = element(a, a.x.data, n * a.x.stride[0] + i * plan.chunk * step);
        plan.kernels->channels(a.dtype, x, step, pixels_of(i), a.c, of_chunk(n * chunks + i));
      }
    });
    for (int64_t first = 0; first < a.c; first += size) {
      Moments group;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const ChannelMoments m = of_chunk(n * chunks + chunk);
        const auto d = [](float v) { return static_cast<double>(v); };
        group.add(merged(size, static_cast<double>(pixels_of(chunk)), [&](int64_t c) {
          return Moments{0, d(m.shift[first + c]) + d(m.mean[first + c]), d(m.squares[first + c])};
        }));
      }
      normalise(a, group, first, size, scale + n * a.c, shift + n * a.c);
    }
    apply(plan, n, 0, scale + n * a.c, shift + n * a.c, team);
  };
  if (a.n < executor.threads) {
    for (int64_t n = 0; n < a.n; ++n) image(n, executor);
    return;
  }
  parallel_for(executor, 0, a.n, kGrain / (a.c * pixels) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) image(n, serial_executor());
  });
}

}  // namespace

Status make_plan(const GroupNormActArgs& args, GroupNormActPlan* plan) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  const auto code = static_cast<int32_t>(args.activation);
  if (code < 0 || code >= kActivations) return {"activation: not a code of pykernels.ops.ACTIVATIONS"};
  if (args.n < 0 || args.c < 0 || args.h < 0 || args.w < 0) return {"x: expected sizes that are not negative"};
  if (!product_fits({args.n + 1, args.c + 1, args.h + 1, args.w + 1, 12})) return {"x: the sizes are too large"};
  if (args.groups < 1 || args.c % args.groups) return {"groups: expected a divisor of the number of channels"};
  if (!(args.eps >= 0)) return {"eps: expected a number that is not negative"};
  const int64_t* stride = args.x.stride;
  *plan = {};
  plan->args = args;
  const int64_t pixels = args.h * args.w;
  const bool columns = pixels <= 1 || stride[args.w > 1 ? 3 : 2] == 1;
  plan->by_channels = args.c > 1 ? stride[1] == 1 : !columns;
  if ((args.h > 1 && args.w > 1 && stride[2] != args.w * stride[3]) || (!plan->by_channels && !columns)) {
    return {"x: expected pixels at equal distances, and adjacent channels or adjacent pixels"};
  }
  if (args.w == 1) plan->args.x.stride[3] = stride[2];
  if (args.h == 1) plan->args.x.stride[2] = args.w * stride[3];
  if (plan->by_channels) plan->chunk = args.c < kChunk ? kChunk / (args.c + (args.c == 0)) : 1;
  plan->workspace_bytes = static_cast<size_t>(4 * args.n * args.c * (2 + 3 * (pixels ? chunks_of(*plan) : 0)));
  Isa isa;
  PK_TRY(active_isa(&isa));
  plan->kernels = PK_TABLE_OF(group_norm_act_kernels, isa);
  return plan_apply(plan->args, plan->by_channels ? args.c : args.c / args.groups, &plan->apply);
}

void run(const GroupNormActPlan& plan, void* workspace, const Executor& executor) {
  const Args& a = plan.args;
  if (a.n * a.c * a.h * a.w == 0) return;
  float *const scale = static_cast<float*>(workspace), *const shift = scale + a.n * a.c;
  if (plan.by_channels) {
    run_channels(plan, scale, shift, shift + a.n * a.c, executor);
  } else {
    run_planes(plan, scale, shift, executor);
  }
}

}  // namespace pk
