// The activations on vectors: what every epilogue ends with.
#pragma once

#include "cpu/vec_math.h"

namespace pk {
namespace PK_ISA {
namespace {

struct VectorMath {
  using Value = F32;
  using Scalar = float;
  PK_FORMULA F32 min(F32 a, F32 b) { return PK_ISA::min(a, b); }
  PK_FORMULA F32 max(F32 a, F32 b) { return PK_ISA::max(a, b); }
  PK_FORMULA F32 exp(F32 x) { return PK_ISA::exp(x); }
  PK_FORMULA F32 expm1(F32 x) { return PK_ISA::expm1(x); }
  PK_FORMULA F32 sigmoid(F32 x) { return PK_ISA::sigmoid(x); }
  PK_FORMULA F32 times_sigmoid(F32 x, F32 z) { return x / one_plus_exp(-z); }
  PK_FORMULA F32 tanh(F32 x) { return PK_ISA::tanh(x); }
  PK_FORMULA F32 normal_cdf(F32 x) { return PK_ISA::normal_cdf(x); }
  PK_FORMULA F32 log1p_exp(F32 x) { return PK_ISA::log1p_exp(x); }
};

// `negative_slope` is leaky_relu's.
PK_FORMULA F32 activate(F32 x, Activation activation, float negative_slope) {
  return ActivationOf<VectorMath>::value(x, activation, negative_slope);
}

// With constants of the activation's own: its first and second, as parameters_of counts them.
PK_FORMULA F32 activate(F32 x, Activation activation, F32 p, F32 q) {
  return ActivationOf<VectorMath>::parametric(x, activation, p, q);
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
