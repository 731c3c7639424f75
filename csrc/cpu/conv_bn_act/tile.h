// The inner loop of the direct convolution: a tile of `pixels` output pixels x NV vectors of output channels, held in
// registers over all taps and input channels of a slice.
//
//   sum[i][k] += rows[tap][i][c] * weight[tap][c][k]     each x broadcast from memory, each weight vector used MR times
//
// Two vectors and as many pixels as leave room for them and a broadcast: 6 x 2 of 16 registers, 14 x 2 of 32. Where
// channels are left over, a vector of 16 is also had by halves: 8 lanes take half as long.
#pragma once

#include <utility>

#include "cpu/activate.h"
#include "cpu/conv_bn_act/epilogue.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kTilePixels = (kRegisters - 4) / 2;
inline constexpr int kPanel = 2 * kLanes;                 // output channels of a weight panel,
inline constexpr int kGrain = kLanes == 16 ? 8 : kLanes;  // or a multiple of this in the last one
inline constexpr int kWidths = kPanel / kGrain;

inline constexpr int64_t kChunk = 64;  // channels between two looks at what to fetch

// Some tiles of the same size, one after the other.
struct Tiles {
  int64_t count;
  const float* const* rows;  // [count][taps][pixels]: where tap and pixel meet, the channels of x; null where a tap
                             // has nothing but padding, of several taps
  int64_t taps;
  int64_t c0, run;      // channels [c0, c0 + run) of every row
  const float* weight;  // [taps][run][width]
  float* sums;          // [pixels][whole vectors]: what the slices before this one left, and this one leaves,
  int64_t sums_step;    // and how far on that of the next tile is
  bool first, last;     // of the slices: begins with zero; finishes
  const int64_t* y_at;  // [count][pixels], as in finish()
  const int64_t* residual_at;
  const float* ahead;    // weights that are needed soon,
  int64_t ahead_lines;   // and how many cache lines of them to fetch at each chunk of the run
  int64_t k0, channels;  // output channels [k0, k0 + channels), channels <= width
};

template <Activation kA, int MR, int NV>
__attribute__((always_inline)) inline void activate_tile(F32 (&acc)[MR][NV], float negative_slope) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[i][v] = activate(acc[i][v], kA, negative_slope);
}

// What follows the sums without a trip to memory, where e.in_registers; of the last vector the first `rest` lanes.
// Phase by phase, so that no flag is looked at again: a store may change any of them, as far as compilers know.
template <int MR, int NV, bool kWhole>
__attribute__((always_inline)) inline void finish_tile(F32 (&acc)[MR][NV], const Epilogue& e, const int64_t* y_at,
                                                       const int64_t* residual_at, int64_t k0, int64_t rest) {
  const auto read = [rest](const float* from, int v) {
    return kWhole || v + 1 < NV ? load<F32>(from + v * kLanes) : load_partial(from + v * kLanes, rest);
  };
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    const F32 scale = e.scale ? read(e.scale + k0, v) : broadcast(1.0f);
    const F32 shift = e.shift ? read(e.shift + k0, v) : F32{};
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) acc[i][v] = fma(acc[i][v], scale, shift);
  }
  if (e.residual) {
    const auto* residual = reinterpret_cast<const float*>(e.residual) + k0;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[i][v] += read(residual + residual_at[i], v);
  }
  switch (e.activation) {
    case Activation::relu:
      activate_tile<Activation::relu>(acc, 0);
      break;
    case Activation::leaky_relu:
      activate_tile<Activation::leaky_relu>(acc, e.negative_slope);
      break;
    case Activation::relu6:
      activate_tile<Activation::relu6>(acc, 0);
      break;
    case Activation::hardswish:
      activate_tile<Activation::hardswish>(acc, 0);
      break;
    case Activation::hardsigmoid:
      activate_tile<Activation::hardsigmoid>(acc, 0);
      break;
    case Activation::none:
      break;
    default:
      __builtin_unreachable();  // is_short
  }
  float* y[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) y[i] = reinterpret_cast<float*>(e.y) + y_at[i] + k0;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      if (kWhole || v + 1 < NV) {
        store(y[i] + v * kLanes, acc[i][v]);
      } else {
        store_partial(y[i] + v * kLanes, acc[i][v], rest);
      }
    }
}

