// The two loops. With adjacent channels a pixel is a row. Its sum, the sums of its deviations and of their squares, and
// its result are three passes over data in the first-level cache, four rows side by side: each row has its own chain of
// additions, and summing the lanes of all four takes a third of the shuffles. With adjacent pixels four vectors of them
// go down the channels side by side.
//
// Every kBlock additions a sum goes into the total, so that the error doesn't grow with the row.
#include <cmath>
#include <utility>

#include "cpu/elements.h"
#include "cpu/layer_norm/kernels.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kBlock = 64;
constexpr int kRows = 4, kColumns = 4;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Lane j: that of `a` or of `b` as its bit D says, and the lane that differs in that bit is added.
template <int D, int... lane>
inline F32 fold(F32 a, F32 b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((lane & D) ? kLanes + lane : lane)...) +
         __builtin_shufflevector(a, b, ((lane & D) ? kLanes + lane - D : lane + D)...);
}
// Lane j: the sum of the lanes of v[j % kRows]. In the same order whatever kRows is, 1 or 4.
template <int D = 1, int kRows>
inline F32 sums_of(F32 (&v)[kRows]) {
  constexpr std::make_integer_sequence<int, kLanes> kAll;
  if constexpr (D < kRows) {
    for (int r = 0; r < kRows; r += 2 * D) v[r] = fold<D>(v[r], v[r + D], kAll);
  } else {
    v[0] = fold<D>(v[0], v[0], kAll);
  }
  if constexpr (2 * D < kLanes) return sums_of<2 * D>(v);
  return v[0];
}

// each(sums, r, i, lanes) of the vectors i in [begin, end) of kRows rows, the last with fewer lanes.
template <int kRows, int kSums, class Each>
inline void sum_block(int64_t begin, int64_t end, F32 (&sums)[kRows][kSums], const Each& each) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) each(sums[r], r, i, int64_t{kLanes});
  }
  if (i == end) return;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) each(sums[r], r, i, end - i);
}
// A call, so that the totals take no registers from the block.
template <int kRows, int kSums, class Each>
[[gnu::noinline]] void add_block(int64_t begin, int64_t end, F32 (&total)[kRows][kSums], Each each) {
  F32 sums[kRows][kSums] = {};
  sum_block(begin, end, sums, each);
  for (int r = 0; r < kRows; ++r) {
    for (int s = 0; s < kSums; ++s) total[r][s] += sums[r][s];
  }
}

// Of rows of c elements; lane j of the result is of row j % kRows.
template <int kRows, int kSums, class Each>
inline void sum_rows(int64_t c, F32 (&result)[kSums], const Each& each) {
  constexpr int64_t kElements = kBlock * kLanes;
  F32 total[kRows][kSums] = {};
  if (c <= kElements) {
    sum_block(0, c, total, each);
  } else {
    for (int64_t i = 0; i < c; i += kElements) add_block(i, least(c, i + kElements), total, each);
  }
  for (int s = 0; s < kSums; ++s) {
    F32 of_rows[kRows];
    for (int r = 0; r < kRows; ++r) of_rows[r] = total[r][s];
    result[s] = sums_of(of_rows);
  }
}

template <class T>
inline F32 some(const T* p, int64_t lanes) {
  return lanes == kLanes ? load_widened(p) : load_widened(p, lanes);
}

inline F32 lane_numbers() {
  F32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(i);
  return v;
}

// What is normalised is (x - mean - rest) * inverse: `mean` as it was rounded, `rest` what the rounding took from it.
struct Moments {
  F32 mean, rest, inverse;
};
// Of the sums of deviations from `mean`, and of their squares; `share` is 1 / count. Only `lanes` lanes are asked for.
inline Moments moments_of(F32 mean, F32 sum, F32 squares, float share, float eps, int lanes) {
  const F32 rest = sum * share, variance = fma(-rest, rest, squares * share);
  F32 inverse = (variance < 0.0f ? F32{} : variance) + eps;  // a NaN stays
  // A variance that overflows has no inverse: NaN, as its infinity less itself is.
  for (int i = 0; i < lanes; ++i) inverse[i] = 1.0f / std::sqrt(inverse[i]) + (inverse[i] - inverse[i]);
  return {mean, rest, inverse};
}

template <class T>
inline void put(T* y, F32 z, int64_t lanes) {
  if (lanes == kLanes) return store_narrowed(y, z);
  store_narrowed(y, z, lanes);
}

