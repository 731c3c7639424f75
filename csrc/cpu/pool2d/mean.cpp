// Averages over whole maps, y: (n, c, 1, 1).
#include "cpu/pool2d/mean.h"

#include "cpu/parallel_for.h"
#include "cpu/pool2d/isa.h"

namespace pk {
namespace PK_ISA {
namespace {

inline void put(float* to, float x) { *to = x; }
inline void put(bf16_t* to, float x) { store_narrowed(to, broadcast(x), 1); }

float divisor_of(const Pool2dArgs& a) { return static_cast<float>(a.divisor ? a.divisor : a.h * a.w); }

// Blocks of channels, so that a single image too has work for several threads.
template <class T>
void channels(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  constexpr int64_t kBlock = kMeanVectors * kLanes;
  const Map map = map_of(a.h, a.w, a.x_stride[2], a.x_stride[3]);
  const int64_t blocks = (a.c + kBlock - 1) / kBlock;
  parallel_for(executor, 0, a.n * blocks, most(1, 65536 / (kBlock * a.h * a.w)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / blocks, c = i % blocks * kBlock, count = least(kBlock, a.c - c);
      float means[kBlock];
      mean_of_channels(static_cast<const T*>(a.x) + n * a.x_stride[0] + c, count, map, divisor_of(a), means);
      T* y = static_cast<T*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1];
      for (int64_t k = 0; k < count; ++k) put(y + k * a.y_stride[1], means[k]);
    }
  });
}

template <class T>
void planes(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  Map map = map_of(a.h, a.w, a.x_stride[2], a.x_stride[3]);
  if (map.step != 1) map = {a.h, a.x_stride[2], a.w, 1};  // a single column
  parallel_for(executor, 0, a.n * a.c, most(1, 65536 / (a.h * a.w)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / a.c, c = i % a.c;
      const T* x = static_cast<const T*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
      put(static_cast<T*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1], mean_of_plane(x, map, divisor_of(a)));
    }
  });
}

}  // namespace

void pool2d_mean_channels(const Pool2dPlan& plan, const Executor& executor) {
  plan.args.dtype == DType::f32 ? channels<float>(plan, executor) : channels<bf16_t>(plan, executor);
}
void pool2d_mean_planes(const Pool2dPlan& plan, const Executor& executor) {
  plan.args.dtype == DType::f32 ? planes<float>(plan, executor) : planes<bf16_t>(plan, executor);
}

}  // namespace PK_ISA
}  // namespace pk
