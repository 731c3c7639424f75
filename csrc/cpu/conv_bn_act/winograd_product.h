// The product at one position of F(m x m, 3 x 3): tiles x channels times channels x output channels.
#pragma once

#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kSlice = 32;  // channels of a partial sum

// sums: [MR][NV * kLanes] = u: [MR][u_row] times w: [channels][NV * kLanes]; kChannels: channels and u_row where these
// are known, or 0. Meanwhile brings `ahead`, `step` floats a channel, into L2: each weight is used once a block, and
// the hardware's own prefetching ends with the page.
template <int MR, int NV, int kChannels>
void product(const float* u, int64_t u_row, int64_t channels, const float* w, float* sums, const float* ahead,
             int64_t step) {
  constexpr int kRow = NV * kLanes;
  if constexpr (kChannels > 0) u_row = channels = kChannels;
  const float* x[MR];
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) x[i] = u + i * u_row;
  for (int64_t c0 = 0; c0 < channels; c0 += kSlice) {
    const int64_t end = min(c0 + kSlice, channels);
    F32 acc[MR][NV] = {};
    for (int64_t c = c0; c < end; ++c, w += kRow, ahead += step) {
      __builtin_prefetch(ahead, 0, 2);
      F32 weight[NV];
      for (int v = 0; v < NV; ++v) weight[v] = load<F32>(w + v * kLanes);
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
        const F32 value = broadcast(x[i][c]);
        for (int v = 0; v < NV; ++v) acc[i][v] = fma(value, weight[v], acc[i][v]);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      for (int v = 0; v < NV; ++v) {
        float* sum = sums + i * kRow + v * kLanes;
        store(sum, c0 == 0 ? acc[i][v] : load<F32>(sum) + acc[i][v]);
      }
    }
  }
}

using Product = void (*)(const float*, int64_t, int64_t, const float*, float*, const float*, int64_t);

// of[tiles - 1], tiles <= most.
struct Products {
  int64_t most;
  const Product* of;
};
template <int NV, int kChannels, class Tiles>
struct ProductTable;
template <int NV, int kChannels, int... i>
struct ProductTable<NV, kChannels, std::integer_sequence<int, i...>> {
  static constexpr Product of[] = {product<i + 1, NV, kChannels>...};
};
template <int NV, int kChannels, int kMost>
constexpr Products kProducts = {kMost, ProductTable<NV, kChannels, std::make_integer_sequence<int, kMost>>::of};

// Groups of so many channels, in and out, have products of their own: so few channels that to set the pointers up takes
// a good part of the time, and one vector of sums a tile, so that more tiles are under way.
constexpr int kNarrow = 16, kNarrowVectors = kLanes < kNarrow ? 2 : 1,
              kNarrowTiles = kLanes < kNarrow ? kTilePixels : 24;

inline Products products_of(int64_t c, int64_t row) {
  if (c == kNarrow && row == kNarrowVectors * kLanes) return kProducts<kNarrowVectors, kNarrow, kNarrowTiles>;
  return row == kLanes ? kProducts<1, 0, kTilePixels> : kProducts<2, 0, kTilePixels>;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