// kRows rows.
template <int kRows, class W, class T>
void row(const LayerNormArgs& a, const T* x, T* y) {
  const int64_t c = a.c, step = a.x_stride[3];
  const float share = 1.0f / static_cast<float>(c);
  const F32 numbers = lane_numbers();
  F32 sum[1], apart[2], mean[kRows];
  sum_rows<kRows>(c, sum,
                  [x, step](F32(&s)[1], int r, int64_t i, int64_t lanes) { s[0] += some(x + r * step + i, lanes); });
  sum[0] *= share;
  for (int r = 0; r < kRows; ++r) mean[r] = broadcast(sum[0][r]);
  sum_rows<kRows>(c, apart, [=](F32(&s)[2], int r, int64_t i, int64_t lanes) {
    F32 d = some(x + r * step + i, lanes) - mean[r];
    if (lanes < kLanes) d = numbers < static_cast<float>(lanes) ? d : F32{};
    s[0] += d;
    s[1] = fma(d, d, s[1]);
  });
  const Moments m = moments_of(sum[0], apart[0], apart[1], share, static_cast<float>(a.eps), kRows);
  F32 rest[kRows], inverse[kRows];
  for (int r = 0; r < kRows; ++r) rest[r] = broadcast(m.rest[r]), inverse[r] = broadcast(m.inverse[r]);
  const auto* const weight = static_cast<const W*>(a.weight);
  const auto* const bias = static_cast<const W*>(a.bias);
  const auto finish = [&](int64_t i, int64_t lanes) {
    const F32 by = weight ? some(weight + i, lanes) : broadcast(1.0f), shift = bias ? some(bias + i, lanes) : F32{};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 normal = (some(x + r * step + i, lanes) - mean[r]) - rest[r];
      put(y + r * a.y_stride[3] + i, fma(normal, inverse[r] * by, shift), lanes);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) finish(i, kLanes);
  if (i < c) finish(i, c - i);
}

// total += the sums of each(k, c) over channels c, for kCount vectors k.
template <int kCount, class Each>
inline void sum_down(int64_t channels, F32 (&total)[kCount], const Each& each) {
  for (int64_t c = 0; c < channels;) {
    F32 sums[kCount] = {};
    for (const int64_t end = least(channels, c + kBlock); c < end; ++c) {
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) each(sums[k], c, k);
    }
    for (int k = 0; k < kCount; ++k) total[k] += sums[k];
  }
}

// kCount vectors of pixels, of which the last has `lanes`.
template <int kCount, class T, class W>
void column(const LayerNormArgs& a, const T* x, T* y, int64_t lanes) {
  const float share = 1.0f / static_cast<float>(a.c), eps = static_cast<float>(a.eps);
  const auto at = [&](int64_t c, int k) { return some(x + c * a.x_stride[1] + k * kLanes, lanes); };
  F32 sums[kCount] = {};
  sum_down(a.c, sums, [&](F32& s, int64_t c, int k) { s += at(c, k); });
  F32 apart[2 * kCount] = {};
  for (int k = 0; k < kCount; ++k) sums[k] *= share;
  // Sums of deviations, and behind them those of squares.
  sum_down(a.c, apart, [&](F32& s, int64_t c, int k) {
    const F32 d = at(c, k % kCount) - sums[k % kCount];
    s = k < kCount ? s + d : fma(d, d, s);
  });
  Moments m[kCount];
  for (int k = 0; k < kCount; ++k) m[k] = moments_of(sums[k], apart[k], apart[kCount + k], share, eps, kLanes);
  const auto* weight = static_cast<const W*>(a.weight);
  const auto* bias = static_cast<const W*>(a.bias);
  for (int64_t c = 0; c < a.c; ++c) {
    const float by = weight ? widen(weight[c]) : 1, shift = bias ? widen(bias[c]) : 0;
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      const F32 z = fma((at(c, k) - m[k].mean) - m[k].rest, m[k].inverse * by, broadcast(shift));
      put(y + c * a.y_stride[1] + k * kLanes, z, lanes);
    }
  }
}

template <class T, class W>
void rows_of(const LayerNormArgs& a, const T* x, T* y, int64_t count) {
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) row<kRows, W>(a, x + i * a.x_stride[3], y + i * a.y_stride[3]);
  for (; i < count; ++i) row<1, W>(a, x + i * a.x_stride[3], y + i * a.y_stride[3]);
}

template <class T, class W>
void columns_of(const LayerNormArgs& a, const T* x, T* y, int64_t count) {
  int64_t i = 0;
  for (; i + kColumns * kLanes <= count; i += kColumns * kLanes) column<kColumns, T, W>(a, x + i, y + i, kLanes);
  for (; i < count; i += kLanes) column<1, T, W>(a, x + i, y + i, least(kLanes, count - i));
}

void rows(const LayerNormArgs& a, const void* x, void* y, int64_t count) {
  if (a.dtype == DType::f32) {
    rows_of<float, float>(a, static_cast<const float*>(x), static_cast<float*>(y), count);
  } else {
    const auto run = a.weight_dtype == DType::f32 ? rows_of<bf16_t, float> : rows_of<bf16_t, bf16_t>;
    run(a, static_cast<const bf16_t*>(x), static_cast<bf16_t*>(y), count);
  }
}

void columns(const LayerNormArgs& a, const void* x, void* y, int64_t count) {
  if (a.dtype == DType::f32) {
    columns_of<float, float>(a, static_cast<const float*>(x), static_cast<float*>(y), count);
  } else {
    const auto run = a.weight_dtype == DType::f32 ? columns_of<bf16_t, float> : columns_of<bf16_t, bf16_t>;
    run(a, static_cast<const bf16_t*>(x), static_cast<bf16_t*>(y), count);
  }
}

}  // namespace

extern const LayerNormKernels layer_norm_kernels;
const LayerNormKernels layer_norm_kernels = {rows, columns};

}  // namespace PK_ISA
}  // namespace pk
