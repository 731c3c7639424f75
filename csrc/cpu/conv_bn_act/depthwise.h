// Depthwise convolution of float32 x with adjacent channels, read where it lies.
//
//   sum[p][q][k] += x[p * stride + r][q * stride + s][k] * weight[r][s][k]      for r, s in this order
//
// A tile is some rows x neighbouring pixels of y x one vector of channels, held in registers over all taps. Each vector
// of x is read once for all taps that meet in it, of every row of the tile: two rows of 8 pixels read 2.5 vectors an
// output and 3 x 3 taps at stride 1, where 9 are multiplied. Columns outside x read as zero, rows outside are left out.
#pragma once

#include <utility>

#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kDepthwisePixels = 8;                       // of a row of a tile, at most
inline constexpr int kDepthwiseRows = kRegisters == 32 ? 2 : 1;  // of a tile, at most

struct DepthwiseTile {
  const float* x[9];    // [(rows - 1) * stride + taps]: rows of x where the tile begins, or null: outside
  int64_t pixel;        // from a column of x to the next, in floats
  int64_t first, last;  // columns [first, last) of those that the tile reads are inside
  const float* weight;
  int64_t vector_floats;  // of weight: a vector of channels
  int64_t v0, v1;         // vectors, of channels from k0 on
  int64_t k0, channels;
  float* sums;  // [rows * pixels][row]
  int64_t row;
  const int64_t* y_at;  // [rows * pixels]
  const int64_t* residual_at;
};

// kEdge: rows or columns outside, or channels of less than a vector.
template <int kTaps, int kStride, int R, int MR, bool kEdge>
void run_depthwise(const DepthwiseTile& t, const Epilogue& e) {
  constexpr int kRowsOfX = (R - 1) * kStride + kTaps, kColumns = (MR - 1) * kStride + kTaps;
  static constexpr float kZeros[kLanes] = {};
  const int64_t pixel = t.pixel, first = t.first, last = t.last;
  for (int64_t v = t.v0; v < t.v1; ++v) {
    F32 acc[R * MR][1];
#pragma GCC unroll 16
    for (int i = 0; i < R * MR; ++i) acc[i][0] = F32{};
    const float* weight = t.weight + v * t.vector_floats;
    const int64_t left = t.channels - v * kLanes, lanes = left < kLanes ? left : kLanes;
#pragma GCC unroll 16
    for (int h = 0; h < kRowsOfX; ++h) {
      const float* x = t.x[h];
      if (kEdge && x == nullptr) continue;
      x += v * kLanes;
      F32 w[R][kTaps];
#pragma GCC unroll 16
      for (int p = 0; p < R; ++p) {
        const int r = h - p * kStride;
        if (r < 0 || r >= kTaps) continue;
#pragma GCC unroll 16
        for (int s = 0; s < kTaps; ++s) w[p][s] = load<F32>(weight + (r * kTaps + s) * kLanes);
      }
#pragma GCC unroll 32
      for (int j = 0; j < kColumns; ++j) {
        F32 value;
        if constexpr (kEdge) {
          value = load_partial(j >= first && j < last ? x + j * pixel : kZeros, lanes);
        } else {
          value = load<F32>(x + j * pixel);
        }
#pragma GCC unroll 16
        for (int p = 0; p < R; ++p) {
          const int r = h - p * kStride;
          if (r < 0 || r >= kTaps) continue;
#pragma GCC unroll 16
          for (int s = 0; s < kTaps; ++s) {
            if (j < s || (j - s) % kStride != 0 || (j - s) / kStride >= MR) continue;
            F32& sum = acc[p * MR + (j - s) / kStride][0];
            sum = fma(value, w[p][s], sum);
          }
        }
      }
    }
    if (e.in_registers && (!kEdge || lanes == kLanes)) {
      finish_tile<R * MR, 1, true>(acc, e, t.y_at, t.residual_at, t.k0 + v * kLanes, kLanes);
      continue;
    }
#pragma GCC unroll 16
    for (int i = 0; i < R * MR; ++i) store(t.sums + i * t.row + v * kLanes, acc[i][0]);
  }
}

using DepthwiseFunction = void (*)(const DepthwiseTile&, const Epilogue&);
struct DepthwiseTable {
  DepthwiseFunction tiles[2][kDepthwiseRows][kDepthwisePixels];  // [edge][rows - 1][pixels - 1]
};

template <int kTaps, int kStride, int... i>
constexpr DepthwiseTable depthwise_table(std::integer_sequence<int, i...>) {
  constexpr int kTwo = kDepthwiseRows;
  DepthwiseTable table = {
      {{{run_depthwise<kTaps, kStride, 1, i + 1, false>...}}, {{run_depthwise<kTaps, kStride, 1, i + 1, true>...}}}};
  if constexpr (kTwo == 2) {
    const DepthwiseTable two = {{{{}, {run_depthwise<kTaps, kStride, kTwo, i + 1, false>...}},
                                 {{}, {run_depthwise<kTaps, kStride, kTwo, i + 1, true>...}}}};
    for (int edge = 0; edge < 2; ++edge) {
      for (int pixels = 0; pixels < kDepthwisePixels; ++pixels) {
        table.tiles[edge][1][pixels] = two.tiles[edge][1][pixels];
      }
    }
  }
  return table;
}
template <int kTaps, int kStride>
constexpr DepthwiseTable kDepthwise =
    depthwise_table<kTaps, kStride>(std::make_integer_sequence<int, kDepthwisePixels>());

// For 3 x 3, 5 x 5 and 7 x 7 taps at strides 1 and 2, else null.
inline const DepthwiseTable* depthwise_of(const ConvShape& shape) {
  if (shape.r != shape.s || shape.dilation_h != 1 || shape.dilation_w != 1) return nullptr;
  if (shape.stride_h != shape.stride_w || shape.stride_h > 2) return nullptr;
  const bool one = shape.stride_h == 1;
  if (shape.r == 3) return one ? &kDepthwise<3, 1> : &kDepthwise<3, 2>;
  if (shape.r == 5) return one ? &kDepthwise<5, 1> : &kDepthwise<5, 2>;
  if (shape.r == 7) return one ? &kDepthwise<7, 1> : &kDepthwise<7, 2>;
  return nullptr;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
