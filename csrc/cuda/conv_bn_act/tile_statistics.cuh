// The statistics of a tile of z = sum + shift[k] as it is stored: of each channel the mean over the tile's pixels and
// the sum of (z - that mean)^2. So that training's batch norm need not read z for them.
//
// The values are rounded to z's type first: a pass over z would find the same ones. They come from the staged tile in
// shared memory, after the stores: nothing is held in registers beside the main loop's sums, and lanes read
// neighbouring channels of a pixel, without bank conflicts. The order of the sums is fixed.
#pragma once

#include "cuda/batch_norm_act/moments.cuh"
#include "cuda/conv_bn_act/epilogue.cuh"

namespace pk::cuda::conv {

// Called by kThreads threads, after a barrier that follows the writing of the tile kM x kN, whose first pixel is `row`
// of `rows`, and whose first channel is `k`, of which `left` are there; `moments`: [tiles][2][channels]. `sync`: a
// barrier of these threads; the tile is overwritten after the first.
template <int kM, int kN, int kThreads, class Type, class Sync>
PK_DEVICE void store_statistics(const Epilogue& e, float* staged, int row, int rows, int k, int left, float* moments,
                                int channels, Sync&& sync) {
  constexpr int kLanes = kThreads / kN;  // threads of a channel
  static_assert(kThreads % kN == 0 && (kLanes & (kLanes - 1)) == 0);
  const int thread = static_cast<int>(threadIdx.x), column = thread % kN, lane = thread / kN;
  const int count = rows - row < kM ? rows - row : kM;
  const float shift = e.shift != nullptr && column < left ? e.shift[k + column] : 0.0f;
  const auto value = [&](int i) { return to_float(from_float<Type>(staged[staged_index<kN>(i, column)] + shift)); };
  float sum = 0.0f, squares = 0.0f;
  const float anchor = value(lane < count ? lane : 0);
  for (int i = lane; i < count; i += kLanes) {
    const float d = value(i) - anchor;
    sum += d;
    squares = fmaf(d, d, squares);
  }
  const int mine = lane < count ? (count - lane - 1) / kLanes + 1 : 0;
  bn::Moments total = bn::moments_around(anchor, static_cast<float>(mine), sum, squares);
  if constexpr (kLanes > 1) {
    bn::Moments* const shared = reinterpret_cast<bn::Moments*>(staged);
    sync();
    if (lane > 0) shared[thread] = total;
    sync();
    if (lane > 0) return;
    PK_UNROLL
    for (int other = 1; other < kLanes; ++other) total.add(shared[other * kN + column]);
  }
  if (column >= left) return;
  float* const to = moments + int64_t{row / kM} * 2 * channels + k + column;
  to[0] = total.mean;
  to[channels] = total.m2;
}

}  // namespace pk::cuda::conv
