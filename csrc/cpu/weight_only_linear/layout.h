// The packed block: a header; scales and biases, zeros where there are none, of n rounded up to whole panels; then the
// panels, as csrc/cpu/lstm/tile.h reads them: (n / (4 v), k, 4 v), v being the lanes of the ISA.
#pragma once

#include "common/rounding.h"
#include "pykernels/weight_only_linear.h"

namespace pk {

struct WeightOnlyLinearHeader {
  char magic[8];
  int32_t version, panel;
  int64_t n, k, bytes;
};
inline constexpr char kWeightOnlyLinearMagic[8] = {'p', 'k', '.', 'w', 'o', 'n', 'l', 'y'};
inline constexpr int64_t kWeightOnlyLinearHeaderBytes = 64;
static_assert(sizeof(WeightOnlyLinearHeader) <= kWeightOnlyLinearHeaderBytes);

// Byte offsets of a block, behind its header.
struct WeightOnlyLinearOffsets {
  int64_t scale, bias, panels, end;
};
static inline WeightOnlyLinearOffsets weight_only_linear_offsets(int64_t n, int64_t k, int64_t panel) {
  const int64_t padded = round_up(n, panel), floats = round_up(4 * padded, 64);
  return {0, floats, 2 * floats, 2 * floats + round_up(padded * k, 64)};
}

}  // namespace pk
