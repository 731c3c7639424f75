// The activations on a vector: what every epilogue ends with.
#pragma once

#include "cpu/vec_math.h"
#include "pykernels/activation.h"

namespace pk {
namespace PK_ISA {
namespace {

// A function of its argument alone; `negative_slope` is leaky_relu's. Comparisons keep NaN as torch does.
inline F32 activate(F32 x, Activation activation, float negative_slope) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return max(F32{}, x);
    case Activation::leaky_relu:
      return x > 0.0f ? x : x * negative_slope;
    case Activation::elu: {
      // exp(x) - 1 cancels near 0; there x * (1 + x/2 (1 + x/3 (...))) does not.
      F32 p = broadcast(1.0f / 720.0f);
      p = fma(p, x, broadcast(1.0f / 120.0f));
      p = fma(p, x, broadcast(1.0f / 24.0f));
      p = fma(p, x, broadcast(1.0f / 6.0f));
      p = fma(p, x, broadcast(0.5f));
      const F32 near = fma(p * x, x, x);
      return x > 0.0f ? x : x > -0.3f ? near : exp(x) - 1.0f;
    }
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::tanh:
      return tanh(x);
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return x * normal_cdf(x);
    case Activation::hardswish:
      return x * min(broadcast(6.0f), max(F32{}, x + 3.0f)) * (1.0f / 6.0f);
  }
  return x;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
