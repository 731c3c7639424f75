// The microkernel of the family, C[r][n] = init[r][n] + sum over k of A[r][k] * B[k][n], on R rows and one panel of
// 4 * kLanes columns: 4 R accumulators, and per k four loads of the panel and R broadcasts for 4 R fused multiply-adds.
// A's rows are contiguous in k, the panel is (k, 4, kLanes). For the recurrent weights the four vectors are the gates
// i, f, g, o of kLanes units, so a tile ends with all that the cell needs.
//
// B is float32, bfloat16, or int8 with a scale for each column of the panel: C = init + scale[n] * the sum. int8 is
// widened at each load, or a chunk at a time: see kWidens.
#pragma once

#include "cpu/elements.h"
#include "cpu/lstm/layout.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kPanel = 4 * kLanes;
// Rows of a tile: with the panel's vectors and the broadcasts it fills the register file.
inline constexpr int kTileRows = kRegisters >= 32 ? 6 : 3;
// A panel's chunk of k, which stays in the cache while all rows pass. High tiles ask little of it: 256 KB of float32 in
// the L2 do for them, and sums are put down seldom (Zen 4: 114 of 116 GFLOP/s, where chunks for the L1 gave 106). Low
// ones want it in the L1: 16 KB.
inline constexpr int64_t kChunk = kRegisters >= 32 ? 1024 : 1024 / kLanes;

// One row alone streams its weights from L2 or beyond, each used once a step. Several streams side by side keep more of
// the caches' prefetchers busy than one, and more than explicit prefetches do: four panels where there are registers
// for their sums; else three parts of k, which one panel's sums alone are too few to hide the latency of (Zen 3).
inline constexpr bool kStreamPanels = kRegisters >= 32;
inline constexpr int kStreams = kStreamPanels ? 4 : 3;

inline F32 load_widened(const int8_t* p) { return to_f32(to_i32(load<I8Quarter>(p))); }

template <class W>
inline constexpr bool kIsScaled = sizeof(W) == 1;
// A sum before its first product, and what it comes to.
template <class W>
inline F32 begun(const float* init) {
  return init && !kIsScaled<W> ? load<F32>(init) : F32{};
}
template <class W>
inline F32 ended(F32 sum, const float* init, const float* scale, int64_t at) {
  if constexpr (kIsScaled<W>) {
    return fma(sum, load<F32>(scale + at), init ? load<F32>(init) : F32{});
  } else {
    return sum;
  }
}

