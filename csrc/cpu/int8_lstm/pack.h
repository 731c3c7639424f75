// Weights to panels and tables, as layout.h has them. A panel is one of int8_matmul, whose columns are rows of w.
#pragma once

#include "cpu/int8_lstm/layout.h"
#include "cpu/int8_matmul/pack_b.h"

namespace pk {
namespace PK_ISA {
namespace {

// Of all products of a unit block, and of its table: in elements.
inline constexpr int64_t kGates = 4 * kLanes, kTable = kTableRows * kGates;

static_assert(kNr == 2 * kLanes);

// `rows` of w (rows, k) to as many columns of a panel that begin at `to`.
inline void pack_rows(const int8_t* w, int64_t k, int64_t rows, int8_t* to) {
  constexpr int64_t kWidth = 16 / kGroup;
  const int64_t fast_k = k / 16 * 16, fast_rows = rows / kWidth * kWidth;
  for (int64_t j = 0; j < fast_rows; j += kWidth)
    for (int64_t i = 0; i < fast_k; i += 16) transpose(w + j * k + i, k, to + i * kNr + j * kGroup);
  pack_rest({w, 1, k, k, rows}, w, k, rows, fast_k, fast_rows, to);
}

// Unit blocks [begin, end) of w (4h, k); `surplus` are kAOffset times the sums of the rows of w, a table apart.
inline void pack_matrix(const int8_t* w, int64_t hidden, int64_t k, int64_t begin, int64_t end, int8_t* out,
                        int32_t* surplus) {
  const int64_t depth = round_up(k, kPackedRows);
  for (int64_t u = begin; u < end; ++u) {
    int8_t* const block = out + u * depth * kGates;
    const int64_t units = min(kLanes, hidden - u * kLanes);
    if (units < kLanes || k < depth) std::memset(block, 0, static_cast<size_t>(depth * kGates));
    for (int64_t gate = 0; gate < 4; ++gate) {
      int8_t* const panel = block + gate / 2 * depth * kNr;
      pack_rows(w + (gate * hidden + u * kLanes) * k, k, units, panel + gate % 2 * kLanes * kGroup);
      if (kAOffset == 0 || gate % 2 == 0) continue;
      int32_t sums[kNr] = {};
      add_column_sums(panel, depth, sums);
      for (int64_t j = 0; j < kNr; ++j) surplus[u * kTable + gate / 2 * kNr + j] = kAOffset * sums[j];
    }
  }
}

inline void pack_cell(const LstmShape& s, const Int8LstmWeights& w, int64_t k, char* packed, const Int8LstmOffsets& o,
                      const Executor& executor) {
  const int64_t blocks = ceil_div(s.hidden, kLanes);
  auto* const table = reinterpret_cast<float*>(packed + o.table);
  auto* const surplus = reinterpret_cast<int32_t*>(packed + o.table) + 2 * kGates;
  parallel_for(executor, 0, blocks, 1 + (1 << 18) / (kGates * (k + s.hidden)), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      float* const to = table + u * kTable;
      std::memset(to, 0, kTable * sizeof(float));
      for (int64_t gate = 0; gate < 4; ++gate) {
        for (int64_t v = 0; v < min(kLanes, s.hidden - u * kLanes); ++v) {
          const int64_t row = gate * s.hidden + u * kLanes + v, at = gate * kLanes + v;
          to[at] = w.s_ih[row];
          to[kGates + at] = w.s_hh[row];
          if (s.bias) to[4 * kGates + at] = w.b_ih[row] + w.b_hh[row];
        }
      }
    }
    pack_matrix(w.w_ih, s.hidden, k, begin, end, reinterpret_cast<int8_t*>(packed + o.w_ih), surplus);
    pack_matrix(w.w_hh, s.hidden, s.hidden, begin, end, reinterpret_cast<int8_t*>(packed + o.w_hh), surplus + kGates);
  });
}

inline void pack_layers(const LstmShape& s, const Int8LstmWeights* weights, char* packed, const Executor& executor) {
  for (int layer = 0; layer < s.layers; ++layer) {
    for (int d = 0; d < s.directions; ++d) {
      const Int8LstmOffsets o = int8_packed_offsets(s, kLanes, layer, d);
      pack_cell(s, weights[cell_of(s, layer, d)], lstm_input(s, layer), packed, o, executor);
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
