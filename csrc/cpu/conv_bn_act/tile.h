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

// What becomes of a tile's sums at the end of a slice.
template <int MR, int NV>
inline void leave(const Tile& t, const Epilogue& e, const F32 (&acc)[MR][NV]) {
  constexpr int64_t kRow = NV * kLanes;
  if (t.last && e.in_registers && t.count == kRow) {
    auto* y = reinterpret_cast<float*>(e.y) + t.k0;
    const auto* residual = reinterpret_cast<const float*>(e.residual);
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      const int64_t k = v * kLanes;
      const F32 scale = e.scale ? load<F32>(e.scale + t.k0 + k) : broadcast(1.0f);
      const F32 shift = e.shift ? load<F32>(e.shift + t.k0 + k) : F32{};
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        F32 value = fma(acc[i][v], scale, shift);
        if (e.residual) value += load<F32>(residual + t.residual_at[i] + t.k0 + k);
        if (e.relu) value = max(F32{}, value);
        store(y + t.y_at[i] + k, value);
      }
    }
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(t.sums + i * kRow + v * kLanes, acc[i][v]);
  if (t.last) finish(e, {t.sums, kRow, MR, t.y_at, t.residual_at, t.k0, t.count});
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
  leave<MR, NV>(t, e, acc);
}

// Two whole panels of few pixels at a time, which are not enough for as many sums as additions take to come out; `u` is
// `t` of the next panel.
inline constexpr int kPairPixels = 3;

template <int MR>
void run_pair(const Tile& t, const Tile& u, const Epilogue& e) {
  F32 acc[2][MR][2];
  const Tile* const tiles[2] = {&t, &u};
#pragma GCC unroll 16
  for (int p = 0; p < 2; ++p)
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < 2; ++v) {
        acc[p][i][v] = t.first ? F32{} : load<F32>(tiles[p]->sums + i * kPanel + v * kLanes);
      }
  const float *w = t.weight, *w_next = u.weight, *ahead = t.ahead, *ahead_next = u.ahead;
  const float* const* rows = t.rows;
  for (int64_t tap = 0; tap < t.taps; ++tap, rows += MR) {
    const float* x[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) x[i] = rows[i] + t.c0;
    for (int64_t chunk = 0; chunk < t.run; chunk += kChunk) {
      for (int64_t line = 0; line < t.ahead_lines; ++line, ahead += 16, ahead_next += 16) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead_next, 0, 2);
      }
      const int64_t end = chunk + kChunk < t.run ? chunk + kChunk : t.run;
      for (int64_t c = chunk; c < end; ++c, w += kPanel, w_next += kPanel) {
        const F32 weight[2][2] = {{load<F32>(w), load<F32>(w + kLanes)},
                                  {load<F32>(w_next), load<F32>(w_next + kLanes)}};
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const F32 value = broadcast(x[i][c]);
#pragma GCC unroll 16
          for (int p = 0; p < 2; ++p)
#pragma GCC unroll 16
            for (int v = 0; v < 2; ++v) acc[p][i][v] = fma(value, weight[p][v], acc[p][i][v]);
        }
      }
    }
  }
  leave<MR, 2>(t, e, acc[0]);
  leave<MR, 2>(u, e, acc[1]);
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

using PairFunction = void (*)(const Tile&, const Tile&, const Epilogue&);
constexpr PairFunction kPairs[kPairPixels] = {run_pair<1>, run_pair<2>, run_pair<3>};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
