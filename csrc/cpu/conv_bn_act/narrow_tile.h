// The inner loop of the convolution of narrow groups: a tile of neighbouring pixels of one row x a vector of output
// channels, held in registers over all taps.
//
//   sum[i][k] += operand(x[i * stride + s], c)[k] * weight[r][c][s][k]      for r, c, s in this order
//
// The operand is what channel c of each output channel's group holds: x's vector itself where the group is a single
// channel, that vector with its lanes exchanged where several groups share it (two vectors where groups have twice as
// many channels in as out), and one value for all lanes where a group is as wide as a vector or wider. A vector of x is
// read once for all taps of a row that meet in it, where these are 3, 5 or 7 and not dilated.
#pragma once

#include <utility>

#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kNarrowPixels = 8;                     // the most of a tile
inline constexpr int64_t kNarrowVectors = 4;                // of channels
inline constexpr int64_t kBlock = kNarrowVectors * kLanes;  // channels of a block of x and of the sums

struct NarrowTile {
  const float* const* rows;  // [row_count]: where the filter's rows meet x,
  int64_t row_count;
  int64_t at;         // and from there to the tile's first pixel and channel, in floats;
  int64_t step, tap;  // from a pixel's column to the next pixel's, and from a tap to the next of its row
  int64_t s, group;   // taps of a row, channels of a group in x,
  int64_t out;        // and in the output
  const float* weight;
  int64_t vector_floats;  // of weight: a vector of output channels
  int64_t vectors;
  float* sums;  // [pixels][kBlock]
};

template <int c, int kGroup, int kRatio, int... lane>
inline F32 spread(const float* x, std::integer_sequence<int, lane...>) {
  const F32 v = load<F32>(x), w = kRatio == 1 ? v : load<F32>(x + kLanes);
  return __builtin_shufflevector(v, w, (lane / kGroup * kGroup * kRatio + c)...);
}

// body(operand) for each channel of a group of kGroup outputs and kRatio times as many in x. kGroup 0: any multiple of
// a vector.
template <int kGroup, int kRatio, class Body>
__attribute__((always_inline)) inline void each_channel(int64_t group, const Body& body) {
  if constexpr (kGroup == 0) {
    for (int64_t c = 0; c < group; ++c) body([c](const float* x) { return broadcast(x[c]); });
  } else if constexpr (kGroup == 1 && kRatio == 1) {
    body([](const float* x) { return load<F32>(x); });
  } else {
    [&]<int... c>(std::integer_sequence<int, c...>) {
      (body([](const float* x) { return spread<c, kGroup, kRatio>(x, std::make_integer_sequence<int, kLanes>()); }),
       ...);
    }(std::make_integer_sequence<int, kGroup * kRatio>());
  }
}

// From the block's first channel to that of a vector's group, in x.
template <int kGroup, int kRatio>
inline int64_t group_of(int64_t vector, int64_t group, int64_t out) {
  return kGroup == 0 ? vector * kLanes / out * group : vector * kLanes * kRatio;
}

// kTaps: of a row that is not dilated, 0: any; kStride counts where kTaps does.
template <int kTaps, int kStride, int kGroup, int kRatio, int MR>
void run_narrow(const NarrowTile& t) {
  const int64_t step = t.step, tap = t.tap;
  for (int64_t v = 0; v < t.vectors; ++v) {
    F32 acc[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) acc[i] = F32{};
    const float* w = t.weight + v * t.vector_floats;
    const int64_t at = t.at + group_of<kGroup, kRatio>(v, t.group, t.out);
    for (int64_t r = 0; r < t.row_count; ++r) {
      const float* x = t.rows[r] + at;
      each_channel<kGroup, kRatio>(t.group, [&](auto operand) __attribute__((always_inline)) {
        if constexpr (kTaps > 0) {
          F32 weight[kTaps];
#pragma GCC unroll 16
          for (int s = 0; s < kTaps; ++s) weight[s] = load<F32>(w + s * kLanes);
#pragma GCC unroll 32
          for (int j = 0; j < (MR - 1) * kStride + kTaps; ++j) {
            const F32 value = operand(x + j * tap);
#pragma GCC unroll 16
            for (int s = 0; s < kTaps; ++s) {
              if (j < s || (j - s) % kStride != 0 || (j - s) / kStride >= MR) continue;
              acc[(j - s) / kStride] = fma(value, weight[s], acc[(j - s) / kStride]);
            }
          }
          w += kTaps * kLanes;
        } else {
          for (int64_t s = 0; s < t.s; ++s, w += kLanes) {
            const F32 weight = load<F32>(w);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i) acc[i] = fma(operand(x + s * tap + i * step), weight, acc[i]);
          }
        }
      });
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) store(t.sums + i * kBlock + v * kLanes, acc[i]);
  }
}

using NarrowFunction = void (*)(const NarrowTile& t);
struct NarrowTable {
  NarrowFunction tiles[kNarrowPixels];  // [pixels - 1]
};

template <int kTaps, int kStride, int kGroup, int kRatio, int... i>
constexpr NarrowTable narrow_table(std::integer_sequence<int, i...>) {
  return {{run_narrow<kTaps, kStride, kGroup, kRatio, i + 1>...}};
}
template <int kTaps, int kStride, int kGroup, int kRatio = 1>
constexpr NarrowTable kNarrow =
    narrow_table<kTaps, kStride, kGroup, kRatio>(std::make_integer_sequence<int, kNarrowPixels>());

template <int kGroup, int kRatio = 1>
const NarrowTable& narrow_of(int64_t taps, int64_t stride, int64_t dilation) {
  if (dilation == 1 && stride <= 2) {
    if (taps == 3) return stride == 1 ? kNarrow<3, 1, kGroup, kRatio> : kNarrow<3, 2, kGroup, kRatio>;
    if constexpr (kGroup == 1 && kRatio == 1) {
      if (taps == 5) return stride == 1 ? kNarrow<5, 1, 1> : kNarrow<5, 2, 1>;
      if (taps == 7) return stride == 1 ? kNarrow<7, 1, 1> : kNarrow<7, 2, 1>;
    }
  }
  return kNarrow<0, 1, kGroup, kRatio>;
}

// Groups of a power of two of channels, `group` in x and as many or half as many in the output.
inline const NarrowTable& narrow_of(int64_t group, int64_t out, int64_t taps, int64_t stride, int64_t dilation) {
  if (group == 2 * out) {
    if (out == 1) return narrow_of<1, 2>(taps, stride, dilation);
    if constexpr (kLanes > 2) {
      if (out == 2) return narrow_of<2, 2>(taps, stride, dilation);
    }
    if constexpr (kLanes > 4) {
      if (out == 4) return narrow_of<4, 2>(taps, stride, dilation);
    }
    if constexpr (kLanes > 8) {
      if (out == 8) return narrow_of<8, 2>(taps, stride, dilation);
    }
    return narrow_of<0>(taps, stride, dilation);
  }
  if (group == 1) return narrow_of<1>(taps, stride, dilation);
  if constexpr (kLanes > 2) {
    if (group == 2) return narrow_of<2>(taps, stride, dilation);
  }
  if constexpr (kLanes > 4) {
    if (group == 4) return narrow_of<4>(taps, stride, dilation);
  }
  if constexpr (kLanes > 8) {
    if (group == 8) return narrow_of<8>(taps, stride, dilation);
  }
  return narrow_of<0>(taps, stride, dilation);
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
