// Sums of whole maps in a single pass. Up to eight accumulators at a time, because an addition waits for the one
// before; after kMeanBlock additions they go into the total, so that the error doesn't grow with the map. Internal
// linkage: ISA sources include it.
#pragma once

#include "cpu/pool2d/window.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int kMeanVectors = 8;
constexpr int64_t kMeanBlock = 64;

// total[k] = sum over `pixels`, `step` apart, of the vectors k < kCount of channels at x.
template <int kCount, class T>
inline void sum_pixels(const T* x, int64_t pixels, int64_t step, F32 (&total)[kCount]) {
  constexpr int kAtOnce = kMeanVectors / kCount;
  int64_t i = 0;
  while (i + kAtOnce <= pixels) {
    F32 v[kAtOnce][kCount] = {};
    const int64_t end = least(pixels - kAtOnce + 1, i + kMeanBlock * kAtOnce);
    for (; i < end; i += kAtOnce) {
#pragma GCC unroll 8
      for (int u = 0; u < kAtOnce; ++u) {
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) v[u][k] += load_widened(x + (i + u) * step + k * kLanes);
      }
    }
    for (int half = kAtOnce / 2; half > 0; half /= 2) {
      for (int u = 0; u < half; ++u) {
        for (int k = 0; k < kCount; ++k) v[u][k] += v[u + half][k];
      }
    }
    for (int k = 0; k < kCount; ++k) total[k] += v[0][k];
  }
  for (; i < pixels; ++i) {
    for (int k = 0; k < kCount; ++k) total[k] += load_widened(x + i * step + k * kLanes);
  }
}

// Where the pixels lie: `rows` of `pixels` each.
struct Map {
  int64_t rows, row_step, pixels, step;
};
inline Map map_of(int64_t h, int64_t w, int64_t stride_h, int64_t stride_w) {
  if (h == 1 || w == 1 || stride_h == w * stride_w) return {1, 0, h * w, w == 1 ? stride_h : stride_w};
  return {h, stride_h, w, stride_w};
}

// to[c] = the mean over the map of channels c in [0, count) at x.
template <int kCount, class T>
inline void mean_vectors(const T* x, const Map& map, float divisor, float* to) {
  F32 total[kCount] = {};
  for (int64_t i = 0; i < map.rows; ++i) sum_pixels(x + i * map.row_step, map.pixels, map.step, total);
  for (int k = 0; k < kCount; ++k) store(to + k * kLanes, total[k] / broadcast(divisor));
}
template <class T>
void mean_of_channels(const T* x, int64_t count, const Map& map, float divisor, float* to) {
  int64_t c = 0;
  for (; c + 8 * kLanes <= count; c += 8 * kLanes) mean_vectors<8>(x + c, map, divisor, to + c);
  for (; c + 2 * kLanes <= count; c += 2 * kLanes) mean_vectors<2>(x + c, map, divisor, to + c);
  for (; c + kLanes <= count; c += kLanes) mean_vectors<1>(x + c, map, divisor, to + c);
  if (c == count) return;
  F32 total = {};
  for (int64_t i = 0; i < map.rows; ++i) {
    F32 of_row = {};
    for (int64_t j = 0; j < map.pixels; ++j) {
      of_row += load_widened(x + i * map.row_step + j * map.step + c, count - c);
      if (j % kMeanBlock == kMeanBlock - 1) {
        total += of_row;
        of_row = F32{};
      }
    }
    total += of_row;
  }
  store_partial(to + c, total / broadcast(divisor), count - c);
}

inline float sum_of_lanes(F32 v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The mean of a plane whose columns are adjacent.
template <class T>
float mean_of_plane(const T* x, const Map& map, float divisor) {
  F32 total[1] = {};
  for (int64_t i = 0; i < map.rows; ++i) {
    const T* row = x + i * map.row_step;
    const int64_t vectors = map.pixels / kLanes, rest = map.pixels % kLanes;
    sum_pixels(row, vectors, kLanes, total);
    if (rest) total[0] += load_widened(row + vectors * kLanes, rest);
  }
  return sum_of_lanes(total[0]) / divisor;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
