// The CUDA dialect for g++: qualifiers, built-in variables, vector types, intrinsics. Only what our kernels use.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt/simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::current->block->index)
#define blockDim (::simt::block_dim)
#define gridDim (::simt::grid_dim)

#define PK_SIMT_VECTOR(T, name, align)                       \
  struct alignas(2 * (align)) name##2 { T x, y; };           \
  struct alignas(4 * (align)) name##4 { T x, y, z, w; };     \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PK_SIMT_VECTOR(int, int, 4)
PK_SIMT_VECTOR(unsigned, uint, 4)
PK_SIMT_VECTOR(float, float, 4)
PK_SIMT_VECTOR(signed char, char, 1)
PK_SIMT_VECTOR(unsigned short, ushort, 2)
#undef PK_SIMT_VECTOR

namespace simt {

inline float half_to_float(uint16_t h) { return static_cast<float>(std::bit_cast<_Float16>(h)); }
// To nearest even; NaN becomes CUDA's 0x7fff.
inline uint16_t float_to_half(float x) {
  return std::isnan(x) ? uint16_t{0x7fff} : std::bit_cast<uint16_t>(static_cast<_Float16>(x));
}
inline uint16_t float_to_bfloat(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The value that lane `from(lane)` of the mask gave.
struct Shuffle {
  uint64_t value;
  unsigned from;
  uint64_t result;
};
template <class T>
T shuffle(uint32_t mask, T value, unsigned from, const char* tag) {
  static_assert(sizeof(T) <= 8);
  Shuffle s = {0, from, 0};
  std::memcpy(&s.value, &value, sizeof(T));
  collective(mask, tag, &s, [](void** all, uint32_t) {
    for (unsigned l = 0; l < kWarp; ++l) {
      if (!all[l]) continue;
      auto* mine = static_cast<Shuffle*>(all[l]);
      auto* theirs = static_cast<Shuffle*>(all[mine->from % kWarp]);
      if (!theirs) fail("shuffle: reads a lane that takes no part");
      mine->result = theirs->value;
    }
  });
  T result;
  std::memcpy(&result, &s.result, sizeof(T));
  return result;
}

}  // namespace simt

// ---- Barriers and warp collectives ----
inline void __syncthreads() { simt::barrier_sync(0, 0); }
inline void __syncwarp(unsigned mask = 0xffffffff) {
  simt::collective(mask, "__syncwarp", nullptr, [](void**, uint32_t) {});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const unsigned lane = simt::current->lane;
  return simt::shuffle(mask, value, (lane & ~(width - 1u)) | (from & (width - 1u)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = simt::current->lane, from = lane ^ bits;
  return simt::shuffle(mask, value, from / width > lane / width ? lane : from, "__shfl_xor_sync");
}

// ---- Arithmetic ----
using std::max;
using std::min;
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float normcdff(float x) { return static_cast<float>(0.5 * std::erfc(-static_cast<double>(x) * M_SQRT1_2)); }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int{static_cast<int8_t>(a >> 8 * i)} * int{static_cast<int8_t>(b >> 8 * i)};
  return c;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (s & 7)) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

// ---- The runtime, as far as host code of csrc/cuda calls it ----
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
