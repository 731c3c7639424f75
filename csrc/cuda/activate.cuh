// The activations of every epilogue, in float32. NaN stays NaN, as in torch.
#pragma once

#include "cuda/platform.cuh"
#include "pykernels/activation.h"

namespace pk::cuda {

PK_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// A function of its argument alone; `negative_slope` is leaky_relu's. The switch is uniform over the grid.
PK_DEVICE float activate(float x, Activation activation, float negative_slope) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;
    case Activation::leaky_relu:
      return x > 0.0f ? x : x * negative_slope;
    case Activation::elu:
      return x > 0.0f ? x : expm1f(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::tanh:
      return tanhf(x);
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return x * normcdff(x);
    case Activation::hardswish: {
      const float y = x + 3.0f;
      return x * (y < 0.0f ? 0.0f : y > 6.0f ? 6.0f : y) * (1.0f / 6.0f);
    }
  }
  return x;
}

}  // namespace pk::cuda
