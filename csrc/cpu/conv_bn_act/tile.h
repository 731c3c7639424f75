// The inner loop of the direct convolution: a tile of `pixels` output pixels x NV vectors of output channels, held in
// registers over all taps and input channels of a slice.
//
//   sum[i][k] += rows[tap][i][c] * weight[tap][c][k]     each x broadcast from memory, each weight vector used MR times
//
// Two vectors and as many pixels as leave room for them and a broadcast: 6 x 2 of 16 registers, 14 x 2 of 32.
#pragma once

#include "cpu/conv_bn_act/epilogue.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kTilePixels = (kRegisters - 4) / 2;
inline constexpr int kPanel = 2 * kLanes;  // output channels of a weight panel

inline constexpr int64_t kChunk = 64;  // channels between two looks at what to fetch

struct Tile {
  const float* const* rows;  // [taps][pixels]: where tap and pixel meet, the channels of x
  int64_t taps;
  int64_t c0, run;      // channels [c0, c0 + run) of every row
  const float* weight;  // [taps][run][NV * kLanes]
  float* sums;          // [pixels][NV * kLanes]: what the slices before this one left, and this one leaves
  bool first, last;     // of the slices: begins with zero; finishes
  const int64_t* y_at;  // [pixels], as in finish()
  const int64_t* residual_at;
  const float* ahead;   // weights that are needed soon,
  int64_t ahead_lines;  // and how many cache lines of them to fetch at each chunk of the run
  int64_t k0, count;    // output channels [k0, k0 + count), count <= NV * kLanes
};

// What follows the sums, without a trip to memory: where e.in_registers.
template <int MR, int NV>
__attribute__((always_inline)) inline void finish_tile(const F32 (&acc)[MR][NV], const Epilogue& e, const int64_t* y_at,
                                                       const int64_t* residual_at, int64_t k0) {
  auto* y = reinterpret_cast<float*>(e.y) + k0;
  const auto* residual = reinterpret_cast<const float*>(e.residual);
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    const int64_t k = v * kLanes;
    const F32 scale = e.scale ? load<F32>(e.scale + k0 + k) : broadcast(1.0f);
    const F32 shift = e.shift ? load<F32>(e.shift + k0 + k) : F32{};
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      F32 value = fma(acc[i][v], scale, shift);
      if (e.residual) value += load<F32>(residual + residual_at[i] + k0 + k);
      if (e.relu) value = max(F32{}, value);
      store(y + y_at[i] + k, value);
    }
  }
}

template <int MR, int NV>
void run_tile(const Tile& t, const Epilogue& e) {
  constexpr int64_t kRow = NV * kLanes;
  F32 acc[MR][NV];
  if (t.first) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[i][v] = F32{};
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[i][v] = load<F32>(t.sums + i * kRow + v * kLanes);
  }
  if (t.last && !e.planes) {
    for (int i = 0; i < MR; ++i) fetch_output(e, t.y_at[i], t.residual_at[i], t.k0);
  }
  const float* w = t.weight;
  const float* const* rows = t.rows;
  const int64_t run = t.run;
  const float* ahead = t.ahead;
  for (int64_t tap = 0; tap < t.taps; ++tap, rows += MR) {
    const float* x[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) x[i] = rows[i] + t.c0;
    for (int64_t chunk = 0; chunk < run; chunk += kChunk) {
      for (int64_t line = 0; line < t.ahead_lines; ++line, ahead += 16) __builtin_prefetch(ahead, 0, 2);
      const int64_t end = chunk + kChunk < run ? chunk + kChunk : run;
      for (int64_t c = chunk; c < end; ++c, w += kRow) {
        F32 weight[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) weight[v] = load<F32>(w + v * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const F32 value = broadcast(x[i][c]);
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) acc[i][v] = fma(value, weight[v], acc[i][v]);
        }
      }
    }
  }
  if (t.last && e.in_registers && t.count == kRow) return finish_tile(acc, e, t.y_at, t.residual_at, t.k0);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(t.sums + i * kRow + v * kLanes, acc[i][v]);
  if (t.last) finish(e, {t.sums, kRow, MR, t.y_at, t.residual_at, t.k0, t.count});
}

using TileFunction = void (*)(const Tile&, const Epilogue&);

// kTiles[vectors - 1][pixels - 1]
#if PK_REGISTERS == 16
#define PK_TILES(NV) \
  {run_tile<1, NV>, run_tile<2, NV>, run_tile<3, NV>, run_tile<4, NV>, run_tile<5, NV>, run_tile<6, NV>}
#else
#define PK_TILES(NV)                                                                        \
  {run_tile<1, NV>,  run_tile<2, NV>,  run_tile<3, NV>,  run_tile<4, NV>, run_tile<5, NV>,  \
   run_tile<6, NV>,  run_tile<7, NV>,  run_tile<8, NV>,  run_tile<9, NV>, run_tile<10, NV>, \
   run_tile<11, NV>, run_tile<12, NV>, run_tile<13, NV>, run_tile<14, NV>}
#endif
constexpr TileFunction kTiles[2][kTilePixels] = {PK_TILES(1), PK_TILES(2)};
#undef PK_TILES

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
