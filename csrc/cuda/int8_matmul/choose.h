// How a product of (m, n, k) is computed on a device: plain numbers in, a choice out, no CUDA.
//
// m == 1 and m <= 16 read each weight once and multiply it little, so they have kernels of their own, made for the
// speed of reading. Larger products choose a tile and a split of K by an estimate of the cycles: waves of blocks, each
// of which takes for a step of K the longer of multiplying and of loading, and what adding the slices of K costs.
#pragma once

#include <cstdint>

#include "common/rounding.h"
#include "cuda/device.h"
#include "pykernels/cuda/int8_matmul.h"

namespace pk::cuda::int8 {

inline constexpr int kSkinnyRows = 16;   // the most rows of a that the skinny kernel takes
inline constexpr int kSwappedRows = 64;  // and the swapped one of Hopper
inline constexpr int kSplitRows = 256;   // beyond them K is not split
inline constexpr int kMaxSplit = 16;

struct TileShape {
  Int8Algorithm algorithm;
  int m, n;
  int step, stages;   // bytes of K of a row that are loaded at once, and how many such steps are in shared memory
  int blocks;         // that a multiprocessor holds
  double efficiency;  // the share of the device's products that they reach, once the data is there
};
// The efficiencies are guesses after what is reported of such kernels, and were not measured here.
inline constexpr TileShape kAmpereTiles[] = {{Int8Algorithm::tile_64x64, 64, 64, 64, 4, 4, 0.5},
                                             {Int8Algorithm::tile_128x128, 128, 128, 64, 4, 2, 0.75},
                                             {Int8Algorithm::tile_128x256, 128, 256, 64, 4, 1, 0.85}};
// mma.sync reaches about 60 % of what wgmma does.
inline constexpr TileShape kHopperTiles[] = {{Int8Algorithm::tile_64x64, 64, 64, 64, 4, 4, 0.3},
                                             {Int8Algorithm::hopper_swapped, 64, 128, 128, 4, 2, 0.6},
                                             {Int8Algorithm::hopper_128x128, 128, 128, 128, 3, 2, 0.75},
                                             {Int8Algorithm::hopper_128x256, 128, 256, 128, 4, 1, 0.85},
                                             {Int8Algorithm::tile_128x128, 128, 128, 64, 4, 2, 0.45},
                                             {Int8Algorithm::tile_128x256, 128, 256, 64, 4, 1, 0.5}};

constexpr bool is_hopper(Int8Algorithm algorithm) {
  return algorithm == Int8Algorithm::hopper_128x256 || algorithm == Int8Algorithm::hopper_128x128 ||
         algorithm == Int8Algorithm::hopper_swapped;
}

// Estimated cycles of m x n x k in tiles of `t`, K cut into `split`.
inline double tile_cycles(const TileShape& t, int64_t m, int64_t n, int64_t k, int split, const Device& device) {
  // Products of two bytes a cycle and multiprocessor; bytes that L2 delivers to one, and to all; cycles until they
  // come.
  const double rate = device.capability >= 90 ? 4096 : 2048, fill = 48, cache = 2048, latency = 800;
  const double steps = static_cast<double>(ceil_div(ceil_div(k, t.step), split));
  const int64_t tiles = ceil_div(m, t.m) * ceil_div(n, t.n) * split, each = ceil_div(tiles, device.multiprocessors);
  const auto resident = static_cast<double>(each < t.blocks ? each : t.blocks);
  const double waves = static_cast<double>(ceil_div(each, t.blocks));
  const double outputs = static_cast<double>(t.m) * t.n;
  const double multiply = resident * outputs * t.step / (rate * t.efficiency);
  const double load = resident * static_cast<double>(t.m + t.n) * t.step / fill;
  const double wait = latency / (t.stages - 1);
  const double step = multiply > load ? multiply > wait ? multiply : wait : load > wait ? load : wait;
  double cycles = waves * (steps * step + 0.06 * resident * outputs + 1500);
  if (split > 1 || t.algorithm == Int8Algorithm::hopper_swapped) {
    const double sums = 4.0 * static_cast<double>(m) * static_cast<double>(n);
    cycles += 2 * split * sums / cache + 3000;
  }
  return cycles;
}

// wgmma needs a k tile in every slice: as many slices as there then are.
inline int whole_slices(const TileShape& t, int64_t k, int split) {
  if (!is_hopper(t.algorithm)) return split;
  const int64_t steps = ceil_div(k, t.step);
  return static_cast<int>(ceil_div(steps, ceil_div(steps, split)));
}

// The slices of K that fill the device with `blocks` blocks a slice, each slice of at least `least` bytes of K.
inline int filling_split(int64_t blocks, int64_t wanted, int64_t k, int64_t least) {
  int split = 1;
  while (split < kMaxSplit && blocks * split * 2 <= wanted && k / (split * 2) >= least) split *= 2;
  return split;
}

// Completes what `asked` leaves open. m, n and k are at least 1.
inline Int8Choice choose(int64_t m, int64_t n, int64_t k, const Device& device, Int8Choice asked = {}) {
  Int8Choice choice = asked;
  if (asked.algorithm == Int8Algorithm::automatic) {
    if (m == 1) {
      choice.algorithm = Int8Algorithm::gemv;
    } else if (m <= kSkinnyRows) {
      choice.algorithm = Int8Algorithm::skinny;
    }
  }
  switch (choice.algorithm) {
    case Int8Algorithm::gemv:
      choice.split = 1;  // the warps of a block share K instead
      return choice;
    case Int8Algorithm::skinny:
      // 32 columns of b a block, eight warps sharing K.
      if (choice.split == 0) choice.split = filling_split(ceil_div(n, 32), device.multiprocessors, k, 2048);
      return choice;
    default:
      break;
  }
  double best = 0;
  Int8Choice found = choice;
  const auto consider = [&](const TileShape& t) {
    if (choice.algorithm == Int8Algorithm::automatic) {
      if (t.algorithm == Int8Algorithm::hopper_swapped && m > kSwappedRows) return;
    } else if (choice.algorithm != t.algorithm) {
      return;
    }
    for (int split = 1; split <= kMaxSplit; split *= 2) {
      if (choice.split != 0 && split != 1) return;
      if (split > 1 && (m > kSplitRows || k / split < 256)) return;
      const int slices = whole_slices(t, k, choice.split != 0 ? choice.split : split);
      const double cycles = tile_cycles(t, m, n, k, slices, device);
      if (best == 0 || cycles < best) {
        best = cycles;
        found = {t.algorithm, slices};
      }
    }
  };
  if (device.capability == 90) {
    for (const TileShape& t : kHopperTiles) consider(t);
  } else {
    for (const TileShape& t : kAmpereTiles) consider(t);
  }
  return found;
}

// The warps of a gemv block that share K (a power of two up to 8); the others take other rows.
inline int gemv_warps_along_k(int64_t n, int64_t k, int64_t multiprocessors) {
  int warps = 1;
  // Four blocks of eight warps a multiprocessor keep enough loads in flight; a warp reads 512 bytes of a row at once.
  while (warps < 8 && ceil_div(n, 32 / warps) < 4 * multiprocessors && k > 512ll * warps) warps *= 2;
  return warps;
}

}  // namespace pk::cuda::int8
