// How the batch-norm kernels divide a tensor among blocks: a pure function of shape and device.
//
// Both layouts are rows of `inner` adjacent elements (c of a pixel, or h * w of a plane), cut into groups of eight. A
// block of 256 threads is `width` groups wide and 256 / width rows high, and walks down a slab of rows. channels_last:
// a column of blocks has `width` groups of channels for itself. Otherwise it has one channel, and goes over the whole
// width of its planes, whose rows are the images of the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/rounding.h"
#include "pykernels/cuda/batch_norm_act.h"

namespace pk::cuda::bn {

inline constexpr int kGroup = 8;
inline constexpr int kThreads = 256;
// Blocks a multiprocessor: of the kernels with sums as many as are resident at once, in one wave, for each leaves
// partial sums that a second kernel has to read; of the others enough that the last ones to finish don't matter.
inline constexpr int kMomentsBlocks = 3;
inline constexpr int kSumsBlocks = 2;
inline constexpr int kPointwiseResident = 2;
inline constexpr int kPointwiseBlocks = 12;
inline constexpr int kLeastRows = 4;    // of a thread: below that a block's own reduction costs more than its rows
inline constexpr int kMostRows = 1024;  // of a thread: bounds the rounding of its sums
inline constexpr int64_t kMostSlabs = 65535;

inline Slabs choose_slabs(const BatchNormShape& s, int64_t blocks) {
  Slabs p;
  p.inner = static_cast<int>(s.channels_last ? s.c : s.hw);
  p.groups = ceil_div(p.inner, kGroup);
  while (p.width < p.groups && p.width < 32) p.width *= 2;
  p.columns = s.channels_last ? ceil_div(p.groups, p.width) : s.c;
  p.rows = s.channels_last ? s.n * s.hw : s.n;
  p.values_per_row = s.channels_last ? 1 : s.hw;
  if (p.rows == 0 || p.columns == 0 || p.inner == 0) return p;
  const int64_t height = kThreads / p.width;
  // A thread's rows, in the wide layout counted once for each step over the width.
  const int64_t steps = s.channels_last ? 1 : ceil_div(p.groups, p.width);
  const int64_t most = std::max<int64_t>(kMostRows / steps, 1) * height;
  const int64_t least = std::max<int64_t>(kLeastRows / steps, 1) * height;
  const int64_t wanted = ceil_div(blocks, p.columns);
  p.rows_per_slab = std::clamp(ceil_div(p.rows, wanted), least, std::max(least, most));
  p.rows_per_slab = std::max(p.rows_per_slab, ceil_div(p.rows, kMostSlabs));
  p.rows_per_slab = round_up(p.rows_per_slab, height);
  p.slabs = ceil_div(p.rows, p.rows_per_slab);
  return p;
}

}  // namespace pk::cuda::bn
