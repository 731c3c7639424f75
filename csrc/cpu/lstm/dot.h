// Products with weights as nn.LSTM holds them, (4h, k), rows contiguous: for few rows of A, where packing would cost
// more than it brings. The same results in the same places as tile.h's panels:
// C[r][g][v] = init[r][g][v] + sum over k of A[r][k] * W[g h + u v + ...][k], for the kLanes units of block u; and,
// with int8 weights, times scale[g][v].
//
// Vectors run along k: a unit's four gate rows times up to kDotRows rows of A are as many accumulators, each summed
// across at the end, kLanes units at once, by a tree of pairwise additions.
#pragma once

#include <utility>

#include "cpu/lstm/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kDotRows = kRegisters >= 32 ? 4 : 3;

template <int... I>
inline F32 add_pairs(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// Lane i: the sum of the lanes of v[i]. Destroys v.
inline F32 sum_each(F32* v) {
  for (int n = kLanes; n > 1; n /= 2)
    for (int i = 0; i < n / 2; ++i) v[i] = add_pairs(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, kLanes>());
  return v[0];
}

// The last kLanes of k numbers without those that full vectors have taken: zeros in their place.
struct Tail {
  int64_t at, count;
  I32 mask;
};

inline Tail tail_of(int64_t k) {
  Tail t{k < kLanes ? 0 : k - kLanes, k % kLanes, {}};
  for (int i = 0; i < kLanes; ++i) t.mask[i] = i >= kLanes - t.count ? -1 : 0;
  return t;
}
template <class W>
inline F32 load_tail(const W* p, int64_t k, const Tail& t) {
  if (k >= kLanes) return bit_cast<F32>(bit_cast<I32>(load_widened(p + t.at)) & t.mask);
  W few[kLanes] = {};
  std::memcpy(few, p, static_cast<size_t>(k) * sizeof(W));
  return load_widened(few);
}

// One unit's gates, w + g * gate, times R rows of A: sum[r][g], still to be summed across.
template <int R, class W>
inline void dot(const float* a, int64_t a_row, const W* w, int64_t gate, int64_t k, const Tail& tail,
                F32 (*out)[4][kLanes]) {
  F32 sum[R][4] = {};
  int64_t j = 0;
  if constexpr (R == 1) {
    F32 odd[4] = {};
    for (; j + 2 * kLanes <= k; j += 2 * kLanes) {
      const F32 x = load<F32>(a + j), y = load<F32>(a + j + kLanes);
      for (int g = 0; g < 4; ++g) {
        sum[0][g] = fma(x, load_widened(w + g * gate + j), sum[0][g]);
        odd[g] = fma(y, load_widened(w + g * gate + j + kLanes), odd[g]);
      }
    }
    for (int g = 0; g < 4; ++g) sum[0][g] += odd[g];
  }
  for (; j + kLanes <= k; j += kLanes) {
    F32 x[R];
    for (int r = 0; r < R; ++r) x[r] = load<F32>(a + r * a_row + j);
    for (int g = 0; g < 4; ++g) {
      const F32 v = load_widened(w + g * gate + j);
      for (int r = 0; r < R; ++r) sum[r][g] = fma(x[r], v, sum[r][g]);
    }
  }
  if (tail.count) {
    F32 x[R];
    for (int r = 0; r < R; ++r) x[r] = load_tail(a + r * a_row, k, tail);
    for (int g = 0; g < 4; ++g) {
      const F32 v = load_tail(w + g * gate, k, tail);
      for (int r = 0; r < R; ++r) sum[r][g] = fma(x[r], v, sum[r][g]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g) out[r][g][0] = sum[r][g];
}

template <int R, class W>
void dot_rows(const float* a, int64_t a_row, const W* w, int64_t gate, int64_t k, int64_t units, const float* init,
              int64_t init_row, float* c, int64_t c_row, const float* scale) {
  const Tail tail = tail_of(k);
  F32 sums[R][4][kLanes];
  for (int64_t v = 0; v < kLanes; ++v) {
    // Units past the last one repeat it; nobody reads them.
    const int64_t unit = v < units ? v : units - 1;
    dot<R>(a, a_row, w + unit * k, gate, k, tail, reinterpret_cast<F32(*)[4][kLanes]>(&sums[0][0][v]));
  }
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g) {
      const F32 start = load<F32>(init + r * init_row + g * kLanes), sum = sum_each(sums[r][g]);
      store(c + r * c_row + g * kLanes, kIsScaled<W> ? fma(sum, load<F32>(scale + g * kLanes), start) : start + sum);
    }
}

// Block u of w (4 * hidden, k) on any number of rows.
template <class W>
void dots(int64_t rows, const float* a, int64_t a_row, const W* w, int64_t hidden, int64_t u, int64_t k,
          const float* init, int64_t init_row, float* c, int64_t c_row, const float* scale = nullptr) {
  const int64_t left = hidden - u * kLanes, units = left < kLanes ? left : kLanes, gate = hidden * k;
  w += u * kLanes * k;
  for (int64_t r = 0; r < rows;) {
    const float* const ar = a + r * a_row;
    const float* const ir = init + r * init_row;
    float* const cr = c + r * c_row;
    if (rows - r >= kDotRows && rows - r != kDotRows + 1) {
      dot_rows<kDotRows>(ar, a_row, w, gate, k, units, ir, init_row, cr, c_row, scale);
      r += kDotRows;
    } else if (rows - r >= 2) {
      dot_rows<2>(ar, a_row, w, gate, k, units, ir, init_row, cr, c_row, scale);
      r += 2;
    } else {
      dot_rows<1>(ar, a_row, w, gate, k, units, ir, init_row, cr, c_row, scale);
      r += 1;
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
