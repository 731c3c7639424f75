// How the backward recurrence runs: a pure function of shape and device, tested without a GPU.
//
// Costs are estimated in clock cycles. A block of the persistent kernel owns `units` hidden units of one direction for
// `rows` sequences; every step it reads all d(gates) of its sequences from L2 (64 bytes a cycle at best, 24 where all
// SMs read at once), its share of W_hh from shared memory (128 bytes a cycle), and what of W_hh didn't fit there from
// L2 too. An exchange between blocks takes about 2500 cycles, a GEMM launch and a cell launch about 4000 each.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/rounding.h"
#include "cuda/device.h"
#include "pykernels/cuda/lstm.h"

namespace pk::cuda::lstm {

inline constexpr int kBackwardThreads = 256;
inline constexpr int kBackwardWarps = kBackwardThreads / 32;
inline constexpr int kBackwardPad = 32;  // the persistent kernel's d(gates) have units in multiples of this

// Units as the persistent kernel has them in d(gates).
static inline int64_t backward_padded(int64_t hidden) { return round_up(hidden, kBackwardPad); }

// Not all of W_hh is pinned: the rest is read from the L2 cache.
static inline bool backward_streams(const BackwardChoice& c, int64_t hidden) {
  return c.pinned < backward_padded(hidden) / 8;
}

// Products of the matrix unit side by side in a warp, as the registers allow.
static inline int backward_most_tiles(DType dtype) { return dtype == DType::f32 ? 4 : 8; }
// Shared memory where each warp leaves its part of dh.
static inline int backward_partial_bytes(int row_tiles, int unit_tiles) {
  return kBackwardWarps * row_tiles * unit_tiles * 16 * 8 * 4;
}
// Bytes of 32 rows of W_hh for 8 units.
static inline int backward_fragment_bytes(DType dtype) { return dtype == DType::f32 ? 1024 : 512; }

// The persistent kernel with the given tiles; persistent == false where it can't run.
static inline BackwardChoice backward_persistent(const LstmShape& s, const Device& device, int row_tiles,
                                                 int unit_tiles) {
  BackwardChoice c;
  const int64_t tiles = backward_padded(s.hidden) / 8, element = s.dtype == DType::f32 ? 4 : 2;
  const int64_t slices = ceil_div(tiles, unit_tiles);
  const int64_t sequences = 16 * row_tiles, all = ceil_div(s.batch, sequences);
  const int64_t fit = device.multiprocessors / (slices * s.directions);
  const int64_t room = device.shared_per_block - backward_partial_bytes(row_tiles, unit_tiles);
  if (fit < 1 || room < 0 || all < 1) return c;
  c.persistent = true;
  c.row_tiles = row_tiles, c.unit_tiles = unit_tiles;
  c.slices = static_cast<int>(slices);
  c.groups = static_cast<int>(all < fit ? all : fit);
  c.launches = static_cast<int>(ceil_div(all, c.groups));
  const int64_t chunk = unit_tiles * backward_fragment_bytes(s.dtype), most = room / chunk;
  c.pinned = static_cast<int>(tiles < most ? tiles : most);
  c.shared_bytes = static_cast<int>(c.pinned * chunk) + backward_partial_bytes(row_tiles, unit_tiles);

  const int64_t blocks = slices * s.directions * c.groups;
  const int64_t rows = s.batch < sequences ? s.batch : sequences;
  const int64_t read = rows * tiles * 32 * element + (tiles - c.pinned) * chunk;
  const int64_t alone = read / 64, together = blocks * read / (24 * device.multiprocessors);
  const int64_t product = tiles * row_tiles * unit_tiles * (s.dtype == DType::f32 ? 32 : 4);
  const int64_t weights = c.pinned * chunk / 128;
  const int64_t step = 2500 + (alone > together ? alone : together) + product + weights;
  const int64_t start = tiles * chunk / 16 + (c.pinned < tiles ? tiles * tiles : 0);
  c.cycles = c.launches * ((s.steps + 1) * step + start);
  return c;
}

// A GEMM and a pointwise kernel a step.
static inline BackwardChoice backward_alternating(const LstmShape& s, const Device& device) {
  BackwardChoice c;
  const int64_t blocks = ceil_div(s.batch, 64) * ceil_div(s.hidden, 64);
  const int64_t waves = ceil_div(blocks, device.multiprocessors);
  const int64_t product = 4 * s.hidden * (s.dtype == DType::f32 ? 40 : 10);
  c.cycles = (s.steps + 1) * s.directions * (8000 + waves * product);
  return c;
}

// The persistent kernel with the tiles of least cycles; persistent == false where none can run.
static inline BackwardChoice backward_best_persistent(const LstmShape& s, const Device& device) {
  BackwardChoice best;
  for (const int row_tiles : {1, 2, 4})
    for (const int unit_tiles : {1, 2, 4}) {
      if (row_tiles * unit_tiles > backward_most_tiles(s.dtype)) continue;
      const BackwardChoice c = backward_persistent(s, device, row_tiles, unit_tiles);
      if (c.persistent && (!best.persistent || c.cycles < best.cycles)) best = c;
    }
  return best;
}

static inline BackwardChoice choose_backward(const LstmShape& s, const Device& device) {
  const BackwardChoice persistent = backward_best_persistent(s, device), other = backward_alternating(s, device);
  return persistent.persistent && persistent.cycles < other.cycles ? persistent : other;
}

}  // namespace pk::cuda::lstm
