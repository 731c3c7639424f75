// What cvt.rna.tf32.f32 makes of a float, for the references of tests: 10 bits of fraction, ties away from zero.
#pragma once

#include <bit>
#include <cstdint>

namespace pk {

inline float to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000) == 0x7f800000) return x;  // NaN and infinity
  return std::bit_cast<float>((bits + 0x1000) & 0xffffe000);
}

}  // namespace pk