// What becomes of a tile's sums at the end of a slice.
template <int MR, int NV>
__attribute__((always_inline)) inline void leave(const Tiles& t, const Epilogue& e, F32 (&acc)[MR][NV], float* sums,
                                                 const int64_t* y_at, const int64_t* residual_at) {
  constexpr int64_t kRow = NV * kLanes;
  if (t.last && e.in_registers) {
    if (t.channels == kRow) return finish_tile<MR, NV, true>(acc, e, y_at, residual_at, t.k0, kLanes);
    // Only AVX-512 stores part of a vector in one go.
    if constexpr (kLanes == 16) {
      return finish_tile<MR, NV, false>(acc, e, y_at, residual_at, t.k0, t.channels - kRow + kLanes);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(sums + i * kRow + v * kLanes, acc[i][v]);
  if (t.last) finish(e, {sums, kRow, MR, y_at, residual_at, t.k0, t.channels});
}

template <int MR, int kWidth>
void run_tiles(const Tiles& t, const Epilogue& e) {
  constexpr int NV = (kWidth + kLanes - 1) / kLanes, kFull = kWidth / kLanes;
  constexpr int64_t kRow = NV * kLanes;
  constexpr bool kHalf = kFull < NV;
  // Locals: a store may change whatever is read through a pointer, as far as compilers know.
  const bool first = t.first, fetches = t.last && !e.planes;
  const int64_t taps = t.taps, c0 = t.c0, run = t.run, ahead_lines = t.ahead_lines;
  const float* const* rows = t.rows;
  const int64_t* y_at = t.y_at;
  const int64_t* residual_at = t.residual_at;
  float* sums = t.sums;
  const float* ahead = t.ahead;
  for (int64_t tile = 0; tile < t.count; ++tile, y_at += MR, residual_at += MR, sums += t.sums_step) {
    F32 acc[MR][NV];
    F32Half half[MR];  // in the place of the last vector, where kHalf
    if (first) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = F32{};
        half[i] = F32Half{};
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const float* from = sums + i * kRow;
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = load<F32>(from + v * kLanes);
        if constexpr (kHalf) half[i] = load<F32Half>(from + kFull * kLanes);
      }
    }
    if (fetches) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) fetch_output(e, y_at[i], residual_at[i], t.k0);
    }
    const float* w = t.weight;
    for (int64_t tap = 0; tap < taps; ++tap, rows += MR) {
      if (rows[0] == nullptr) {
        w += run * kWidth;
        continue;
      }
      const float* x[MR];
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) x[i] = rows[i] + c0;
      for (int64_t chunk = 0; chunk < run; chunk += kChunk) {
        for (int64_t line = 0; line < ahead_lines; ++line, ahead += 16) __builtin_prefetch(ahead, 0, 2);
        const int64_t end = chunk + kChunk < run ? chunk + kChunk : run;
        for (int64_t c = chunk; c < end; ++c, w += kWidth) {
          F32 weight[NV];
          F32Half weight_half = {};
#pragma GCC unroll 16
          for (int v = 0; v < kFull; ++v) weight[v] = load<F32>(w + v * kLanes);
          if constexpr (kHalf) weight_half = load<F32Half>(w + kFull * kLanes);
#pragma GCC unroll 16
          for (int i = 0; i < MR; ++i) {
            const F32 value = broadcast(x[i][c]);
#pragma GCC unroll 16
            for (int v = 0; v < kFull; ++v) acc[i][v] = fma(value, weight[v], acc[i][v]);
            if constexpr (kHalf) half[i] = fma(x[i][c] - F32Half{}, weight_half, half[i]);
          }
        }
      }
    }
    if constexpr (kHalf) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) acc[i][kFull] = extend(half[i]);
    }
    leave(t, e, acc, sums, y_at, residual_at);
  }
}

// One tap: the first tile of `t` x `count` whole panels that follow each other, t.weight and t.k0 those of the first.
// The tile that begins `next` pixels on is fetched meanwhile: its x a row or more a panel, its output line by line.
template <int MR>
void run_panels(Tiles t, const Epilogue& e, int64_t count, int64_t next) {
  const bool fetches = !e.planes;
  const int64_t run = t.run, ahead_lines = t.ahead_lines;
  const float *w = t.weight, *ahead = t.ahead;
  const float* x[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) x[i] = t.rows[i];
  for (int64_t panel = 0; panel < count; ++panel, t.k0 += kPanel) {
    F32 acc[MR][2];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = F32{};
    if (fetches) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) fetch_output(e, t.y_at[next + i], t.residual_at[next + i], t.k0);
    }
    for (int64_t chunk = 0; chunk < run; chunk += kChunk) {
      for (int64_t line = 0; line < ahead_lines; ++line, ahead += 16) __builtin_prefetch(ahead, 0, 2);
      for (int64_t i = panel; i < MR; i += count) {
        const float* row = t.rows[next + i] + chunk;
        for (int64_t c = 0; c < kChunk && c < run - chunk; c += 16) __builtin_prefetch(row + c, 0, 2);
      }
      const int64_t end = chunk + kChunk < run ? chunk + kChunk : run;
      for (int64_t c = chunk; c < end; ++c, w += kPanel) {
        const F32 weight[2] = {load<F32>(w), load<F32>(w + kLanes)};
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const F32 value = broadcast(x[i][c]);
          acc[i][0] = fma(value, weight[0], acc[i][0]);
          acc[i][1] = fma(value, weight[1], acc[i][1]);
        }
      }
    }
    leave(t, e, acc, t.sums, t.y_at, t.residual_at);
  }
}

