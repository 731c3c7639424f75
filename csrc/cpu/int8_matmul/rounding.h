// Float to int8 and the quantisation of a row: what quantize.cpp and the matmul's float inputs and int8 output share.
#pragma once

#include "cpu/vec.h"
#include "pykernels/dtype.h"

namespace pk {
namespace PK_ISA {
namespace {

// To nearest even, saturated to [low, high] (whole numbers within +-512); NaN gives 0.
inline I32 round_saturated(F32 x, float low, float high) {
  x = x == x ? x : F32{};
  return truncate(round(min(broadcast(high), max(broadcast(low), x))));
}

inline F32 load_as_f32(const float* p) { return load<F32>(p); }
inline F32 load_as_f32(const bf16_t* p) { return load_bf16(p); }

// The first count lanes; the rest zero.
template <class T>
inline F32 load_some_as_f32(const T* p, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
  return load_as_f32(padded);
}

inline I32 larger_of(I32 a, I32 b) { return a > b ? a : b; }

// |x| as bits: of the same order as the values, with NaN above infinity above all numbers.
inline I32 magnitude(F32 x) { return bit_cast<I32>(abs(x)); }

inline int32_t largest_lane(I32 v) {
  int32_t most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// max |x| over n values as bits.
template <class T>
inline int32_t largest_magnitude(const T* x, int64_t n) {
  I32 most[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) most[j] = larger_of(most[j], magnitude(load_as_f32(x + i + j * kLanes)));
  }
  for (; i + kLanes <= n; i += kLanes) most[0] = larger_of(most[0], magnitude(load_as_f32(x + i)));
  if (i < n) most[1] = larger_of(most[1], magnitude(load_some_as_f32(x + i, n - i)));
  return largest_lane(larger_of(larger_of(most[0], most[1]), larger_of(most[2], most[3])));
}

inline float symmetric_scale(int32_t largest) {
  const float scale = __builtin_bit_cast(float, largest) / 127.0f;
  return scale == 0.0f ? 1.0f : scale;
}

inline I32 quantized(F32 x, F32 scale) { return round_saturated(x / scale, -127.0f, 127.0f); }

// put(i, q) for lanes [i, i + kLanes) of x, n of them, which ends at a whole vector: what `quantized` gives, without a
// division for nearly all of them. x times the reciprocal is within 127 * 3 * 2^-24 < 3e-5 of the rounded quotient:
// both round to the same unless that lies so close to the middle between two integers.
template <class T, class Put>
inline void quantize_vectors(const T* x, int64_t n, float scale, const Put& put) {
  constexpr int64_t kRun = 16 * kLanes;
  constexpr int32_t kClose = __builtin_bit_cast(int32_t, 0.49997f);
  const F32 divisor = broadcast(scale), factor = broadcast(1.0f / scale);
  const bool is_normal = scale > 1e-30f && scale < 1e38f;  // so is its reciprocal, and x is finite
  for (int64_t begin = 0, end; begin < n; begin = end) {
    end = begin + kRun < n ? begin + kRun : n;
    if (is_normal) {
      I32 farthest{};
      for (int64_t i = begin; i < end; i += kLanes) {
        const F32 steps = load_as_f32(x + i) * factor;
        const I32 q = nearest(steps);
        farthest = larger_of(farthest, magnitude(steps - to_f32(q)));
        put(i, q);
      }
      if (largest_lane(farthest) < kClose) continue;
    }
    for (int64_t i = begin; i < end; i += kLanes) put(i, quantized(load_as_f32(x + i), divisor));
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
