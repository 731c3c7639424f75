// float32 and bfloat16 elements as floats: one, a vector, and the first few of a vector.
#pragma once

#include <cstring>

#include "cpu/vec.h"
#include "pykernels/dtype.h"

namespace pk {
namespace PK_ISA {
namespace {

inline float widen(float x) { return x; }
inline float widen(bf16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline F32 load_widened(const float* p) { return load<F32>(p); }
inline F32 load_widened(const bf16_t* p) { return load_bf16(p); }
inline F32 load_widened(const float* p, int64_t count) { return load_partial(p, count); }
inline F32 load_widened(const bf16_t* p, int64_t count) {
  bf16_t whole[kLanes] = {};
  copy_partial(whole, p, count);
  return load_bf16(whole);
}

inline void store_narrowed(float* p, F32 v) { store(p, v); }
inline void store_narrowed(bf16_t* p, F32 v) { store_bf16(p, v); }
inline void store_narrowed(float* p, F32 v, int64_t count) { store_partial(p, v, count); }
inline void store_narrowed(bf16_t* p, F32 v, int64_t count) {
  bf16_t whole[kLanes];
  store_bf16(whole, v);
  copy_partial(p, whole, count);
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
