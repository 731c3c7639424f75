// The activations in double, of the kernels' own table: what is tested with it is how a kernel applies them, and the
// gradients, by differences. That the formulas are right is for pytest to show, which has PyTorch to compare with.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/activation.h"

namespace pk::test {

struct DoubleMath {
  using Value = double;
  using Scalar = double;
  static double min(double a, double b) { return a < b ? a : b; }
  static double max(double a, double b) { return a > b ? a : b; }
  static double exp(double x) { return std::exp(x); }
  static double expm1(double x) { return std::expm1(x); }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  static double times_sigmoid(double x, double z) { return x * sigmoid(z); }
  static double tanh(double x) { return std::tanh(x); }
  static double normal_cdf(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }
  static double log1p_exp(double x) { return std::log1p(std::exp(x)); }
};

inline double activated(double x, Activation activation, double negative_slope) {
  return ActivationOf<DoubleMath>::value(x, activation, negative_slope);
}

// With constants of the activation's own.
inline double activated(double x, Activation activation, double p, double q) {
  return ActivationOf<DoubleMath>::parametric(x, activation, p, q);
}

}  // namespace pk::test
