// What the tests of conv_bn_act on every device share: arrays in all memory formats, the shapes, and the naive loop.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "activated.h"
#include "elements.h"
#include "pykernels/conv_bn_act.h"
#include "test.h"

namespace pk::conv_test {

struct Case {
  ConvShape shape;
  bool scale, shift, residual;
};

// Tails of every kind: pixels, output channels, input channel slices; strides, dilations, asymmetric padding, groups.
inline const Case kCases[] = {
    {{1, 64, 9, 10, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true},
    {{2, 3, 21, 19, 20, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1}, true, true, false},    // merged filter rows
    {{1, 3, 9, 7, 5, 3, 3, 1, 2, 0, 2, 1, 0, 1, 1, 1}, false, true, true},       // the same, asymmetric
    {{2, 1, 12, 13, 33, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, false, true, false},   // one channel
    {{2, 2, 12, 13, 7, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 1}, true, false, true},     // dilation, so nothing merged
    {{3, 17, 5, 11, 33, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},     // 1 x 1
    {{1, 600, 3, 3, 40, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, false},    // several slices
    {{1, 130, 4, 4, 100, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, false, false, true},  // several slices of 9 taps
    {{2, 40, 9, 11, 24, 3, 2, 2, 1, 2, 1, 0, 3, 1, 2, 1}, true, true, true},     // all different
    {{1, 16, 11, 9, 24, 1, 1, 2, 3, 0, 0, 0, 0, 1, 1, 1}, true, true, false},    // 1 x 1, strided
    {{1, 10, 6, 6, 10, 1, 1, 1, 1, 1, 0, 2, 1, 1, 1, 1}, true, true, false},     // 1 x 1, padded
    {{2, 8, 7, 7, 12, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2}, true, true, true},       // groups
    {{1, 36, 7, 5, 99, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3}, false, true, true},     // groups with panel tails
    {{2, 19, 9, 17, 19, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 19}, true, true, true},    // depthwise
    {{1, 32, 17, 33, 32, 5, 3, 2, 1, 2, 0, 1, 3, 1, 3, 32}, true, true, false},  // depthwise, all different
    {{2, 12, 9, 9, 36, 3, 3, 1, 2, 1, 1, 1, 1, 1, 1, 12}, true, true, true},     // depthwise, three filters each
    {{1, 4, 3, 3, 6, 3, 3, 1, 1, 4, 4, 4, 4, 1, 1, 1}, false, true, false},      // pixels of padding alone
    {{1, 70, 25, 26, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true},    // several blocks of pixels
    {{1, 8, 1, 2, 9, 3, 3, 1, 1, 1, 2, 1, 0, 1, 1, 1}, true, true, true},        // less than a tile, asymmetric
    {{2, 40, 11, 9, 72, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, false, true},    // no padding, five panels
    {{3, 33, 8, 12, 17, 3, 3, 1, 1, 2, 0, 1, 2, 1, 1, 1}, true, true, true},     // asymmetric, whole tiles
    {{2, 256, 46, 46, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, false},   // images too large to copy at once
    {{0, 8, 5, 5, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true},        // no image
    {{2, 0, 5, 5, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true},        // no channel: the empty sum
};

enum class Format { nchw, nhwc, gaps };  // gaps: NHWC with unused channels and pixels between the used ones

// A four-dimensional array in some format, not a byte longer than its last element; what it does not use holds a number
// of no array's (a NaN, of i8 77) and must keep it.
template <class Bytes>
struct ArrayIn {
  int64_t size[4], stride[4];
  test::Elements<Bytes> elements;

  ArrayIn(std::initializer_list<int64_t> sizes, DType dtype, Format format)
      : ArrayIn(lay_out(sizes.begin(), format), dtype) {}
  void* data() { return elements.data(); }
  ConvTensor tensor() { return {data(), {stride[0], stride[1], stride[2], stride[3]}}; }
  size_t at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return static_cast<size_t>(n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]);
  }
  float get(int64_t n, int64_t c, int64_t h, int64_t w) const { return elements[at(n, c, h, w)]; }
  void set(int64_t n, int64_t c, int64_t h, int64_t w, float value) { elements.set(at(n, c, h, w), value); }
  template <class F>
  void each(F f) const {
    for (int64_t n = 0; n < size[0]; ++n)
      for (int64_t c = 0; c < size[1]; ++c)
        for (int64_t h = 0; h < size[2]; ++h)
          for (int64_t w = 0; w < size[3]; ++w) f(n, c, h, w);
  }
  void fill(unsigned seed, float deviation = 1.0f) {
    const auto values = test::normal(static_cast<size_t>(size[0] * size[1] * size[2] * size[3]), seed, deviation);
    size_t i = 0;
    each([&](int64_t n, int64_t c, int64_t h, int64_t w) { set(n, c, h, w, values[i++]); });
  }
  std::vector<float> values() const {
    std::vector<float> v;
    each([&](int64_t n, int64_t c, int64_t h, int64_t w) { v.push_back(get(n, c, h, w)); });
    return v;
  }
  bool gaps_untouched() const {
    std::vector<char> used(elements.size(), 0);
    each([&](int64_t n, int64_t c, int64_t h, int64_t w) { used[at(n, c, h, w)] = 1; });
    for (size_t i = 0; i < used.size(); ++i) {
      if (!used[i] && !is_unused(elements[i])) return false;
    }
    return true;
  }

 private:
  struct Layout {
    int64_t size[4], stride[4], elements;
  };
  static Layout lay_out(const int64_t* sizes, Format format) {
    Layout l = {{sizes[0], sizes[1], sizes[2], sizes[3]}, {}, 1};
    const int64_t c = sizes[1], h = sizes[2], w = sizes[3], gap = format == Format::gaps ? 3 : 0;
    if (format == Format::nchw) {
      l.stride[3] = 1, l.stride[2] = w, l.stride[1] = h * w, l.stride[0] = c * h * w;
    } else {
      l.stride[1] = 1, l.stride[3] = c + gap, l.stride[2] = (w + gap) * l.stride[3];
      l.stride[0] = (h + gap) * l.stride[2];
    }
    for (int i = 0; i < 4; ++i) l.elements += (sizes[i] - 1) * l.stride[i];
    if (sizes[0] * c * h * w == 0) l.elements = 0;
    return l;
  }
  ArrayIn(const Layout& l, DType dtype) : elements(dtype, static_cast<size_t>(l.elements)) {
    std::copy(l.size, l.size + 4, size);
    std::copy(l.stride, l.stride + 4, stride);
    for (size_t i = 0; i < elements.size(); ++i) elements.set(i, dtype == DType::i8 ? 77.0f : NAN);
  }
  bool is_unused(float x) const { return elements.dtype() == DType::i8 ? x == 77 : std::isnan(x); }
};

// The sums of the products alone, in (n, k, p, q) order: each tap of each filter for all pixels, as they lie in a row.
template <class Array>
std::vector<double> naive_sums(const ConvShape& s, const Array& x, const Array& weight) {
  const int64_t c_group = s.c / s.groups, k_group = s.k / s.groups, p_all = s.p(), q_all = s.q();
  const std::vector<float> image = x.values(), filters = weight.values();
  std::vector<double> sums(static_cast<size_t>(s.n * s.k * p_all * q_all));
  const float* tap = filters.data();
  for (int64_t k = 0; k < s.k; ++k)
    for (int64_t c = 0; c < c_group; ++c)
      for (int64_t i = 0; i < s.r; ++i)
        for (int64_t j = 0; j < s.s; ++j, ++tap)
          for (int64_t n = 0; n < s.n; ++n)
            for (int64_t p = 0; p < p_all; ++p) {
              const int64_t h = p * s.stride_h - s.pad_top + i * s.dilation_h;
              if (h < 0 || h >= s.h) continue;
              const float* const row = image.data() + ((n * s.c + k / k_group * c_group + c) * s.h + h) * s.w;
              double* const to = sums.data() + ((n * s.k + k) * p_all + p) * q_all;
              const double factor = *tap;
              for (int64_t q = 0; q < q_all; ++q) {
                const int64_t w = q * s.stride_w - s.pad_left + j * s.dilation_w;
                if (w >= 0 && w < s.w) to[q] += factor * row[w];
              }
            }
  return sums;
}

// In (n, k, p, q) order.
template <class Array>
std::vector<double> naive(const ConvArgs& args, const Array& x, const Array& weight, const Array& residual) {
  const ConvShape& s = args.shape;
  std::vector<double> y = naive_sums(s, x, weight);
  double* at = y.data();
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t k = 0; k < s.k; ++k)
      for (int64_t p = 0; p < s.p(); ++p)
        for (int64_t q = 0; q < s.q(); ++q) {
          double sum = *at;
          if (args.scale) sum *= args.scale[k];
          if (args.shift) sum += args.shift[k];
          if (args.residual.data) sum += residual.get(n, k, p, q);
          *at++ = args.parameters ? test::activated(sum, args.activation, args.parameters[k],
                                                    parameters_of(args.activation) > 1 ? args.parameters[s.k + k] : 0)
                                  : test::activated(sum, args.activation, args.negative_slope);
        }
  return y;
}

// A call's arrays, filled, and its arguments: y is act(conv(x, weight)) until a test asks for more.
template <class Bytes>
struct CallIn {
  using Array = ArrayIn<Bytes>;
  Array weight, x, residual, y;
  ConvArgs args{};

  CallIn(const ConvShape& s, DType dtype, Format format = Format::nhwc, unsigned seed = 1,
         Format weights = Format::nchw)
      : weight({s.k, s.c / s.groups, s.r, s.s}, dtype, weights),
        x({s.n, s.c, s.h, s.w}, dtype, format),
        residual({s.n, s.k, s.p(), s.q()}, dtype, format),
        y({s.n, s.k, s.p(), s.q()}, dtype, format) {
    weight.fill(seed), x.fill(seed + 3), residual.fill(seed + 4);
    args.shape = s;
    args.dtype = dtype;
    args.x = x.tensor();
    args.y = y.data();
    std::copy(y.stride, y.stride + 4, args.y_stride);
  }
  std::vector<double> expected() const { return naive(args, x, weight, residual); }
};

// Of a 3 x 3 filter and an infinity at (3, 4) and a NaN at (7, 8) of channel 2: they stay within the pixels and
// channels that they touch, and padding, padded channels and other groups contribute none. `split`: an infinity may
// turn NaN.
template <class Bytes>
void set_special_values(CallIn<Bytes>* call) {
  call->x.set(0, 2, 3, 4, INFINITY);
  call->x.set(0, 2, 7, 8, NAN);
}
template <class Bytes>
void expect_special_values(const CallIn<Bytes>& call, const char* what, bool split = false) {
  const ConvShape& s = call.args.shape;
  call.y.each([&](int64_t n, int64_t k, int64_t p, int64_t q) {
    const bool of_group = k / (s.k / s.groups) == 2 / (s.c / s.groups);
    const bool infinite = of_group && std::abs(p - 3) <= 1 && std::abs(q - 4) <= 1;
    const bool nan = of_group && std::abs(p - 7) <= 1 && std::abs(q - 8) <= 1;
    const float v = call.y.get(n, k, p, q);
    EXPECT(infinite ? (split ? !std::isfinite(v) : std::isinf(v))
           : nan    ? std::isnan(v)
                    : std::isfinite(v),
           "%s, groups %d: (%d, %d, %d): %g", what, static_cast<int>(s.groups), static_cast<int>(k),
           static_cast<int>(p), static_cast<int>(q), v);
  });
}

}  // namespace pk::conv_test
