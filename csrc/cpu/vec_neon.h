// The parts of vec.h that want intrinsics on 64-bit ARM. Every such CPU has them, and 4 lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace pk {
namespace PK_ISA {
namespace {
namespace neon {

// g++ 12 has no intrinsic for isb or yield; a barrier takes about as long.
inline void pause() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

inline float32x4_t fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
inline float32x2_t fma(float32x2_t a, float32x2_t b, float32x2_t c) { return vfma_f32(c, a, b); }

// Four bytes, sign kept.
inline int32x4_t to_i32(uint32_t bytes) {
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(uint32x2_t{bytes, 0}))));
}

// The low bytes.
inline uint32_t to_i8(int32x4_t x) {
  const int8x16_t bytes = vreinterpretq_s8_s32(x), words = vuzp1q_s8(bytes, bytes);
  return vgetq_lane_u32(vreinterpretq_u32_s8(vuzp1q_s8(words, words)), 0);
}
inline int8x16_t to_i8(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  const int16x8_t ab = vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
  const int16x8_t cd = vuzp1q_s16(vreinterpretq_s16_s32(c), vreinterpretq_s16_s32(d));
  return vuzp1q_s8(vreinterpretq_s8_s16(ab), vreinterpretq_s8_s16(cd));
}
inline int8x16_t to_i8_saturated(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d, int16x8_t add) {
  const int16x8_t ab = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a), b), add);
  const int16x8_t cd = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(c), d), add);
  return vqmovn_high_s16(vqmovn_s16(ab), cd);
}

// a[2i] * b[2i] + a[2i+1] * b[2i+1].
inline int32x4_t madd(int16x8_t a, int16x8_t b) {
  return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}

// table[index], of 256 bytes. An index beyond its 64 gives 0, or keeps what is there.
inline int8x16_t look_up(const int8_t* table, uint8x16_t index) {
  int8x16_t y = vqtbl4q_s8(vld1q_s8_x4(table), index);
  for (int i = 1; i < 4; ++i) {
    y = vqtbx4q_s8(y, vld1q_s8_x4(table + 64 * i), vsubq_u8(index, vdupq_n_u8(static_cast<uint8_t>(64 * i))));
  }
  return y;
}

}  // namespace neon
}  // namespace
}  // namespace PK_ISA
}  // namespace pk
