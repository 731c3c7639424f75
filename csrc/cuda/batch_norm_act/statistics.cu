// mean[c] and var[c] of a batch: each block's (mean, m2) of its slab, then all slabs of a channel in a fixed order.
//
// The first kernel reads x once, at the speed of memory; the second reads slabs * c * 8 bytes, and serves the partial
// statistics of a convolution's epilogue as well.
#include "cuda/batch_norm_act/batch_norm.cuh"
#include "cuda/batch_norm_act/moments.cuh"

namespace pk::cuda {
namespace bn {
namespace {

// Rows that a thread has in flight; the elements of an unaligned one are loads of their own.
template <bool kWhole>
constexpr int kInFlight = kWhole ? 4 : 1;

// partial: (slabs, 2, c)
template <class T, bool kLast, bool kWhole>
__global__ void __launch_bounds__(kThreads, kMomentsBlocks)
    slab_moments(Walk w, const T* __restrict__ x, float* __restrict__ partial) {
  constexpr int kRows = kInFlight<kWhole>;
  const Slab<kLast> slab(w);
  // Of kLast, a group's elements are eight channels with an anchor each; else they are summed apart for their latency,
  // and have one anchor.
  PerChannel<kLast> anchor = {};
  float sum[kGroup] = {}, squares[kGroup] = {};
  int64_t count = 0;  // kLast: rows; else values
  for (int i = 0; i < slab.tiles; ++i) {
    const Lane<kWhole> lane = lane_of<kWhole>(w, slab.tile(i));
    if (!lane.active) continue;
    int values = 1;
    if (!kLast) {
      values = 0;
      PK_UNROLL
      for (int j = 0; j < kGroup; ++j) values += kWhole || lane.element(j) < w.inner;
    }
    Raw<T> raw[kRows];
    for_each_row<kRows>(
        slab,
        [&](int u, int64_t row) { raw[u] = load<T, kWhole>(x + slab.offset + row * w.row_stride, lane, w.inner); },
        [&](int u, int64_t) {
          if (count == 0) {
            PK_UNROLL
            for (int j = 0; j < (kLast ? kGroup : 1); ++j) anchor.v[j] = raw[u][j];
          }
          count += values;
          PK_UNROLL
          for (int j = 0; j < kGroup; ++j) {
            if (!kLast && !kWhole && lane.element(j) >= w.inner) continue;
            const float d = raw[u][j] - anchor[j];
            sum[j] += d;
            squares[j] = fmaf(d, d, squares[j]);
          }
        });
  }
  if constexpr (!kLast) {
    PK_UNROLL
    for (int half = kGroup / 2; half > 0; half /= 2) {
      PK_UNROLL
      for (int j = 0; j < half; ++j) {
        sum[j] += sum[j + half];
        squares[j] += squares[j + half];
      }
    }
  }
  Moments moments[kLast ? kGroup : 1];
  PK_UNROLL
  for (int j = 0; j < (kLast ? kGroup : 1); ++j) {
    moments[j] = moments_around(anchor[j], static_cast<float>(count), sum[j], squares[j]);
  }
  store_sums<kLast, kWhole>(w, slab, moments, partial);
}

constexpr int kParts = 32;  // parts that a block of `combine_parts` reads at once, each for 32 channels
constexpr int kLoads = 4;   // of a thread in flight

// 32 channels a block: thread (x, y) joins the parts y, y + 32, ... of channel x, then the block's rows are joined.
// `values`: of a channel in a row of the parts.
__global__ void __launch_bounds__(kWarp* kParts)
    combine_parts(BatchNormParts parts, int64_t values, BatchNormStatistics to) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int y = static_cast<int>(threadIdx.y);
  Moments moments[1] = {{0.0f, 0.0f, 0.0f}};
  if (c < parts.c) {
    for (int64_t p = y; p < parts.parts; p += kParts * kLoads) {
      float mean[kLoads], m2[kLoads];
      PK_UNROLL
      for (int u = 0; u < kLoads; ++u) {
        const int64_t part = p + u * kParts;
        if (part >= parts.parts) continue;
        mean[u] = parts.moments[2 * part * parts.c + c];
        m2[u] = parts.moments[(2 * part + 1) * parts.c + c];
      }
      PK_UNROLL
      for (int u = 0; u < kLoads; ++u) {
        const int64_t part = p + u * kParts;
        if (part >= parts.parts) continue;
        const int64_t left = parts.rows - part * parts.rows_per_part;
        const int64_t rows = left < parts.rows_per_part ? left : parts.rows_per_part;
        moments[0].add({static_cast<float>(rows * values), mean[u], m2[u]});
      }
    }
  }
  combine_rows(moments, static_cast<int>(threadIdx.x), kWarp, y, kParts, dynamic_shared<Moments>());
  if (y != 0 || c >= parts.c) return;
  const float n = moments[0].n, mean = moments[0].mean, m2 = moments[0].m2;
  to.mean[c] = mean;
  to.var[c] = n > 0.0f ? m2 / n : 0.0f;
  if (n == 0.0f) return;
  const float keep = 1.0f - to.momentum;
  if (to.running_mean) to.running_mean[c] = keep * to.running_mean[c] + to.momentum * mean;
  if (to.running_var) to.running_var[c] = keep * to.running_var[c] + to.momentum * (m2 / (n - 1.0f));
}

Status combine(const BatchNormParts& parts, int64_t values, const BatchNormStatistics& to, void* stream) {
  const Launch how = {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(parts.c, kWarp))),
                      .block = dim3(kWarp, kParts),
                      .shared_bytes = kWarp * kParts / 2 * static_cast<int>(sizeof(Moments))};
  return launch(combine_parts, how, stream, parts, values, to);
}

}  // namespace
}  // namespace bn

Status batch_norm_combine(const BatchNormParts& parts, const BatchNormStatistics& statistics, void* stream) {
  if (parts.parts < 0 || parts.c < 0 || parts.rows < 0) return {"parts: expected sizes that are not negative"};
  if (parts.parts > 0 &&
      (!parts.moments || parts.rows_per_part <= 0 || ceil_div(parts.rows, parts.rows_per_part) != parts.parts)) {
    return {"parts: expected moments of ceil(rows / rows_per_part) parts"};
  }
  if (parts.c > 0 && (!statistics.mean || !statistics.var)) return {"mean, var: expected pointers, got null"};
  return bn::combine(parts, 1, statistics, stream);
}

Status run(const BatchNormStatisticsPlan& plan, const void* x, const BatchNormStatistics& statistics, void* workspace,
           void* stream) {
  using namespace bn;
  const BatchNormShape& shape = plan.shape;
  const Slabs& p = plan.slabs;
  auto* const partial = static_cast<float*>(workspace);
  const bool whole = p.inner % kGroup == 0 && is_aligned(x);
  const int shared = (shape.channels_last ? kGroup : 1) * kThreads / 2 * static_cast<int>(sizeof(Moments));
  const Status status = choose_kernel(plan.dtype, shape.channels_last, whole, [&](auto element, auto last, auto all) {
    using T = decltype(element);
    return launch(slab_moments<T, decltype(last)::value, decltype(all)::value>, launch_of(p, shared), stream,
                  walk_of(shape, p), static_cast<const T*>(x), partial);
  });
  if (!status) return status;
  return combine({p.slabs, p.rows_per_slab, p.rows, shape.c, partial}, p.values_per_row, statistics, stream);
}

}  // namespace pk::cuda
