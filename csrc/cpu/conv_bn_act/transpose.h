// A square of kLanes x kLanes floats turned over in registers: what changes between layouts are made of.
#pragma once

#include <utility>

#include "cpu/elements.h"

namespace pk {
namespace PK_ISA {
namespace {

// One step: exchanges the off-diagonal D x D blocks of every 2D x 2D square of the rows a and b = a + D.
template <int D, int... lane>
inline void exchange(F32& a, F32& b, std::integer_sequence<int, lane...>) {
  const F32 low = __builtin_shufflevector(a, b, ((lane & D) ? kLanes + lane - D : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & D) ? kLanes + lane : lane + D)...);
  a = low;
}

template <int D>
inline void exchange_all(F32 (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & D) == 0) exchange<D>(v[i], v[i + D], std::make_integer_sequence<int, kLanes>());
  }
  if constexpr (2 * D < kLanes) exchange_all<2 * D>(v);
}

inline void transpose(F32 (&v)[kLanes]) { exchange_all<1>(v); }

// next()[i] = from[i * pitch + j] for i < kLanes, j < count, widened to float; next() is called for j = 0, 1, ...
template <class T, class Next>
inline void transpose_rows(const T* from, int64_t pitch, int64_t count, Next next) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    F32 v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = load_widened(from + i * pitch + j);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(next(), v[i]);
  }
  for (; j < count; ++j) {
    float* to = next();
    for (int i = 0; i < kLanes; ++i) to[i] = widen(from[i * pitch + j]);
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
