// Which tile and how many slices of K a dense product takes: a model of its time, in clocks of one multiprocessor,
// whose least value wins. Pure numbers, no CUDA.
//
//   waves * (tile's products / what a multiprocessor does in a clock + a fixed start) + the slices' way through memory
//
// The figures are of an A100, and need not be good: what decides is how the tiles fill the multiprocessors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/rounding.h"
#include "cuda/device.h"
#include "pykernels/cuda/gemm.h"

namespace pk::cuda {

// Rows and columns of tile 1, 2 and, on Hopper, 3, and the share that each reaches of what a multiprocessor can do.
struct GemmTile {
  int64_t m, n;
  double efficiency;
};
inline constexpr GemmTile kGemmTiles[] = {{}, {64, 64, 0.45}, {128, 128, 0.7}, {128, 256, 1.4}};
inline constexpr int kGemmMostSplits = 64;
inline constexpr int64_t kGemmLeastSlice = 256;  // elements of K: below this a slice is all start and no work

// hopper: whether tile 3 can serve.
inline GemmChoice choose_gemm(int64_t m, int64_t n, int64_t k, DType dtype, bool tf32, bool hopper,
                              const Device& device) {
  const double products_per_clock = dtype != DType::f32 ? 1024 : tf32 ? 512 : 170;
  GemmChoice best = {1, 1};
  double best_clocks = 0;
  for (int tile = hopper ? 3 : 2; tile >= 1; --tile) {
    const GemmTile& t = kGemmTiles[tile];
    const int64_t tiles = ceil_div(m, t.m) * ceil_div(n, t.n);
    const double rate = products_per_clock * t.efficiency;
    const int64_t most = std::clamp<int64_t>(k / kGemmLeastSlice, 1, kGemmMostSplits);
    for (int64_t split = 1; split <= most; ++split) {
      const int64_t waves = ceil_div(tiles * split, device.multiprocessors);
      const double slice = static_cast<double>(ceil_div(k, split));
      double clocks = static_cast<double>(waves) * (static_cast<double>(t.m * t.n) * slice / rate + 1500);
      if (split > 1) {  // written and read once more, by a second kernel
        clocks += 4000 + 8.0 * static_cast<double>(split) * static_cast<double>(m) * static_cast<double>(n) / 2000;
      }
      if (best_clocks == 0 || clocks < best_clocks) {
        best_clocks = clocks;
        best = {tile, static_cast<int>(split)};
      }
      if (tiles >= 4 * device.multiprocessors) break;
    }
  }
  return best;
}

}  // namespace pk::cuda
