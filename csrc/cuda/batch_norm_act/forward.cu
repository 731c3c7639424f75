// y = act((x - mean) * weight / sqrt(var + eps) + bias + residual) in one pass: x and residual are read once, y and one
// bit for each element's sign are written. The parameters of a thread's eight channels stay in registers.
#include "cuda/activate.cuh"
#include "cuda/batch_norm_act/batch_norm.cuh"

namespace pk::cuda {
namespace bn {
namespace {

// Rows that a thread has in flight; the elements of an unaligned one are loads of their own.
template <bool kWhole>
constexpr int kInFlight = kWhole ? 2 : 1;

template <class T, bool kLast, bool kWhole>
__global__ void __launch_bounds__(kThreads, kPointwiseResident) normalise(Walk w, BatchNormActArgs a) {
  constexpr int kRows = kInFlight<kWhole>;
  const auto* const x = static_cast<const T*>(a.x);
  const auto* const residual = static_cast<const T*>(a.residual);
  auto* const y = static_cast<T*>(a.y);
  const Slab<kLast> slab(w);
  for (int i = 0; i < slab.tiles; ++i) {
    const Lane<kWhole> lane = lane_of<kWhole>(w, slab.tile(i));
    if (!lane.active) continue;
    const Affine<kLast> affine(w, lane, a);
    Raw<T> raw[kRows], added[kRows];
    for_each_row<kRows>(
        slab,
        [&](int u, int64_t row) {
          raw[u] = load<T, kWhole>(x + slab.offset + row * w.row_stride, lane, w.inner);
          if (residual) added[u] = load<T, kWhole>(residual + slab.offset + row * w.row_stride, lane, w.inner);
        },
        [&](int u, int64_t row) {
          float z[kGroup];
          PK_UNROLL
          for (int j = 0; j < kGroup; ++j) z[j] = affine(raw[u][j], j);
          if (residual) {
            PK_UNROLL
            for (int j = 0; j < kGroup; ++j) z[j] += added[u][j];
          }
          if (a.mask) {
            unsigned bits = 0;
            PK_UNROLL
            for (int j = 0; j < kGroup; ++j) bits |= z[j] <= 0.0f ? 0u : 1u << j;
            a.mask[slab.mask_offset + row * w.mask_stride + lane.group] = static_cast<uint8_t>(bits);
          }
          PK_UNROLL
          for (int j = 0; j < kGroup; ++j) z[j] = activate(z[j], a.activation, a.negative_slope);
          store<T, kWhole>(y + slab.offset + row * w.row_stride, lane, w.inner, z);
        });
  }
}

}  // namespace
}  // namespace bn

Status run(const BatchNormActPlan& plan, void* stream) {
  using namespace bn;
  const BatchNormActArgs& a = plan.args;
  const Slabs& p = plan.slabs;
  if (p.slabs == 0) return kOk;
  const bool whole = p.inner % kGroup == 0 && is_aligned(a.x) && is_aligned(a.y) && is_aligned(a.residual);
  return choose_kernel(a.dtype, a.shape.channels_last, whole, [&](auto element, auto last, auto all) {
    return launch(normalise<decltype(element), decltype(last)::value, decltype(all)::value>, launch_of(p), stream,
                  walk_of(a.shape, p), a);
  });
}

}  // namespace pk::cuda
