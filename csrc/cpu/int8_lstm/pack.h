// Weights to panels and tables, as layout.h has them.
#pragma once

#include "cpu/int8_lstm/layout.h"
#include "cpu/int8_matmul/tiling.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

// Of all products of a unit block, and of its table: in elements.
inline constexpr int64_t kGates = 4 * kLanes, kTable = kTableRows * kGates;

// Unit blocks [begin, end) of w (4h, k); `surplus` are kAOffset times the sums of the rows of w, a table apart.
inline void pack_matrix(const int8_t* w, int64_t hidden, int64_t k, int64_t begin, int64_t end, int8_t* out,
                        int32_t* surplus) {
  const int64_t depth = round_up(k, kGroupRows);
  for (int64_t u = begin; u < end; ++u) {
    int8_t* const block = out + u * depth * kGates;
    std::memset(block, 0, static_cast<size_t>(depth * kGates));
    const int64_t units = smaller(kLanes, hidden - u * kLanes);
    for (int64_t gate = 0; gate < 4; ++gate) {
      for (int64_t v = 0; v < units; ++v) {
        const int8_t* const row = w + (gate * hidden + u * kLanes + v) * k;
        int8_t* const to = block + gate / 2 * depth * 2 * kLanes + (gate % 2 * kLanes + v) * kGroup;
        int32_t sum = 0;
        for (int64_t j = 0; j < k; ++j) {
          to[j / kGroup * kGroup * 2 * kLanes + j % kGroup] = row[j];
          sum += row[j];
        }
        surplus[u * kTable + gate * kLanes + v] = kAOffset * sum;
      }
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
        for (int64_t v = 0; v < smaller(kLanes, s.hidden - u * kLanes); ++v) {
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

inline void pack_all(const LstmShape& s, const Int8LstmWeights* weights, char* packed, const Executor& executor) {
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
