// How a product of (m, n, k) is computed on a device: plain numbers in, a plan out, no CUDA.
//
// m == 1 and m <= 16 read each weight once and multiply it little, so they have kernels of their own, made for the
// speed of reading. Larger products choose a tile and a split of K by an estimate of the cycles: waves of blocks, each
// of which takes for a step of K the longer of multiplying and of loading, and what adding the slices of K costs.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "pykernels/cuda/int8_matmul.h"

namespace pk::cuda::int8 {

inline constexpr int kStepK = 64;       // of the tiles, in bytes of a row
inline constexpr int kSkinnyRows = 16;  // the most rows of a that the skinny kernel takes
inline constexpr int kMaxSplit = 16;

struct TileShape {
  Int8Algorithm algorithm;
  int m, n;
  int threads, shared_bytes;  // of a block
  int blocks;                 // that a multiprocessor holds, by registers
  double efficiency;          // of the matrix units, once its data is there
};
inline constexpr TileShape kTiles[] = {
    {Int8Algorithm::tile_64x64, 64, 64, 128, 4 * (64 + 64) * kStepK, 4, 0.5},
    {Int8Algorithm::tile_128x128, 128, 128, 128, 4 * (128 + 128) * kStepK, 2, 0.75},
    {Int8Algorithm::tile_128x256, 128, 256, 256, 4 * (128 + 256) * kStepK, 1, 0.85},
};

inline const TileShape* tile_of(Int8Algorithm algorithm) {
  for (const TileShape& t : kTiles) {
    if (t.algorithm == algorithm) return &t;
  }
  return nullptr;
}

constexpr int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Estimated cycles of m x n x k in tiles of `t`, K cut into `split`.
inline double tile_cycles(const TileShape& t, int64_t m, int64_t n, int64_t k, int split, const Device& device) {
  // Products of two bytes a cycle and multiprocessor; bytes that the L2 cache delivers to one; those it delivers in
  // all.
  const double rate = device.capability >= 90 ? 4096 : 2048, fill = 48, cache = 2048;
  const double steps = static_cast<double>(blocks_of(blocks_of(k, kStepK), split));
  const double tiles = static_cast<double>(blocks_of(m, t.m)) * static_cast<double>(blocks_of(n, t.n)) * split;
  // Blocks that share a multiprocessor share its units; a lone one leaves them idle while it waits for its barriers.
  const double each = tiles / device.multiprocessors;
  const double waves = each <= 1 ? 1 : static_cast<double>(static_cast<int64_t>(each + 0.999));
  const double multiply = static_cast<double>(t.m) * t.n * kStepK / (rate * t.efficiency);
  const double load = static_cast<double>(t.m + t.n) * kStepK / fill;
  double cycles = waves * (steps * (multiply > load ? multiply : load) + 0.02 * t.m * t.n) + 1500;
  if (split > 1) {
    const double sums = 4.0 * static_cast<double>(m) * static_cast<double>(n);
    cycles += 2 * split * sums / cache + 3000;
  }
  return cycles;
}

// The slices of K that fill the device with `blocks` blocks a slice, each slice of at least `least` bytes of K.
inline int filling_split(int64_t blocks, int64_t wanted, int64_t k, int64_t least) {
  int split = 1;
  while (split < kMaxSplit && blocks * split * 2 <= wanted && k / (split * 2) >= least) split *= 2;
  return split;
}

// Completes what `asked` leaves open. m, n and k are at least 1.
inline Int8Plan choose(int64_t m, int64_t n, int64_t k, const Device& device, Int8Plan asked = {}) {
  Int8Plan plan = asked;
  if (asked.algorithm == Int8Algorithm::automatic) {
    if (m == 1) {
      plan.algorithm = Int8Algorithm::gemv;
    } else if (m <= kSkinnyRows) {
      plan.algorithm = Int8Algorithm::skinny;
    }
  }
  switch (plan.algorithm) {
    case Int8Algorithm::gemv:
      plan.split = 1;  // the warps of a block share K instead
      return plan;
    case Int8Algorithm::skinny:
      // 32 columns of b a block, eight warps sharing K.
      if (plan.split == 0) plan.split = filling_split(blocks_of(n, 32), device.multiprocessors, k, 2048);
      return plan;
    default:
      break;
  }
  double best = 0;
  Int8Plan found = plan;
  for (const TileShape& t : kTiles) {
    if (plan.algorithm != Int8Algorithm::automatic && plan.algorithm != t.algorithm) continue;
    for (int split = 1; split <= kMaxSplit; split *= 2) {
      if (plan.split != 0 && split != 1) break;
      if (plan.split == 0 && split > 1 && (m > 256 || k / split < 4 * kStepK)) break;
      const int slices = plan.split != 0 ? plan.split : split;
      const double cycles = tile_cycles(t, m, n, k, slices, device);
      if (best == 0 || cycles < best) {
        best = cycles;
        found = {t.algorithm, slices};
      }
    }
  }
  return found;
}

// The warps of a gemv block that share K (a power of two up to 8); the others take other rows.
inline int gemv_warps_along_k(int64_t n, int64_t k, const Device& device) {
  int warps = 1;
  // Four blocks of eight warps a multiprocessor keep enough loads in flight; a warp reads 512 bytes of a row at once.
  while (warps < 8 && blocks_of(n, 32 / warps) < 4ll * device.multiprocessors && k > 512ll * warps) warps *= 2;
  return warps;
}

}  // namespace pk::cuda::int8
