// The backward pass's large products, C (m, n) [+]= A (m, k) B (k, n), B packed into panels (n/kPanel, k, kPanel).
// Cut into tasks of fixed shape, so that the bits don't depend on the number of threads.
#pragma once

#include "cpu/lstm/tile.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int64_t kGemmRows = 48;
inline constexpr int64_t kGemmPanels = 4;

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// row(j) gives the j-th row of B, n floats or bf16 words.
template <class Row>
void pack_panels(int64_t k, int64_t n, float* out, const Executor& executor, const Row& row) {
  parallel_for(executor, 0, k, 1 + 16384 / (n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const auto* const from = row(j);
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes)
        store(out + (i / kPanel * k + j) * kPanel + i % kPanel, load_widened(from + i));
      for (; i < panels_of(n) * kPanel; ++i)
        out[(i / kPanel * k + j) * kPanel + i % kPanel] = i < n ? widen(from[i]) : 0.0f;
    }
  });
}

struct Gemm {
  int64_t m, n, k;
  const float* a;
  int64_t a_row, a_k;  // one of them is 1
  const float* b;
  float* c;
  int64_t c_row;
  bool accumulate;
};

inline void gemm_task(const Gemm& g, int64_t row, int64_t rows, int64_t first, int64_t last) {
  float turned[kGemmRows * kChunk], edge[kGemmRows * kPanel];
  int64_t j = 0;
  bool accumulate = g.accumulate;
  do {
    const int64_t k = g.k - j < kChunk ? g.k - j : kChunk;
    const float* a = g.a + row * g.a_row + j * g.a_k;
    int64_t a_row = g.a_row;
    if (g.a_k != 1) {
      for (int64_t i = 0; i < k; ++i)
        for (int64_t r = 0; r < rows; ++r) turned[r * kChunk + i] = a[i * g.a_k + r];
      a = turned, a_row = kChunk;
    }
    for (int64_t p = first; p < last; ++p) {
      const int64_t column = p * kPanel;
      const int64_t valid = g.n - column < kPanel ? g.n - column : kPanel;
      const float* const b = g.b + (p * g.k + j) * kPanel;
      float* const c = g.c + row * g.c_row + column;
      if (valid == kPanel) {
        tiles(rows, a, a_row, b, k, accumulate ? c : nullptr, g.c_row, c, g.c_row);
        continue;
      }
      const size_t bytes = static_cast<size_t>(valid) * sizeof(float);
      for (int64_t r = 0; accumulate && r < rows; ++r) std::memcpy(edge + r * kPanel, c + r * g.c_row, bytes);
      tiles(rows, a, a_row, b, k, accumulate ? edge : nullptr, kPanel, edge, kPanel);
      for (int64_t r = 0; r < rows; ++r) std::memcpy(c + r * g.c_row, edge + r * kPanel, bytes);
    }
    accumulate = true;
    j += k;
  } while (j < g.k);
}

void gemm(const Gemm& g, const Executor& executor) {
  const int64_t down = (g.m + kGemmRows - 1) / kGemmRows;
  const int64_t panels = panels_of(g.n), across = (panels + kGemmPanels - 1) / kGemmPanels;
  const int64_t grain = 1 + (1 << 18) / (kGemmRows * kGemmPanels * kPanel * (g.k + 1));
  parallel_for(executor, 0, down * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / across * kGemmRows, first = task % across * kGemmPanels;
      const int64_t rows = g.m - row < kGemmRows ? g.m - row : kGemmRows;
      gemm_task(g, row, rows, first, first + kGemmPanels < panels ? first + kGemmPanels : panels);
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