// init: row r at init + r * init_row (0: the same for all rows), or nullptr for zero. scale: int8's, (4, kLanes).
template <int R, class W>
inline void tile(const float* a, int64_t a_row, const W* b, int64_t k, const float* init, int64_t init_row, float* c,
                 int64_t c_row, const float* scale = nullptr) {
  F32 sum[R][4];
  const auto init_of = [&](int r, int g) { return init ? init + r * init_row + g * kLanes : nullptr; };
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g) sum[r][g] = begun<W>(init_of(r, g));
  int64_t j = 0;
  if constexpr (R == 1 && !kStreamPanels) {
    const int64_t part = k / kStreams;
    F32 more[kStreams][4] = {};
    for (; j < part; ++j)
      for (int n = 0; n < kStreams; ++n) {
        const F32 x = broadcast(a[n * part + j]);
        for (int g = 0; g < 4; ++g)
          more[n][g] = fma(x, load_widened(b + (n * part + j) * kPanel + g * kLanes), more[n][g]);
      }
    for (int n = 0; n < kStreams; ++n)
      for (int g = 0; g < 4; ++g) sum[0][g] += more[n][g];
    j = part * kStreams;
  }
  for (; j < k; ++j) {
    // With 16 registers a weight at a time: else g++ keeps a sum in memory. With 32 that would be so the other way
    // round.
    if constexpr (kIsScaled<W> && kRegisters < 32) {
      F32 x[R];
      for (int r = 0; r < R; ++r) x[r] = broadcast(a[r * a_row + j]);
      for (int g = 0; g < 4; ++g) {
        const F32 w = load_widened(b + j * kPanel + g * kLanes);
        for (int r = 0; r < R; ++r) sum[r][g] = fma(x[r], w, sum[r][g]);
      }
      continue;
    }
    F32 w[4];
    for (int g = 0; g < 4; ++g) w[g] = load_widened(b + j * kPanel + g * kLanes);
    for (int r = 0; r < R; ++r) {
      const F32 x = broadcast(a[r * a_row + j]);
      for (int g = 0; g < 4; ++g) sum[r][g] = fma(x, w[g], sum[r][g]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g)
      store(c + r * c_row + g * kLanes, ended<W>(sum[r][g], init_of(r, g), scale, g * kLanes));
}

// One row times kStreams panels: panel n's init and results at init + n * init_step and c + n * c_step, its scales at
// scale + n * kPanel. tile's bits.
template <class W>
inline void row_tile(const float* a, const W* b, int64_t k, const float* init, int64_t init_step, float* c,
                     int64_t c_step, const float* scale) {
  F32 sum[kStreams][4];
  for (int n = 0; n < kStreams; ++n)
    for (int g = 0; g < 4; ++g) sum[n][g] = begun<W>(init + n * init_step + g * kLanes);
  for (int64_t j = 0; j < k; ++j) {
    const F32 x = broadcast(a[j]);
    for (int n = 0; n < kStreams; ++n)
      for (int g = 0; g < 4; ++g) sum[n][g] = fma(x, load_widened(b + (n * k + j) * kPanel + g * kLanes), sum[n][g]);
  }
  for (int n = 0; n < kStreams; ++n)
    for (int g = 0; g < 4; ++g) {
      const float* const from = init + n * init_step + g * kLanes;
      store(c + n * c_step + g * kLanes, ended<W>(sum[n][g], from, scale, n * kPanel + g * kLanes));
    }
}

// The same on any number of panels.
template <class W>
inline void row_panels(const float* a, const W* b, int64_t panels, int64_t k, const float* init, int64_t init_step,
                       float* c, int64_t c_step, const float* scale = nullptr) {
  int64_t n = 0;
  const auto scale_of = [&](int64_t panel) { return kIsScaled<W> ? scale + panel * kPanel : nullptr; };
  if constexpr (kStreamPanels)
    for (; n + kStreams <= panels; n += kStreams)
      row_tile(a, b + n * k * kPanel, k, init + n * init_step, init_step, c + n * c_step, c_step, scale_of(n));
  for (; n < panels; ++n) tile<1>(a, 0, b + n * k * kPanel, k, init + n * init_step, 0, c + n * c_step, 0, scale_of(n));
}

// The same on any number of rows, in as few tiles as can be, all about as high: low ones read more weights for a
// product.
template <class W>
inline void tiles(int64_t rows, const float* a, int64_t a_row, const W* b, int64_t k, const float* init,
                  int64_t init_row, float* c, int64_t c_row, const float* scale = nullptr) {
  for (int64_t r = 0; r < rows;) {
    const int64_t left = rows - r, count = (left + kTileRows - 1) / kTileRows, height = (left + count - 1) / count;
    const float* const ar = a + r * a_row;
    const float* const ir = init ? init + r * init_row : nullptr;
    float* const cr = c + r * c_row;
    const auto run = [&]<int R>() {
      if constexpr (R <= kTileRows) tile<R>(ar, a_row, b, k, ir, init_row, cr, c_row, scale);
    };
    switch (height) {
      case 1:
        run.template operator()<1>();
        break;
      case 2:
        run.template operator()<2>();
        break;
      case 3:
        run.template operator()<3>();
        break;
      case 4:
        run.template operator()<4>();
        break;
      case 5:
        run.template operator()<5>();
        break;
      default:
        run.template operator()<6>();
    }
    r += height;
  }
}

// Where registers are few, and tiles low, int8 is widened beforehand for this many rows and more: kWidened of k at a
// time, which stay in the L1 (Zen 4, AVX2: 95 GFLOP/s against 84; with AVX-512 105 against 112).
inline constexpr bool kWidens = kRegisters < 32;
inline constexpr int64_t kRowsToWiden = 3 * kTileRows + 1, kWidened = 64;

// Rows [0, k) of an int8 panel, times its scales if they are given, to `to`.
inline void widen_panel(const int8_t* b, int64_t k, const float* scale, float* to) {
  if (scale == nullptr) {
    for (int64_t i = 0; i < k * kPanel; i += kLanes) store(to + i, load_widened(b + i));
    return;
  }
  F32 s[4];
  for (int g = 0; g < 4; ++g) s[g] = load<F32>(scale + g * kLanes);
  for (int64_t j = 0; j < k; ++j)
    for (int g = 0; g < 4; ++g) store(to + j * kPanel + g * kLanes, s[g] * load_widened(b + j * kPanel + g * kLanes));
}

// All of k for many rows, chunk by chunk.
template <class W>
inline void panel(int64_t rows, const float* a, int64_t a_row, const W* b, int64_t k, const float* init,
                  int64_t init_row, float* c, int64_t c_row, const float* scale = nullptr) {
  const bool widens = kIsScaled<W> && kWidens && rows >= kRowsToWiden;
  const int64_t chunk = widens ? kWidened : rows > kTileRows ? kChunk : k;
  int64_t j = 0;
  do {
    const int64_t n = k - j < chunk ? k - j : chunk;
    if constexpr (kIsScaled<W>) {
      if (widens) {
        float wide[kWidened * kPanel];
        widen_panel(b + j * kPanel, n, scale, wide);
        tiles(rows, a + j, a_row, wide, n, init, init_row, c, c_row);
      } else {
        tiles(rows, a + j, a_row, b + j * kPanel, n, init, init_row, c, c_row, scale);
      }
    } else {
      tiles(rows, a + j, a_row, b + j * kPanel, n, init, init_row, c, c_row);
    }
    init = c, init_row = c_row;
    j += n;
  } while (j < k);
}

// The sum of the two biases (4h) in panels (h/kLanes, 4, kLanes), zero where there are none.
template <class W>
void pack_bias(const W* b_ih, const W* b_hh, int64_t hidden, float* out) {
  for (int64_t u = 0; u * kLanes < hidden; ++u)
    for (int g = 0; g < 4; ++g)
      for (int64_t v = 0; v < kLanes; ++v) {
        const int64_t unit = u * kLanes + v, i = g * hidden + unit;
        out[u * kPanel + g * kLanes + v] = b_ih && unit < hidden ? widen(b_ih[i]) + widen(b_hh[i]) : 0.0f;
      }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
