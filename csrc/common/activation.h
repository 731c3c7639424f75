// The activations: their codes, in the order of the Python tuple pykernels.ops.ACTIVATIONS, and their formulas, for the
// CPU's vectors, for CUDA's floats and for the native tests' doubles. A new one is an entry of the enumeration, of
// kActivations and of each switch.
#pragma once

#include <cstdint>

#include "common/rounding.h"

#ifdef __CUDACC__
#define PK_FORMULA static __device__ __forceinline__
#else
#define PK_FORMULA static inline __attribute__((always_inline))
#endif

namespace pk {

enum class Activation : int32_t {
  none,
  relu,
  leaky_relu,
  elu,
  sigmoid,
  tanh,
  silu,
  gelu,
  hardswish,
  relu6,
  hardsigmoid,
  mish,
  gelu_tanh,
  softplus
};

inline constexpr int kActivations = static_cast<int>(Activation::softplus) + 1;  // after the last

namespace {

// Whether the gradient depends only on the argument's sign, so that one bit holds it.
PK_HOST_DEVICE constexpr bool is_signed(Activation activation) {
  return activation == Activation::relu || activation == Activation::leaky_relu;
}

// How many constants an activation has that a caller may give for each channel, in the place of the usual ones:
// leaky_relu its slope, elu its factor below 0, silu and softplus the one of x in the exponent, relu6 its two bounds.
PK_HOST_DEVICE constexpr int parameters_of(Activation activation) {
  switch (activation) {
    case Activation::leaky_relu:
    case Activation::elu:
    case Activation::silu:
    case Activation::softplus:
      return 1;
    case Activation::relu6:
      return 2;
    default:
      return 0;
  }
}

// Math has the Value that is computed with, the Scalar of its constants, and of Values: min, max (a NaN in the second
// argument comes back), exp, expm1, sigmoid, tanh, normal_cdf, times_sigmoid(x, z) = x * sigmoid(z), and log1p_exp(x) =
// log(1 + exp(x)) for x <= 0. `negative_slope` is leaky_relu's. NaN stays NaN.
template <class Math>
struct ActivationOf {
  using V = typename Math::Value;
  using Scalar = typename Math::Scalar;

  PK_FORMULA V value(V x, Activation activation, Scalar negative_slope) {
    switch (activation) {
      case Activation::none:
        return x;
      case Activation::relu:
        return Math::max(V{}, x);
      case Activation::leaky_relu:
        return x > Scalar{0} ? x : x * negative_slope;
      case Activation::elu:
        return x > Scalar{0} ? x : Math::expm1(x);
      case Activation::sigmoid:
        return Math::sigmoid(x);
      case Activation::tanh:
        return Math::tanh(x);
      case Activation::silu:
        return Math::times_sigmoid(x, x);
      case Activation::gelu:
        return x * Math::normal_cdf(x);
      case Activation::hardswish:
        return x * upto6(x + Scalar{3}) * static_cast<Scalar>(1 / 6.0);
      case Activation::relu6:
        return upto6(x);
      case Activation::hardsigmoid:
        return upto6(x + Scalar{3}) * static_cast<Scalar>(1 / 6.0);
      case Activation::mish:
        return x * mish_gate(x);
      case Activation::gelu_tanh:
        return Math::times_sigmoid(x, gelu_argument(x));
      case Activation::softplus:
        return Math::max(V{}, x) + log1p_exp(x);
    }
    return x;
  }

  // The same with these constants, of which parameters_of(activation) count.
  PK_FORMULA V parametric(V x, Activation activation, V p, V q) {
    switch (activation) {
      case Activation::leaky_relu:
        return x > Scalar{0} ? x : x * p;
      case Activation::elu:
        return x > Scalar{0} ? x : p * Math::expm1(x);
      case Activation::silu:
        return Math::times_sigmoid(x, p * x);
      case Activation::softplus:
        return Math::max(V{}, x) + log1p_exp(p * x) / p;
      case Activation::relu6:
        return Math::min(q, Math::max(p, x));
      default:
        return x;
    }
  }

