// Plain loops for the int8 family and the shapes that every device's kernels are tried on.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "pykernels/int8_matmul.h"
#include "test.h"

namespace pk::test {

// (m, n, k): empty, one, and tails of every blocking.
inline constexpr int64_t kInt8Sizes[][3] = {{0, 3, 5},      {3, 0, 5},     {3, 5, 0},    {1, 1, 1},      {1, 45, 70},
                                            {2, 16, 4},     {5, 17, 3},    {6, 32, 512}, {7, 33, 13},    {13, 40, 515},
                                            {16, 96, 1030}, {25, 300, 64}, {97, 50, 31}, {200, 70, 530}, {3, 200, 131},
                                            {4, 67, 1027},  {40, 33, 1600}};

// (outer, channels, inner)
inline constexpr int64_t kQuantizeSizes[][3] = {{1, 1, 100003}, {1, 1, 3}, {1, 5, 77}, {3, 4, 19}, {9, 41, 1}};

// extremes: -128 and 127 only.
inline std::vector<int8_t> random_bytes(size_t n, unsigned seed, bool extremes) {
  std::mt19937 generator(seed);
  std::vector<int8_t> v(n);
  for (int8_t& x : v) {
    const auto random = static_cast<int>(generator() % 256) - 128;
    x = static_cast<int8_t>(extremes ? (random % 2 ? -128 : 127) : random);
  }
  return v;
}

inline std::vector<int32_t> zero_points(int64_t m) {
  std::vector<int32_t> zero(static_cast<size_t>(m));
  for (size_t i = 0; i < zero.size(); ++i) zero[i] = i % 3 == 0 ? -128 : static_cast<int32_t>(i % 256) - 128;
  return zero;
}

// sum_k (a[k] - zero) * b[k]; strides in elements.
inline int64_t int8_sum(const int8_t* a, int64_t stride_a, const int8_t* b, int64_t stride_b, int64_t k, int64_t zero) {
  int64_t sum = 0;
  for (int64_t x = 0; x < k; ++x) sum += (a[x * stride_a] - zero) * b[x * stride_b];
  return sum;
}

// How many of the sums that `p` has written to its int32 output are wrong; b is what was packed, if it was.
inline int64_t wrong_sums(const Int8MatmulArgs& p, const int8_t* b) {
  const auto* const a = static_cast<const int8_t*>(p.a);
  int64_t wrong = 0;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      const int64_t zero = p.a_zero_point ? p.a_zero_point[i * p.a_zero_point_stride] : 0;
      const int64_t sum = int8_sum(a + i * p.a_stride_m, p.a_stride_k, b + j * p.b_stride_n, p.b_stride_k, p.k, zero);
      wrong += sum != static_cast<const int32_t*>(p.out)[i * p.n + j];
    }
  }
  return wrong;
}

// To nearest even, saturated; NaN gives 0.
inline float rounded_to_int8(float y, float lowest) {
  return y != y ? 0.0f : std::fmin(127.0f, std::fmax(lowest, std::nearbyint(y)));
}

struct Quantized {
  std::vector<float> scale, zero_point, q;  // (channels), (channels), as x
};

// x: (outer, channels, inner)
inline Quantized quantize_reference(const std::vector<float>& x, int64_t channels, int64_t inner, bool symmetric) {
  const auto c = static_cast<size_t>(channels), n = static_cast<size_t>(inner);
  Quantized r = {std::vector<float>(c), std::vector<float>(c), std::vector<float>(x.size())};
  for (size_t ch = 0; ch < c; ++ch) {
    const auto in_channel = [&](size_t i) { return i / n % c == ch; };
    float low = 0, high = 0;
    bool nan = false;
    for (size_t i = 0; i < x.size(); ++i) {
      if (in_channel(i)) low = std::fmin(low, x[i]), high = std::fmax(high, x[i]), nan |= x[i] != x[i];
    }
    float scale = symmetric ? std::fmax(-low, high) / 127.0f : high / 255.0f - low / 255.0f, zero = 0;
    if (nan) scale = NAN;
    if (!symmetric && scale > 0 && std::isfinite(scale)) zero = rounded_to_int8(-128.0f - low / scale, -128);
    if (scale == 0) scale = 1;
    r.scale[ch] = scale, r.zero_point[ch] = zero;
    for (size_t i = 0; i < x.size(); ++i) {
      if (!in_channel(i)) continue;
      const float steps = x[i] / scale;
      r.q[i] = rounded_to_int8((steps != steps ? 0 : std::nearbyint(steps)) + zero, symmetric ? -127.0f : -128.0f);
    }
  }
  return r;
}

// x: what was quantised. Q, Scales, Zeros: arrays of int8_t, float, int32_t.
template <class Q, class Scales, class Zeros>
void expect_quantized(const Quantized& expected, const std::vector<float>& x, const Q& q, const Scales& scale,
                      const Zeros& zero) {
  for (size_t ch = 0; ch < expected.scale.size(); ++ch) {
    const float e = expected.scale[ch];
    EXPECT((e != e ? scale[ch] != scale[ch] : scale[ch] == e) && zero[ch] == static_cast<int>(expected.zero_point[ch]),
           "channel %zu: scale %g for %g, zero point %d for %g", ch, scale[ch], e, zero[ch], expected.zero_point[ch]);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT(static_cast<float>(q[i]) == expected.q[i], "x %g: q %d for %g", x[i], q[i], expected.q[i]);
  }
}

}  // namespace pk::test
