// exp, sigmoid, tanh and the normal distribution function on vectors; exact limits at +-inf, NaN stays NaN. Errors that
// vec_math_test holds them to, where the result is a normal float: exp 2 ulp on [-87, 88.7], sigmoid 4 ulp on [-80,
// 80], tanh 3 ulp on [-12, 12], Phi 40 ulp on [-5, 8], most of it in the lower tail. exp: Cody-Waite reduction to |r|
// <= ln2 / 2 and a degree-6 polynomial. tanh: odd minimax polynomial near 0 (Cephes). Phi: erfc by the Chebyshev fit of
// Numerical Recipes (relative error 1.2e-7), so that its tails don't cancel.
#pragma once

#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

inline F32 exp(F32 x) {
  // Beyond the limits the result has overflowed to inf or underflowed to 0 anyway. Argument order keeps NaN.
  x = min(broadcast(89.0f), max(broadcast(-104.0f), x));
  const F32 n = round(x * 1.44269504f);
  F32 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p * r, r, r + 1.0f);
  // 2^n in two factors: n reaches 128 and -150, each outside a float's exponent alone.
  const I32 whole = truncate(n), half = whole >> 1;
  return p * bit_cast<F32>((half + 127) << 23) * bit_cast<F32>((whole - half + 127) << 23);
}

// exp(x) - 1 for x <= 0. It cancels near 0; there x * (1 + x/2 (1 + x/3 (...))) does not.
inline F32 expm1(F32 x) {
  F32 p = broadcast(1.0f / 720.0f);
  p = fma(p, x, broadcast(1.0f / 120.0f));
  p = fma(p, x, broadcast(1.0f / 24.0f));
  p = fma(p, x, broadcast(1.0f / 6.0f));
  p = fma(p, x, broadcast(0.5f));
  const F32 near = fma(p * x, x, x);
  return x > -0.3f ? near : exp(x) - 1.0f;
}

inline F32 sigmoid(F32 x) { return 1.0f / (1.0f + exp(-x)); }

inline F32 tanh(F32 x) {
  const F32 z = x * x;
  F32 p = broadcast(-5.70498872745e-3f);
  p = fma(p, z, broadcast(2.06390887954e-2f));
  p = fma(p, z, broadcast(-5.37397155531e-2f));
  p = fma(p, z, broadcast(1.33314422036e-1f));
  p = fma(p, z, broadcast(-3.33332819422e-1f));
  const F32 near = x * fma(p, z, broadcast(1.0f));  // this way round -0 stays -0
  const F32 far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
  return abs(x) < 0.625f ? near : far;
}

// Phi(x) = P(N(0, 1) <= x) = erfc(-x / sqrt 2) / 2; gelu(x) = x * Phi(x).
inline F32 normal_cdf(F32 x) {
  const F32 z = abs(x) * 0.70710678f;
  const F32 t = 1.0f / fma(z, broadcast(0.5f), broadcast(1.0f));
  F32 p = broadcast(0.17087277f);
  p = fma(p, t, broadcast(-0.82215223f));
  p = fma(p, t, broadcast(1.48851587f));
  p = fma(p, t, broadcast(-1.13520398f));
  p = fma(p, t, broadcast(0.27886807f));
  p = fma(p, t, broadcast(-0.18628806f));
  p = fma(p, t, broadcast(0.09678418f));
  p = fma(p, t, broadcast(0.37409196f));
  p = fma(p, t, broadcast(1.00002368f));
  p = fma(p, t, broadcast(-1.26551223f));
  const F32 tail = 0.5f * t * exp(p - z * z);
  return x < 0.0f ? tail : 1.0f - tail;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
