// Exact sums c[r][p][j] = sum over k of a[r][k] * b[p][k][j]: R rows times P panels of 2 * kLanes columns. Rows of a
// are int8_matmul's packed rows, int16 or a + 128 in uint8, here with a stride of the caller's; a panel is as in
// layout.h.
//
// One row streams its weights from L2 or beyond, each used once: several panels side by side keep more prefetchers busy
// than one, and give sums enough to hide the latency of a dot product. Many rows take one panel, which fills the
// registers with their sums.
#pragma once

#include "cpu/int8_lstm/layout.h"
#include "cpu/int8_matmul/microkernel.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kPanels = kRegisters >= 32 ? 8 : 4;  // that one row takes together

template <int R, int P>
inline void sums_tile(const AValue* a, int64_t a_row, const int8_t* b, int64_t b_panel, int64_t groups, int32_t* c,
                      int64_t c_row) {
  I32 sum[R][P][2] = {};
  for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const auto w0 = load_b(b + p * b_panel, g, 0), w1 = load_b(b + p * b_panel, g, 1);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        int32_t group;
        std::memcpy(&group, a + r * a_row + g * kGroup, sizeof group);
        const auto x = repeated(group);
        sum[r][p][0] = dot(sum[r][p][0], x, w0);
        sum[r][p][1] = dot(sum[r][p][1], x, w1);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) store(c + r * c_row + (2 * p + v) * kLanes, sum[r][p][v]);
    }
  }
}

// `rows` in [1, kMr] times the two panels of a unit block: c (rows, 4, kLanes).
template <int R = kMr>
inline void block_sums(int64_t rows, const AValue* a, int64_t a_row, const int8_t* b, int64_t b_panel, int64_t groups,
                       int32_t* c) {
  if (rows == R) {
    sums_tile<R, 1>(a, a_row, b, b_panel, groups, c, 4 * kLanes);
    sums_tile<R, 1>(a, a_row, b + b_panel, b_panel, groups, c + 2 * kLanes, 4 * kLanes);
  } else if constexpr (R > 1) {
    block_sums<R - 1>(rows, a, a_row, b, b_panel, groups, c);
  }
}

// One row times the panels of `blocks` unit blocks, blocks * 2 <= kPanels: c (blocks, 4, kLanes).
inline void row_sums(int64_t blocks, const AValue* a, const int8_t* b, int64_t b_panel, int64_t groups, int32_t* c) {
  if (2 * blocks == kPanels) return sums_tile<1, kPanels>(a, 0, b, b_panel, groups, c, 0);
  for (int64_t u = 0; u < blocks; ++u)
    sums_tile<1, 2>(a, 0, b + 2 * u * b_panel, b_panel, groups, c + u * 4 * kLanes, 0);
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
