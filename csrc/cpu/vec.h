// Vectors of the ISA that this object is compiled for: with vec_neon.h all that knows intrinsics.
//
// Everything is built on the compiler's vector types (operators, comparisons, `mask ? a : b`), which g++ and clang
// lower to the instructions one would write by hand: `a > b ? a : b` becomes vmaxps, a masked choice a blend.
// Intrinsics are left for what has no operator (fused multiply-adds, dot products, packing), with a plain form beside
// each. So the same kernels compile for any width, 64 bytes included, without AVX-512: that is how the native tests run
// the AVX-512 tilings on any machine.
//
// Built with -ffp-contract=fast (fused multiply-add) and without -ffast-math: NaN, infinities and -0 keep their
// meaning. All names have internal linkage: a linker that merged an AVX-512 copy into the baseline would kill older
// CPUs.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__) && PK_LANES == 4
#define PK_NEON
#include "cpu/vec_neon.h"
#endif

namespace pk {
namespace PK_ISA {
namespace {

// PK_LANES: 32-bit lanes of a vector, set by cmake/isa.cmake. PK_REGISTERS: architectural vector registers.
inline constexpr int kLanes = PK_LANES;
inline constexpr int kRegisters = PK_REGISTERS;
inline constexpr int kVecBytes = 4 * kLanes;

using F32 = float __attribute__((vector_size(kVecBytes)));
using F32Half = float __attribute__((vector_size(kVecBytes / 2)));  // kLanes / 2
using I32 = int32_t __attribute__((vector_size(kVecBytes)));
using I64 = int64_t __attribute__((vector_size(kVecBytes)));  // kLanes / 2
using U32 = uint32_t __attribute__((vector_size(kVecBytes)));
using I16 = int16_t __attribute__((vector_size(kVecBytes)));           // 2 * kLanes
using I8 = int8_t __attribute__((vector_size(kVecBytes)));             // 4 * kLanes
using U16Half = uint16_t __attribute__((vector_size(kVecBytes / 2)));  // kLanes
using I16Half = int16_t __attribute__((vector_size(kVecBytes / 2)));   // kLanes
using I8Half = int8_t __attribute__((vector_size(kVecBytes / 2)));     // 2 * kLanes
using I8Quarter = int8_t __attribute__((vector_size(kVecBytes / 4)));  // kLanes

// Does the ISA multiply bytes in fours (dot4), or 16-bit pairs (dot2)? Set in cmake/isa.cmake.
#if defined(PK_DOT4)
inline constexpr bool kDot4 = true;
#else
inline constexpr bool kDot4 = false;
#endif
// What dot4's first bytes have above signed ones: x86 takes them unsigned, ARM signed.
#if defined(__ARM_FEATURE_DOTPROD) && defined(PK_NEON)
inline constexpr int32_t kDot4Offset = 0;
#else
inline constexpr int32_t kDot4Offset = 128;
#endif

// Does it multiply bytes in pairs (multiply_pairs) and not in fours?
#if defined(__AVX2__) && PK_LANES == 8
inline constexpr bool kBytePairs = true;
#else
inline constexpr bool kBytePairs = false;
#endif

// For loops that wait for another thread: leaves the core to its sibling for a moment.
inline void pause() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(PK_NEON)
  neon::pause();
#endif
}

// Unaligned load and store of any of the types above.
template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// `count` elements, at most kLanes, in pieces of a size that the compiler knows: a copy of any size is a call.
template <class T>
inline void copy_partial(T* to, const T* from, int64_t count) {
  if (count == kLanes) return void(std::memcpy(to, from, kLanes * sizeof(T)));
#pragma GCC unroll 8
  for (int piece = kLanes / 2; piece > 0; piece /= 2) {
    if ((count & piece) == 0) continue;
    std::memcpy(to, from, static_cast<size_t>(piece) * sizeof(T));
    to += piece;
    from += piece;
  }
}

// The first `count` lanes; the rest reads as zero, or is not written.
inline F32 load_partial(const float* p, int64_t count) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__) && PK_LANES == 8
  const I32 lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  return (F32)_mm256_maskload_ps(p, (__m256i)(lanes < static_cast<int32_t>(count)));
#endif
  float whole[kLanes] = {};
  copy_partial(whole, p, count);
  return load<F32>(whole);
}
inline I8Quarter load_partial(const int8_t* p, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__) && PK_LANES == 16
  return (I8Quarter)_mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), p);
