// y = activation(x (q s)^T + bias), by the tiles of the LSTM's products (csrc/cpu/lstm/tile.h): a row of x times panels
// of 4 vectors of q's rows, k after k, so that what a tile reads of q is one stream.
//
//   few rows   each panel is read once, and one row takes kStreams panels together.
//   many rows  blocks of kBlockRows rows times kBlockPanels panels, a part of k at a time.
//
// A weight that is not packed is read as it lies by up to kUnpackedRows rows (csrc/cpu/lstm/dot.h).
#pragma once

#include "cpu/lstm/dot.h"
#include "cpu/weight_only_linear/product.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int64_t kBlockRows = 48, kBlockPanels = 4, kUnpackedRows = 4;

inline void few_rows(const Product& p, int64_t begin, int64_t end) {
  const WeightOnlyLinearArgs& a = p.args;
  float c[kRowsToWiden * kPanel];
  static_assert(kStreams <= kRowsToWiden);
  const int64_t together = a.m == 1 ? kStreams : 1;
  for (int64_t n = begin; n < end; n += together) {
    const int64_t count = min(together, end - n), column = n * kPanel;
    const int8_t* const w = p.panels + column * a.k;
    if (a.m == 1) {
      row_panels(p.x, w, count, a.k, p.bias + column, kPanel, c, kPanel, p.scale + column);
    } else {
      panel(a.m, p.x, p.x_row, w, a.k, p.bias + column, 0, c, kPanel, p.scale + column);
    }
    p.finish(0, a.m, column, count * kPanel, c, kPanel);
  }
}

// Rows [row, row + rows) and panels [first, last).
inline void block(const Product& p, int64_t row, int64_t rows, int64_t first, int64_t last) {
  constexpr int64_t kRow = kBlockPanels * kPanel, kDepth = kWidens ? kWidened : kChunk;
  const WeightOnlyLinearArgs& a = p.args;
  float c[kBlockRows * kRow], wide[kWidened * kPanel];
  int64_t j = 0;
  do {
    const int64_t k = min(kDepth, a.k - j);
    const float* const x = p.x + row * p.x_row + j;
    for (int64_t n = first; n < last; ++n) {
      const int8_t* const w = p.panels + (n * a.k + j) * kPanel;
      float* const to = c + (n - first) * kPanel;
      if constexpr (kWidens) {
        widen_panel(w, k, nullptr, wide);
        tiles(rows, x, p.x_row, wide, k, j ? to : nullptr, kRow, to, kRow);
      } else {
        const float* const init = j ? to : p.bias + n * kPanel;
        tiles(rows, x, p.x_row, w, k, init, j ? kRow : 0, to, kRow, p.scale + n * kPanel);
      }
    }
    j += k;
  } while (j < a.k);
  const int64_t column = first * kPanel, width = (last - first) * kPanel;
  if (kWidens) {
    for (int64_t i = 0; i < width; i += kLanes) {
      const F32 scale = load<F32>(p.scale + column + i), bias = load<F32>(p.bias + column + i);
      for (int64_t r = 0; r < rows; ++r) store(c + r * kRow + i, fma(load<F32>(c + r * kRow + i), scale, bias));
    }
  }
  p.finish(row, rows, column, width, c, kRow);
}

// Panel `n` of a weight (n, k).
inline void pack_panel(const int8_t* weight, int64_t rows, int64_t k, int64_t n, int8_t* to) {
  constexpr int64_t kStrip = 16;
  const int64_t valid = min(kPanel, rows - n * kPanel);
  const int8_t* const from = weight + n * kPanel * k;
  for (int64_t first = 0; first < k; first += kStrip) {
    const int64_t count = min(kStrip, k - first);
    for (int64_t v = 0; v < kPanel; ++v)
      for (int64_t j = 0; j < count; ++j) to[(first + j) * kPanel + v] = v < valid ? from[v * k + first + j] : int8_t{};
  }
}

inline void pack_tiles(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* bias, char* block,
                       const Executor& executor) {
  const WeightOnlyLinearOffsets o = weight_only_linear_offsets(n, k, kPanel, 1);
  const int64_t panels = ceil_div(n, int64_t{kPanel});
  pad(scale, n, panels * kPanel, reinterpret_cast<float*>(block + o.scale));
  pad(bias, n, panels * kPanel, reinterpret_cast<float*>(block + o.bias));
  auto* const to = reinterpret_cast<int8_t*>(block + o.panels);
  parallel_for(executor, 0, panels, grain_of(kPanel * k), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(weight, n, k, p, to + p * kPanel * k);
  });
}

// Few rows of x times a weight that is not packed; the last rows of it, which fill no panel, are packed into
// `workspace`.
inline void unpacked(const Product& p, char* workspace, const Executor& executor) {
  const WeightOnlyLinearArgs& a = p.args;
  const int64_t whole = a.n / kPanel, last = whole * kPanel, rest = a.n - last;
  const float none[kPanel] = {};
  const auto start_of = [&](int64_t column) { return a.bias ? a.bias + column : none; };
  if (rest > 0) pack_tiles(rest, a.k, a.weight + last * a.k, a.scale + last, start_of(last), workspace, executor);
  parallel_for(executor, 0, whole + (rest > 0), grain_of(kPanel * a.k * a.m), [&](int64_t begin, int64_t end) {
    float c[kUnpackedRows * kPanel];
    for (int64_t n = begin; n < end; ++n) {
      const int64_t column = n * kPanel;
      if (n < whole) {
        dots(a.m, p.x, p.x_row, a.weight + column * a.k, int64_t{kLanes}, 0, a.k, start_of(column), 0, c, kPanel,
             a.scale + column);
      } else {
        const WeightOnlyLinearOffsets o = weight_only_linear_offsets(rest, a.k, kPanel, 1);
        panel(a.m, p.x, p.x_row, reinterpret_cast<const int8_t*>(workspace + o.panels), a.k,
              reinterpret_cast<const float*>(workspace + o.bias), 0, c, kPanel,
              reinterpret_cast<const float*>(workspace + o.scale));
      }
      p.finish(0, a.m, column, kPanel, c, kPanel);
    }
  });
}

// x times a packed weight.
inline void run_tiles(const Product& p, const Executor& executor) {
  const WeightOnlyLinearArgs& a = p.args;
  const int64_t panels = ceil_div(a.n, int64_t{kPanel}), groups = ceil_div(panels, kBlockPanels);
  if (a.m < kRowsToWiden) {
    parallel_for(executor, 0, groups, grain_of(kBlockPanels * kPanel * a.k * a.m), [&](int64_t begin, int64_t end) {
      few_rows(p, begin * kBlockPanels, min(end * kBlockPanels, panels));
    });
    return;
  }
  const int64_t blocks = ceil_div(a.m, kBlockRows);
  parallel_for(executor, 0, blocks * groups, grain_of(kBlockRows * kBlockPanels * kPanel * a.k),
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t b = task / groups, first = task % groups * kBlockPanels;
                   const int64_t row = a.m * b / blocks, rows = a.m * (b + 1) / blocks - row;
                   block(p, row, rows, first, min(first + kBlockPanels, panels));
                 }
               });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
