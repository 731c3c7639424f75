// exp, sigmoid, tanh, the normal distribution function and log(1 + exp) on vectors; exact limits at +-inf, NaN stays
// NaN. Errors that vec_math_test holds them to, where the result is a normal float: exp 2 ulp on [-87, 88.7], sigmoid 4
// ulp on [-80, 80], tanh 3 ulp on [-12, 12], Phi 16 ulp on [-5, 8], most of it in the lower tail, log(1 + exp) 5 ulp on
// [-87, 0]. exp: Cody-Waite reduction to |r| <= ln2 / 2 and a degree-6 polynomial. tanh: odd minimax polynomial near 0
// (Cephes). Phi: its lower tail is a product, so that nothing cancels. Polynomials of many terms are two, of even and
// of odd powers, whose sums don't wait for each other.
#pragma once

#include "common/activation.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

// exp(x) as fraction * 2^n, |x| <= 104: the fraction, about sqrt(1/2) to sqrt(2), and n above some bits that (n + i) <<
// 23 shifts out.
struct Exponential {
  F32 fraction;
  U32 n;

  // fraction * 2^(n + i), which is 0 where n + i = -127, the least that it may be; the most is 127.
  __attribute__((always_inline)) F32 scaled(int32_t i) const {
    return fraction * bit_cast<F32>((n + static_cast<uint32_t>(127 + i)) << 23);
  }
};
PK_FORMULA Exponential split_exp(F32 x) {
  // Adding 1.5 * 2^23 leaves no bits behind the point, and the integer in the lowest ones.
  const F32 shifted = fma(x, broadcast(1.44269504f), broadcast(12582912.0f));
  const F32 n = shifted - 12582912.0f;
  F32 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return {fma(p * r, r, r + 1.0f), bit_cast<U32>(shifted)};
}

PK_FORMULA F32 exp(F32 x) {
  // Beyond the limits the result has overflowed to inf or underflowed to 0 anyway. Argument order keeps NaN.
  const Exponential e = split_exp(min(broadcast(89.0f), max(broadcast(-104.0f), x)));
  // 2^n in two factors: n reaches 128 and -150, each outside a float's exponent alone.
  const I32 whole = bit_cast<I32>(e.n << 9) >> 9, half = whole >> 1;
  return e.fraction * bit_cast<F32>((half + 127) << 23) * bit_cast<F32>((whole - half + 127) << 23);
}

// The same for x <= 88, and what would be less than 2^-126.5 is 0.
PK_FORMULA F32 exp_below(F32 x) { return split_exp(max(broadcast(-88.0f), x)).scaled(0); }

// log(1 + exp(x)) for x <= 0: with u = exp(x), u + u^2 q(u), q the polynomial of least relative error of the whole.
PK_FORMULA F32 log1p_exp(F32 x) {
  // 2^64 times what may be too small for a float's exponent, and no less than 2^-126.
  const F32 u = split_exp(max(broadcast(-104.0f), x)).scaled(64) * 5.42101086e-20f;
  const F32 u2 = u * u;
  F32 even = fma(u2, broadcast(-3.3184753265e-3f), broadcast(-5.7664465159e-2f));
  F32 odd = fma(u2, broadcast(2.0204596221e-2f), broadcast(1.0680557787e-1f));
  even = fma(even, u2, broadcast(-1.5355397761e-1f));
  odd = fma(odd, u2, broadcast(1.9695401191e-1f));
  even = fma(even, u2, broadcast(-2.4958588183e-1f));
  odd = fma(odd, u2, broadcast(3.3330512047e-1f));
  even = fma(even, u2, broadcast(-4.9999931455e-1f));
  return fma(u2, fma(odd, u, even), u);
}

// exp(x) - 1 for x <= 0. It cancels near 0; there x * (1 + x/2 (1 + x/3 (...))) does not.
PK_FORMULA F32 expm1(F32 x) {
  F32 p = broadcast(1.0f / 720.0f);
  p = fma(p, x, broadcast(1.0f / 120.0f));
  p = fma(p, x, broadcast(1.0f / 24.0f));
  p = fma(p, x, broadcast(1.0f / 6.0f));
  p = fma(p, x, broadcast(0.5f));
  const F32 near = fma(p * x, x, x);
  return x > -0.3f ? near : exp_below(x) - 1.0f;
}

// 1 + exp(x), by which sigmoid divides; inf where exp(x) overflows, of which half has an exponent.
PK_FORMULA F32 one_plus_exp(F32 x) {
  const F32 half = split_exp(min(broadcast(89.0f), max(broadcast(-87.0f), x))).scaled(-1);
  return fma(half, broadcast(2.0f), broadcast(1.0f));
}

PK_FORMULA F32 sigmoid(F32 x) { return 1.0f / one_plus_exp(-x); }

PK_FORMULA F32 tanh(F32 x) {
  const F32 z = x * x;
  F32 p = broadcast(-5.70498872745e-3f);
  p = fma(p, z, broadcast(2.06390887954e-2f));
  p = fma(p, z, broadcast(-5.37397155531e-2f));
  p = fma(p, z, broadcast(1.33314422036e-1f));
  p = fma(p, z, broadcast(-3.33332819422e-1f));
  const F32 near = x * fma(p, z, broadcast(1.0f));  // this way round -0 stays -0
  const F32 far = 1.0f - 2.0f / (exp_below(min(broadcast(80.0f), 2.0f * x)) + 1.0f);
  return abs(x) < 0.625f ? near : far;
}

// Phi(x) = P(N(0, 1) <= x); gelu(x) = x * Phi(x). For x < 0 exp(-x^2 / 2) t q(t) with t = 1 / (1 + 0.35 |x|): the
// exponential and the polynomial, of least relative error on |x| <= 14.5, depend on nothing of each other.
PK_FORMULA F32 normal_cdf(F32 x) {
  const F32 t = 1.0f / fma(abs(x), broadcast(0.35f), broadcast(1.0f)), t2 = t * t;
  F32 even = fma(t2, broadcast(-0.029157871692f), broadcast(-0.255838867031f));
  F32 odd = fma(t2, broadcast(0.144030852124f), broadcast(0.159319542285f));
  even = fma(even, t2, broadcast(-0.023212250695f));
  odd = fma(odd, t2, broadcast(0.105552460035f));
  even = fma(even, t2, broadcast(0.119821297987f));
  odd = fma(odd, t2, broadcast(0.139863514085f));
  even = fma(even, t2, broadcast(0.139621306915f));
  const F32 tail = t * fma(odd, t, even) * exp_below(x * x * -0.5f);
  return x < 0.0f ? tail : 1.0f - tail;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