#endif
  int8_t whole[kLanes] = {};
  copy_partial(whole, p, count);
  return load<I8Quarter>(whole);
}
// Lanes [begin, end), begin <= end; the rest reads as zero.
inline F32 load_lanes(const float* p, int64_t begin, int64_t end) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << end) - (1u << begin)), p);
#elif defined(__AVX2__) && PK_LANES == 8
  const I32 lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  const I32 mask = (lanes >= static_cast<int32_t>(begin)) & (lanes < static_cast<int32_t>(end));
  return (F32)_mm256_maskload_ps(p, (__m256i)mask);
#endif
  float whole[kLanes] = {};
  for (int64_t i = begin; i < end; ++i) whole[i] = p[i];
  return load<F32>(whole);
}
inline void store_partial(float* p, F32 v, int64_t count) {
#if defined(__AVX512F__) && PK_LANES == 16
  return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#endif
  float whole[kLanes];
  store(whole, v);
  copy_partial(p, whole, count);
}

// x - 0 and not 0 + x: it keeps -0.
inline F32 broadcast(float x) { return x - F32{}; }
inline I32 broadcast(int32_t x) { return x - I32{}; }

// One rounding where the CPU has it. Said outright: the compiler contracts `a * b + c` only where both stand in one
// basic block, so that whether it rounds once or twice would depend on the code around it.
inline F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && PK_LANES == 8
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(PK_NEON)
  return (F32)neon::fma((float32x4_t)a, (float32x4_t)b, (float32x4_t)c);
#else
  return a * b + c;
#endif
}
inline F32Half fma(F32Half a, F32Half b, F32Half c) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (F32Half)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(PK_NEON)
  return (F32Half)neon::fma((float32x2_t)a, (float32x2_t)b, (float32x2_t)c);
#else
  return a * b + c;
#endif
}

// A half, and zeros above it.
template <int... lane>
inline F32 extend(F32Half v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, F32Half{}, lane...);
}
inline F32 extend(F32Half v) { return extend(v, std::make_integer_sequence<int, kLanes>()); }

// A NaN in the second argument comes back. Of a constant first argument the compiler makes a comparison and a blend.
inline F32 min(F32 a, F32 b) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (F32)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__) && PK_LANES == 8
  return (F32)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
inline F32 max(F32 a, F32 b) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (F32)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__) && PK_LANES == 8
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
// std::min's code could be shared with objects of other ISAs.
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

template <class To, class From>
inline To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return reinterpret_cast<To>(v);
}

inline F32 abs(F32 x) { return bit_cast<F32>(bit_cast<I32>(x) & 0x7fffffff); }
inline F32 to_f32(I32 x) { return __builtin_convertvector(x, F32); }
inline I32 truncate(F32 x) { return __builtin_convertvector(x, I32); }

// To nearest, ties to even, for |x| <= 2^22: adding 1.5 * 2^23 leaves no bits behind the point.
inline F32 round(F32 x) {
  const F32 shifted = x + 12582912.0f;
  return shifted - 12582912.0f;
}

// To nearest, ties to even, for |x| <= 2^22; of a NaN's the low byte is 0.
inline I32 nearest(F32 x) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (I32)_mm512_maskz_cvtps_epi32(0xffff, (__m512)x);
#elif defined(__AVX2__) && PK_LANES == 8
  return (I32)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__) && PK_LANES == 4
  return (I32)_mm_cvtps_epi32((__m128)x);
#elif defined(PK_NEON)
  return (I32)vcvtnq_s32_f32((float32x4_t)x);
#else
  return truncate(round(x == x ? x : F32{}));
#endif
}

// bfloat16: kLanes values to and from float. Narrowing rounds to nearest even and keeps NaN (made quiet).
inline F32 load_bf16(const uint16_t* p) {
  // The compiler would widen in halves.
#if defined(__AVX512BW__) && PK_LANES == 16
  return bit_cast<F32>((U32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)load<U16Half>(p)) << 16);
