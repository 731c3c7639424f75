// sigmoid and tanh whose bits are the same on every ISA and in pykernels/ops/int8_lstm/reference.py: vec_math.h's
// formulas, with a rounding after each multiplication and each addition. A state that differed in its last bit could
// round to another int8 at the next step. Errors: sigmoid 5 ulp on [-80, 80], tanh 4 ulp on [-12, 12].
#pragma once

#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

// exp(x) as fraction * 2^n for |x| <= 89.
struct ExactExponential {
  F32 fraction;
  U32 n;  // above some bits that are shifted out

  // fraction * 2^(n + i), which is 0 where n + i = -127, the least that it may be; the most is 127.
  F32 scaled(int32_t i) const { return fraction * bit_cast<F32>((n + static_cast<uint32_t>(127 + i)) << 23); }
};
inline ExactExponential exact_exp(F32 x) {
  // Adding 1.5 * 2^23 leaves no bits behind the point, and the integer in the lowest ones.
  const F32 shifted = x * 1.44269504f + 12582912.0f;
  const F32 n = shifted - 12582912.0f;
  const F32 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F32 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return {(p * r) * r + (r + 1.0f), bit_cast<U32>(shifted)};
}

inline F32 exact_sigmoid(F32 x) {
  // exp(-x) / 2 has an exponent where exp(-x) overflows. The order of arguments keeps NaN.
  const F32 half = exact_exp(min(broadcast(89.0f), max(broadcast(-87.0f), -x))).scaled(-1);
  return 1.0f / (half * 2.0f + 1.0f);
}

inline F32 exact_tanh(F32 x) {
  const F32 z = x * x;
  F32 p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  const F32 near = x * (p * z + 1.0f);
  const F32 far = 1.0f - 2.0f / (exact_exp(min(broadcast(80.0f), max(broadcast(-88.0f), x * 2.0f))).scaled(0) + 1.0f);
  return abs(x) < 0.625f ? near : far;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
