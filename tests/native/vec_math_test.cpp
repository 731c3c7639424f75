// vec.h and vec_math.h as plain code of 16 lanes against double: the same source that every ISA compiles.
#define PK_ISA wide512_math
#define PK_LANES 16
#define PK_REGISTERS 32
#include "cpu/activate.h"
#include "test.h"

using namespace pk;
using namespace pk::wide512_math;

namespace {

using Function = F32 (*)(F32);
using Oracle = double (*)(double);

// Worst error in units of the last place over a grid of the interval, where the result is a normal float.
double worst_ulp(Function f, Oracle oracle, double low, double high) {
  double worst = 0;
  for (int i = 0; i <= 200000; i += kLanes) {
    float x[kLanes], y[kLanes];
    for (int j = 0; j < kLanes; ++j) x[j] = static_cast<float>(low + (high - low) * (i + j) / 200000.0);
    store(y, f(load<F32>(x)));
    for (int j = 0; j < kLanes; ++j) {
      const double expected = oracle(x[j]);
      if (std::fabs(expected) < 1.2e-38) continue;
      const double ulp = std::ldexp(1.0, std::ilogb(expected) - 23);
      worst = std::fmax(worst, std::fabs(y[j] - expected) / ulp);
    }
  }
  return worst;
}

float at(Function f, float x) {
  float y[kLanes];
  store(y, f(broadcast(x)));
  return y[0];
}

}  // namespace

int main() {
  const double e = worst_ulp(exp, std::exp, -87, 88.7),
               s = worst_ulp(
                   sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80),
               t = worst_ulp(tanh, std::tanh, -12, 12);
  EXPECT(e < 2, "exp: %g ulp", e);
  EXPECT(s < 4, "sigmoid: %g ulp", s);
  EXPECT(t < 3, "tanh: %g ulp", t);
  const double c = worst_ulp(normal_cdf, [](double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }, -5, 8);
  EXPECT(c < 16, "normal_cdf: %g ulp", c);
  const double l = worst_ulp(log1p_exp, [](double x) { return std::log1p(std::exp(x)); }, -87, 0);
  EXPECT(l < 5, "log1p_exp: %g ulp", l);

  const float inf = INFINITY, nan = NAN;
  EXPECT(at(exp, inf) == inf && at(exp, -inf) == 0 && std::isnan(at(exp, nan)), "exp");
  EXPECT(at(sigmoid, inf) == 1 && at(sigmoid, -inf) == 0 && std::isnan(at(sigmoid, nan)), "sigmoid");
  EXPECT(at(tanh, inf) == 1 && at(tanh, -inf) == -1 && std::isnan(at(tanh, nan)), "tanh");
  EXPECT(std::signbit(at(tanh, -0.0f)), "tanh(-0)");
  EXPECT(at(normal_cdf, inf) == 1 && at(normal_cdf, -inf) == 0 && std::isnan(at(normal_cdf, nan)), "normal_cdf");
  EXPECT(at(log1p_exp, -inf) == 0 && std::isnan(at(log1p_exp, nan)), "log1p_exp");
  EXPECT(std::fabs(at(log1p_exp, -95) - std::exp(-95.0)) < 3e-45, "log1p_exp below the normal floats");

  // bfloat16: nearest even, NaN stays NaN, infinity stays.
  const float values[] = {1.0f, 1.00390625f, 1.01171875f, -3.3e38f, nan, inf, 1e-40f, -0.0f};
  const uint16_t expected[] = {0x3f80, 0x3f80, 0x3f82, 0xff78, 0x7fc0, 0x7f80, 0x0001, 0x8000};
  for (int i = 0; i < 8; ++i) {
    uint16_t out[kLanes];
    store_bf16(out, broadcast(values[i]));
    EXPECT(out[0] == expected[i] || (std::isnan(values[i]) && (out[0] & 0x7fff) > 0x7f80), "bf16(%g) = %04x", values[i],
           out[0]);
  }

  // Integer dot products at the extremes.
  I16 a16, b16;
  I8 a8, b8;
  for (int i = 0; i < 2 * kLanes; ++i) a16[i] = -128, b16[i] = i % 2 ? -128 : 127;
  for (int i = 0; i < 4 * kLanes; ++i) a8[i] = -1, b8[i] = i % 4 ? -128 : 127;
  EXPECT(dot2(broadcast(7), a16, b16)[3] == 7 + 128 * 128 - 128 * 127, "dot2");
  EXPECT(dot4(broadcast(7), a8, b8)[3] == 7 + 255 * (127 - 3 * 128), "dot4");
  return test::finish();
}