#elif defined(__AVX2__) && PK_LANES == 8
  return bit_cast<F32>((U32)_mm256_cvtepu16_epi32((__m128i)load<U16Half>(p)) << 16);
#elif defined(PK_NEON)
  return bit_cast<F32>(vshll_n_u16((uint16x4_t)load<U16Half>(p), 16));
#else
  return bit_cast<F32>(__builtin_convertvector(load<U16Half>(p), U32) << 16);
#endif
}
inline U16Half to_bf16(F32 x) {
  const U32 bits = bit_cast<U32>(x);
  const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U32 quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(x != x ? quiet : rounded, U16Half);
}
inline void store_bf16(uint16_t* p, F32 x) { store(p, to_bf16(x)); }

// Bytes to 16-bit words and to 32-bit lanes, sign kept; and 32-bit lanes that are in range to 16-bit words.
inline I16 widen(I8Half v) {
#if defined(__AVX512BW__) && PK_LANES == 16
  return (I16)_mm512_maskz_cvtepi8_epi16(~__mmask32{0}, (__m256i)v);
#elif defined(__AVX2__) && PK_LANES == 8
  return (I16)_mm256_cvtepi8_epi16((__m128i)v);  // the compiler would widen in halves
#else
  return __builtin_convertvector(v, I16);
#endif
}
inline I32 to_i32(I8Quarter v) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (I32)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)v);
#elif defined(__AVX2__) && PK_LANES == 8
  return (I32)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bit_cast<int64_t>(v)));
#elif defined(PK_NEON)
  return (I32)neon::to_i32(bit_cast<uint32_t>(v));
#else
  return __builtin_convertvector(v, I32);
#endif
}
inline I32 to_i32(I16Half v) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (I32)_mm512_maskz_cvtepi16_epi32(0xffff, (__m256i)v);
#elif defined(__AVX2__) && PK_LANES == 8
  return (I32)_mm256_cvtepi16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, I32);
#endif
}
inline I16Half to_i16(I32 x) { return __builtin_convertvector(x, I16Half); }
// The low bytes. By itself the compiler takes the lanes out one by one.
inline I8Quarter to_i8(I32 x) {
#if defined(__AVX512F__) && PK_LANES == 16
  return (I8Quarter)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)x);
#elif defined(__AVX2__) && PK_LANES == 8
  const __m256i low = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi32(0x0c080400));
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  return bit_cast<I8Quarter>(_mm_cvtsi128_si64(both));
#elif defined(__SSE2__) && PK_LANES == 4
  const __m128i words = _mm_packs_epi32((__m128i)(x & 255), __m128i{});
  return bit_cast<I8Quarter>(_mm_cvtsi128_si32(_mm_packus_epi16(words, __m128i{})));
#elif defined(PK_NEON)
  return bit_cast<I8Quarter>(neon::to_i8((int32x4_t)x));
#else
  return __builtin_convertvector(x, I8Quarter);
#endif
}

// The low bytes of four vectors, one after the other.
inline I8 to_i8(I32 a, I32 b, I32 c, I32 d) {
#if defined(__AVX512BW__) && PK_LANES == 16
  const __m512i ab = _mm512_packus_epi32((__m512i)(a & 255), (__m512i)(b & 255));
  const __m512i cd = _mm512_packus_epi32((__m512i)(c & 255), (__m512i)(d & 255));
  const I32 order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};  // packing takes turns at the quarters
  return (I8)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)order, _mm512_packus_epi16(ab, cd));
#elif defined(__AVX2__) && PK_LANES == 8
  const __m256i ab = _mm256_packus_epi32((__m256i)(a & 255), (__m256i)(b & 255));
  const __m256i cd = _mm256_packus_epi32((__m256i)(c & 255), (__m256i)(d & 255));
  const I32 order = {0, 4, 1, 5, 2, 6, 3, 7};  // as above, the halves
  return (I8)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), (__m256i)order);
#elif defined(PK_NEON)
  return (I8)neon::to_i8((int32x4_t)a, (int32x4_t)b, (int32x4_t)c, (int32x4_t)d);
#else
  I8 whole;
  const I8Quarter parts[4] = {to_i8(a), to_i8(b), to_i8(c), to_i8(d)};
  std::memcpy(&whole, parts, sizeof whole);
  return whole;