  // gy act'(x). At a kink torch's choice: relu's and hardswish's slopes are those from the left, leaky_relu's is
  // negative_slope.
  PK_FORMULA V gradient(V gy, V x, Activation activation, Scalar negative_slope) {
    switch (activation) {
      case Activation::none:
        return gy;
      case Activation::relu:
      case Activation::leaky_relu:
        return signed_gradient(gy, !(x <= Scalar{0}), activation, negative_slope);
      case Activation::elu:
        return gy * (x > Scalar{0} ? V{} + Scalar{1} : Math::exp(x));
      case Activation::sigmoid: {
        const V s = Math::sigmoid(x);
        return gy * (s * (Scalar{1} - s));
      }
      case Activation::tanh: {
        const V t = Math::tanh(x);
        return gy * (Scalar{1} - t * t);
      }
      case Activation::silu: {
        const V s = Math::sigmoid(x);
        return gy * (s * (Scalar{1} + x * (Scalar{1} - s)));
      }
      case Activation::gelu:  // the normal distribution and x times its density
        return gy * (Math::normal_cdf(x) +
                     x * static_cast<Scalar>(0.39894228040143268) * Math::exp(static_cast<Scalar>(-0.5) * x * x));
      case Activation::hardswish:
        return gy * (x < Scalar{-3}   ? V{}
                     : x <= Scalar{3} ? x * static_cast<Scalar>(1 / 3.0) + static_cast<Scalar>(0.5)
                                      : V{} + Scalar{1});
      case Activation::relu6:  // a NaN is neither below nor above
        return x <= Scalar{0} ? V{} : x >= Scalar{6} ? V{} : gy;
      case Activation::hardsigmoid:
        return x <= Scalar{-3} ? V{} : x >= Scalar{3} ? V{} : gy * static_cast<Scalar>(1 / 6.0);
      case Activation::mish: {
        const V gate = mish_gate(x);
        return gy * (gate + x * Math::sigmoid(x) * (Scalar{1} - gate * gate));
      }
      case Activation::gelu_tanh: {
        const V s = Math::sigmoid(gelu_argument(x));
        return gy * (s + x * s * (Scalar{1} - s) *
                             (static_cast<Scalar>(1.5957691216057308) + static_cast<Scalar>(0.21406431066) * x * x));
      }
      case Activation::softplus:
        return gy * Math::sigmoid(x);
    }
    return gy;
  }

  PK_FORMULA V upto6(V x) { return Math::min(V{} + Scalar{6}, Math::max(V{}, x)); }

  // tanh(log(1 + e^x)), which is n / (n + 2) with n = e^x (e^x + 2); beyond 20 it is 1.
  PK_FORMULA V mish_gate(V x) {
    const V e = Math::exp(Math::min(V{} + Scalar{20}, x)), n = e * (e + Scalar{2});
    return n / (n + Scalar{2});
  }

  // log(1 + e^-|x|), which softplus adds to what is above 0.
  PK_FORMULA V log1p_exp(V x) { return Math::log1p_exp(Math::min(-x, x)); }

  // z with (1 + tanh(z / 2)) / 2 = sigmoid(z): 2 sqrt(2 / pi) (x + 0.044715 x^3).
  PK_FORMULA V gelu_argument(V x) {
    return x * (static_cast<Scalar>(1.5957691216057308) + static_cast<Scalar>(0.071354816272600) * x * x);
  }

  // The gradient where is_signed, of an argument above 0, or NaN, and of any other. Not gy * 0: gy may be infinite.
  template <class Mask>
  PK_FORMULA V signed_gradient(V gy, Mask positive, Activation activation, Scalar negative_slope) {
    return positive ? gy : activation == Activation::relu ? V{} : gy * negative_slope;
  }
};

}  // namespace
}  // namespace pk
