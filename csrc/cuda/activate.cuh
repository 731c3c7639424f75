// The activations of every epilogue, in float32.
#pragma once

#include "common/activation.h"
#include "cuda/platform.cuh"

namespace pk::cuda {

PK_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct FloatMath {
  using Value = float;
  using Scalar = float;
  static PK_DEVICE float min(float a, float b) { return a < b ? a : b; }
  static PK_DEVICE float max(float a, float b) { return a > b ? a : b; }
  static PK_DEVICE float exp(float x) { return expf(x); }
  static PK_DEVICE float expm1(float x) { return expm1f(x); }
  static PK_DEVICE float sigmoid(float x) { return cuda::sigmoid(x); }
  static PK_DEVICE float times_sigmoid(float x, float z) { return x * cuda::sigmoid(z); }
  static PK_DEVICE float tanh(float x) { return tanhf(x); }
  static PK_DEVICE float normal_cdf(float x) { return normcdff(x); }
  // log(1 + u), which is 2 artanh(z) with z = u / (2 + u), at most 1/3: what the series leaves out is less than 2^-26
  // of it.
  static PK_DEVICE float log1p_exp(float x) {
    const float u = expf(x), z = u / (u + 2.0f), s = z * z;
    float sum = 1 / 13.0f;
    sum = sum * s + 1 / 11.0f;
    sum = sum * s + 1 / 9.0f;
    sum = sum * s + 1 / 7.0f;
    sum = sum * s + 1 / 5.0f;
    sum = sum * s + 1 / 3.0f;
    return (z + z) * (sum * s + 1.0f);
  }
};

// `negative_slope` is leaky_relu's. The switch is uniform over the grid.
PK_DEVICE float activate(float x, Activation activation, float negative_slope) {
  return ActivationOf<FloatMath>::value(x, activation, negative_slope);
}

}  // namespace pk::cuda