#endif
}

// The lanes of four vectors, plus add's words, as bytes: each 16 bytes are four of a, of b, of c and of d. Each step
// saturates.
inline I8 to_i8_quartered(I32 a, I32 b, I32 c, I32 d, I16 add) {
#if defined(__AVX512BW__) && PK_LANES == 16
  const __m512i ab = _mm512_adds_epi16(_mm512_packs_epi32((__m512i)a, (__m512i)b), (__m512i)add);
  const __m512i cd = _mm512_adds_epi16(_mm512_packs_epi32((__m512i)c, (__m512i)d), (__m512i)add);
  return (I8)_mm512_packs_epi16(ab, cd);
#elif defined(__AVX2__) && PK_LANES == 8
  const __m256i ab = _mm256_adds_epi16(_mm256_packs_epi32((__m256i)a, (__m256i)b), (__m256i)add);
  const __m256i cd = _mm256_adds_epi16(_mm256_packs_epi32((__m256i)c, (__m256i)d), (__m256i)add);
  return (I8)_mm256_packs_epi16(ab, cd);
#else
  const I32 from[4] = {a, b, c, d};
  I8 bytes;
  for (int i = 0; i < kVecBytes; ++i) {
    int32_t x = from[i / 4 % 4][i / 16 * 4 + i % 4];
    x = (x < -32768 ? -32768 : x > 32767 ? 32767 : x) + add[0];
    bytes[i] = static_cast<int8_t>(x < -128 ? -128 : x > 127 ? 127 : x);
  }
  return bytes;
#endif
}
// The same, one vector after the other.
inline I8 to_i8_saturated(I32 a, I32 b, I32 c, I32 d, I16 add) {
#if defined(__AVX512BW__) && PK_LANES == 16
  const I32 order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return (I8)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)order, (__m512i)to_i8_quartered(a, b, c, d, add));
#elif defined(__AVX2__) && PK_LANES == 8
  const I32 order = {0, 4, 1, 5, 2, 6, 3, 7};
  return (I8)_mm256_permutevar8x32_epi32((__m256i)to_i8_quartered(a, b, c, d, add), (__m256i)order);
#elif defined(PK_NEON)
  return (I8)neon::to_i8_saturated((int32x4_t)a, (int32x4_t)b, (int32x4_t)c, (int32x4_t)d, (int16x8_t)add);
#else
  const auto byte = [&](I32 x) {
    x = x < -32768 ? I32{} - 32768 : x > 32767 ? I32{} + 32767 : x;
    x += static_cast<int32_t>(add[0]);
    return x < -128 ? I32{} - 128 : x > 127 ? I32{} + 127 : x;
  };
  return to_i8(byte(a), byte(b), byte(c), byte(d));
#endif
}

// Four rows of bytes to groups of four, one of each row. Of each 16 columns vector v has the groups 4v to 4v + 3.
inline void interleave_quartered(const I8 (&row)[4], I8 (&to)[4]) {
#if defined(__AVX512BW__) && PK_LANES == 16
  const __m512i a = (__m512i)row[0], b = (__m512i)row[1], c = (__m512i)row[2], d = (__m512i)row[3];
  const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
  const __m512i low2 = _mm512_unpacklo_epi8(c, d), high2 = _mm512_unpackhi_epi8(c, d);
  to[0] = (I8)_mm512_unpacklo_epi16(low, low2), to[1] = (I8)_mm512_unpackhi_epi16(low, low2);
  to[2] = (I8)_mm512_unpacklo_epi16(high, high2), to[3] = (I8)_mm512_unpackhi_epi16(high, high2);
#else
  for (int i = 0; i < kVecBytes; ++i) {
    for (int r = 0; r < 4; ++r) to[i / 4 % 4][i / 16 * 16 + i % 4 * 4 + r] = row[r][i];
  }
#endif
}

// Of each 16 bytes of `table` those that the same 16 bytes of `index`, in [0, 16), name.
inline I8 pick(I8 table, I8 index) {
#if defined(__AVX512BW__) && PK_LANES == 16
  return (I8)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
#elif defined(__AVX2__) && PK_LANES == 8
  return (I8)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
#elif defined(PK_NEON)
  return (I8)vqtbl1q_s8((int8x16_t)table, (uint8x16_t)index);
#else
  I8 picked;
  for (int i = 0; i < kVecBytes; ++i) picked[i] = table[i / 16 * 16 + index[i]];
  return picked;
#endif
}

