// The packed block: a header; scales and biases, zeros where there are none, of n rounded up to whole panels; then the
// panels. With group 1 they are those of csrc/cpu/lstm/tile.h, (n / panel, k, panel). With group 4 they are those of
// csrc/cpu/int8_lstm/tile.h, (n / panel, k / 4, panel, 4), and kAOffset times the sums of their columns stand before
// them.
#pragma once

#include "common/rounding.h"
#include "pykernels/weight_only_linear.h"

namespace pk {

struct WeightOnlyLinearHeader {
  char magic[8];
  int32_t version, panel, group, unused;
  int64_t n, k, bytes;
};
inline constexpr char kWeightOnlyLinearMagic[8] = {'p', 'k', '.', 'w', 'o', 'n', 'l', 'y'};
inline constexpr int64_t kWeightOnlyLinearHeaderBytes = 64;
static_assert(sizeof(WeightOnlyLinearHeader) <= kWeightOnlyLinearHeaderBytes);

// Byte offsets of a block, behind its header.
struct WeightOnlyLinearOffsets {
  int64_t scale, bias, surplus, panels, end;
};
static inline WeightOnlyLinearOffsets weight_only_linear_offsets(int64_t n, int64_t k, int64_t panel, int64_t group) {
  const int64_t padded = round_up(n, panel), table = round_up(4 * padded, 64), tables = group > 1 ? 3 : 2;
  return {0, table, 2 * table, tables * table, tables * table + round_up(padded * round_up(k, group), 64)};
}

}  // namespace pk
