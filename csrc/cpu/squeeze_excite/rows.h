// Rows of a matrix, which is not packed, times a vector: kLanes rows at a time, each with a vector of sums of its own.
// After kRowBlock additions these go into the total, so that the error does not grow with the row.
#pragma once

#include <utility>

#include "cpu/elements.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kRowBlock = 32;

// One step of `sums_of`: lane j is of `a` or of `b` as its bit D says, and the lane that differs in that bit is added.
template <int D, int... lane>
inline F32 fold(F32 a, F32 b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, ((lane & D) ? kLanes + lane : lane)...) +
         __builtin_shufflevector(a, b, ((lane & D) ? kLanes + lane - D : lane + D)...);
}

// Lane i: the sum of v[i]'s lanes.
template <int D = 1>
inline F32 sums_of(F32 (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2 * D) v[i] = fold<D>(v[i], v[i + D], std::make_integer_sequence<int, kLanes>());
  if constexpr (2 * D < kLanes) return sums_of<2 * D>(v);
  return v[0];
}

// Lane i: rows[i] times x, each of `count` elements. `ahead` elements behind what is read, the matrix is fetched.
template <class T>
inline F32 times_rows(const T* const (&rows)[kLanes], const float* x, int64_t count, int64_t ahead) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T* fetched = rows[0] + ahead;
  F32 total = {};
  int64_t i = 0;
  do {
    F32 v[kLanes] = {};
    const int64_t block = count - i < kRowBlock * kLanes ? count : i + kRowBlock * kLanes;
    for (; i + kLanes <= block; i += kLanes, fetched += kLanes * kLanes) {
#pragma GCC unroll 16
      for (int64_t line = 0; line < kLanes * kLanes; line += kLine) __builtin_prefetch(fetched + line);
      const F32 factor = load<F32>(x + i);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) v[r] = fma(load_widened(rows[r] + i), factor, v[r]);
    }
    if (i < block) {
      const F32 factor = load_partial(x + i, block - i);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) v[r] = fma(load_widened(rows[r] + i, block - i), factor, v[r]);
      i = block;
    }
    total += sums_of(v);
  } while (i < count);
  return total;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