// acc[i] + a[2i] * b[2i] + a[2i+1] * b[2i+1], exact unless the sum leaves int32.
inline I32 dot2(I32 acc, I16 a, I16 b) {
#if defined(__AVX512VNNI__) && PK_LANES == 16
  return (I32)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__) && PK_LANES == 16
  return acc + (I32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && PK_LANES == 8
  return acc + (I32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && PK_LANES == 4
  return acc + (I32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(PK_NEON)
  return acc + (I32)neon::madd((int16x8_t)a, (int16x8_t)b);
#else
  const I32 x = bit_cast<I32>(a), y = bit_cast<I32>(b);
  return acc + (x >> 16) * (y >> 16) + ((x << 16) >> 16) * ((y << 16) >> 16);
#endif
}

// a[2i] * b[2i] + a[2i+1] * b[2i+1], a unsigned and b signed bytes, where that fits 16 bits.
inline I16 multiply_pairs(I8 a, I8 b) {
#if defined(__AVX2__) && PK_LANES == 8
  return (I16)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
  const I16 x = bit_cast<I16>(a), y = bit_cast<I16>(b);
  return (x & 255) * ((y << 8) >> 8) + ((x >> 8) & 255) * (y >> 8);
#endif
}

// Bit i: is lane i not 0?
inline unsigned lanes_set(I32 v) {
#if defined(__AVX2__) && PK_LANES == 8
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)(v != 0)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<unsigned>(v[i] != 0) << i;
  return bits;
#endif
}

// acc[i] + a[i] * b[i], both within 16 bits, b of what `factor` made: x86 is faster with words, ARM with 32 bits.
#if defined(PK_NEON)
inline int32_t factor(int32_t b) { return b; }
inline I32 multiply_add(I32 acc, I32 a, I32 b) { return acc + a * b; }
#else
inline int32_t factor(int32_t b) { return b & 0xffff; }
inline I32 multiply_add(I32 acc, I32 a, I32 b) { return dot2(acc, bit_cast<I16>(a), bit_cast<I16>(b)); }
#endif

// acc[i] + sum over j < 4 of a[4i+j] * b[4i+j], a unsigned (with kDot4Offset 0 signed) and b signed bytes, exact (no
// 16-bit saturation).
inline I32 dot4(I32 acc, I8 a, I8 b) {
#if defined(__AVX512VNNI__) && PK_LANES == 16
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__ARM_FEATURE_DOTPROD) && defined(PK_NEON)
  return (I32)vdotq_s32((int32x4_t)acc, (int8x16_t)a, (int8x16_t)b);
#else
  const I32 x = bit_cast<I32>(a), y = bit_cast<I32>(b);
  for (int shift = 0; shift < 32; shift += 8) acc += ((x >> shift) & 255) * ((y << (24 - shift)) >> 24);
  return acc;
#endif
}

// The four bytes or two words that every lane multiplies. ARM's dot product takes them from one lane of a register,
// which a plain load fills; to load and repeat them takes the unit that multiplies.
#if defined(__ARM_FEATURE_DOTPROD) && defined(PK_NEON)
using Repeated = int8x8_t;
inline Repeated repeated(int32_t x) { return vreinterpret_s8_s32(int32x2_t{x, 0}); }
inline I32 dot4(I32 acc, Repeated a, I8 b) { return (I32)vdotq_lane_s32((int32x4_t)acc, (int8x16_t)b, a, 0); }
inline I32 dot4(I32 acc, I8 a, Repeated b) { return dot4(acc, b, a); }
#else
using Repeated = I32;
inline Repeated repeated(int32_t x) { return broadcast(x); }
inline I32 dot4(I32 acc, Repeated a, I8 b) { return dot4(acc, bit_cast<I8>(a), b); }
inline I32 dot4(I32 acc, I8 a, Repeated b) { return dot4(acc, a, bit_cast<I8>(b)); }
#endif

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
