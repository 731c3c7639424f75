// The int8 grid of a channel: its range, found in any order, then scale and zero point, then each number on it. Shared
// by quantize.cu and quantize_rows.cu; the formulas are in pykernels/int8_matmul.h.
#pragma once

#include "cuda/numeric.cuh"

namespace pk::cuda::int8 {

// The largest x and the largest -x, at least 0, as bits, which have the order of the values; a NaN counts as both, and
// is larger than infinity.
struct Range {
  uint32_t high = 0, low = 0;

  PK_DEVICE void add(float x) {
    const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    const bool nan = magnitude > 0x7f800000u, negative = bits >> 31 != 0;
    add(Range{nan || !negative ? magnitude : 0u, nan || negative ? magnitude : 0u});
  }
  PK_DEVICE void add(Range r) {
    high = r.high > high ? r.high : high;
    low = r.low > low ? r.low : low;
  }
};

PK_DEVICE Range across_warp(Range r) {
  PK_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    r.add(Range{__shfl_xor_sync(0xffffffffu, r.high, lanes), __shfl_xor_sync(0xffffffffu, r.low, lanes)});
  }
  return r;
}

struct Grid {
  float scale;
  int zero_point;
};

PK_DEVICE Grid grid_of(Range r, bool symmetric) {
  const uint32_t largest = r.high > r.low ? r.high : r.low;
  const float high = __uint_as_float(r.high), low = __uint_as_float(r.low);  // low: of -x
  Grid g = {__uint_as_float(largest) / 127.0f, 0};
  float zero = 0.0f;
  if (!symmetric) {
    g.scale = largest > 0x7f800000u ? __uint_as_float(largest) : high / 255.0f + low / 255.0f;
    zero = -128.0f + low / g.scale;
  }
  if (largest < 0x7f800000u && g.scale != 0.0f) g.zero_point = from_float<int8_t>(zero);
  if (g.scale == 0.0f) g.scale = 1.0f;
  return g;
}

// Divided, not multiplied by 1 / scale: a tiny scale has no reciprocal.
PK_DEVICE int8_t on_grid(float x, Grid g, bool symmetric) {
  const float steps = x / g.scale;
  const float limit = symmetric ? 127.0f : 512.0f;
  const int q = (steps != steps ? 0 : __float2int_rn(fminf(fmaxf(steps, -limit), limit))) + g.zero_point;
  return static_cast<int8_t>(q < -128 ? -128 : q > 127 ? 127 : q);
}

// 16 bytes of x.
template <class T>
struct Chunk {
  static constexpr int kCount = 16 / sizeof(T);
  uint4 bits;

  PK_DEVICE void load(const T* x) { bits = *reinterpret_cast<const uint4*>(x); }
  PK_DEVICE void add_to(Range& r) const {
    PK_UNROLL
    for (int i = 0; i < kCount; ++i) r.add(value(i));
  }
  // To kCount bytes, aligned to that.
  PK_DEVICE void store(int8_t* q, Grid g, bool symmetric) const {
    uint32_t words[kCount / 4] = {};
    PK_UNROLL
    for (int i = 0; i < kCount; ++i) {
      words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(on_grid(value(i), g, symmetric))) << i % 4 * 8;
    }
    if constexpr (kCount == 4) {
      *reinterpret_cast<uint32_t*>(q) = words[0];
    } else {
      *reinterpret_cast<uint2*>(q) = make_uint2(words[0], words[1]);
    }
  }

 private:
  PK_DEVICE float value(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w);
    } else {
      const uint32_t word = i / 2 == 0 ? bits.x : i / 2 == 1 ? bits.y : i / 2 == 2 ? bits.z : bits.w;
      return to_float(T{static_cast<uint16_t>(word >> i % 2 * 16)});
    }
  }
};

}  // namespace pk::cuda::int8