// Two whole panels of few pixels at a time, which are not enough for as many sums as additions take to come out; `u` is
// `t` of the next panel; of each the first tile counts.
inline constexpr int kPairPixels = 3;

template <int MR>
void run_pair(const Tiles& t, const Tiles& u, const Epilogue& e) {
  F32 acc[2][MR][2];
  const Tiles* const tiles[2] = {&t, &u};
#pragma GCC unroll 16
  for (int p = 0; p < 2; ++p)
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < 2; ++v) {
        acc[p][i][v] = t.first ? F32{} : load<F32>(tiles[p]->sums + i * kPanel + v * kLanes);
      }
  // All that a core can ask for at a time is little: the lines of a chunk are asked for piece by piece.
  constexpr int64_t kPiece = 8;
  const int64_t lines = (t.ahead_lines * kPiece + kChunk - 1) / kChunk;
  const float *w = t.weight, *w_next = u.weight, *ahead = t.ahead, *ahead_next = u.ahead;
  const float* const* rows = t.rows;
  for (int64_t tap = 0; tap < t.taps; ++tap, rows += MR) {
    if (rows[0] == nullptr) {
      w += t.run * kPanel;
      w_next += t.run * kPanel;
      continue;
    }
    const float* x[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) x[i] = rows[i] + t.c0;
    for (int64_t piece = 0; piece < t.run; piece += kPiece) {
      for (int64_t line = 0; line < lines; ++line, ahead += 16, ahead_next += 16) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead_next, 0, 2);
      }
      const int64_t end = piece + kPiece < t.run ? piece + kPiece : t.run;
      for (int64_t c = piece; c < end; ++c, w += kPanel, w_next += kPanel) {
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
  leave(t, e, acc[0], t.sums, t.y_at, t.residual_at);
  leave(u, e, acc[1], u.sums, u.y_at, u.residual_at);
}

using TileFunction = void (*)(const Tiles&, const Epilogue&);

struct TileTable {
  TileFunction of[kWidths][kTilePixels];  // [width / kGrain - 1][pixels - 1]
};
template <int kWidth, int... pixel>
constexpr void fill_width(TileTable& table, std::integer_sequence<int, pixel...>) {
  ((table.of[kWidth / kGrain - 1][pixel] = run_tiles<pixel + 1, kWidth>), ...);
}
template <int... width>
constexpr TileTable tile_table(std::integer_sequence<int, width...>) {
  TileTable table = {};
  (fill_width<(width + 1) * kGrain>(table, std::make_integer_sequence<int, kTilePixels>()), ...);
  return table;
}
constexpr TileTable kTiles = tile_table(std::make_integer_sequence<int, kWidths>());

using PanelsFunction = void (*)(Tiles, const Epilogue&, int64_t count, int64_t next);

#if PK_REGISTERS == 16
constexpr PanelsFunction kPanels[kTilePixels] = {run_panels<1>, run_panels<2>, run_panels<3>,
                                                 run_panels<4>, run_panels<5>, run_panels<6>};
#else
constexpr PanelsFunction kPanels[kTilePixels] = {
    run_panels<1>, run_panels<2>, run_panels<3>,  run_panels<4>,  run_panels<5>,  run_panels<6>,  run_panels<7>,
    run_panels<8>, run_panels<9>, run_panels<10>, run_panels<11>, run_panels<12>, run_panels<13>, run_panels<14>};
#endif

using PairFunction = void (*)(const Tiles&, const Tiles&, const Epilogue&);
constexpr PairFunction kPairs[kPairPixels] = {run_pair<1>, run_pair<2>, run_pair<3>};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
