// What the tests of conv_bn_act on every device share: arrays in all memory formats, the shapes, and the naive loop.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "activated.h"
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

inline float from_bf16(bf16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline bf16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<bf16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float from_f16(uint16_t x) { return static_cast<float>(std::bit_cast<_Float16>(x)); }
inline uint16_t to_f16(float x) { return std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }
// To nearest even, saturated.
inline int8_t to_i8(float x) { return static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(x, -128.0f), 127.0f))); }

enum class Format { nchw, nhwc, gaps };  // gaps: NHWC with unused channels and pixels between the used ones

// A four-dimensional array in some format; what it does not use is a NaN (i8: 77) and must stay it.
struct Array {
  int64_t size[4], stride[4];
  DType dtype;
  std::vector<float> f32;
  std::vector<uint16_t> half;  // bf16 or f16
  std::vector<int8_t> i8;

  static constexpr uint16_t kUnusedHalf = 0x7fc1;  // NaN in both
  static constexpr int8_t kUnused8 = 77;

  Array(std::initializer_list<int64_t> sizes, DType type, Format format) : dtype(type) {
    std::copy(sizes.begin(), sizes.end(), size);
    const int64_t c = size[1], h = size[2], w = size[3];
    int64_t room = 0;
    if (format == Format::nchw) {
      stride[3] = 1, stride[2] = w, stride[1] = h * w, stride[0] = c * h * w;
    } else {
      const int64_t gap = format == Format::gaps ? 3 : 0;
      stride[1] = 1, stride[3] = c + gap, stride[2] = (w + gap) * stride[3], stride[0] = (h + gap) * stride[2];
    }
    room = size[0] * stride[0] + 1;
    f32.assign(dtype == DType::f32 ? static_cast<size_t>(room) : 0, NAN);
    half.assign(size_of(dtype) == 2 ? static_cast<size_t>(room) : 0, kUnusedHalf);
    i8.assign(dtype == DType::i8 ? static_cast<size_t>(room) : 0, kUnused8);
  }

  void* data() {
    return dtype == DType::f32  ? static_cast<void*>(f32.data())
           : dtype == DType::i8 ? static_cast<void*>(i8.data())
                                : half.data();
  }
  // Up to the last element, none past it.
  size_t bytes() const {
    int64_t last = 0;
    for (int i = 0; i < 4; ++i) {
      if (size[i] == 0) return 0;
      last += (size[i] - 1) * stride[i];
    }
    return static_cast<size_t>(last + 1) * size_of(dtype);
  }
  ConvTensor tensor() { return {data(), {stride[0], stride[1], stride[2], stride[3]}}; }
  size_t at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return static_cast<size_t>(n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]);
  }
  float get(int64_t n, int64_t c, int64_t h, int64_t w) const {
    const size_t i = at(n, c, h, w);
    return dtype == DType::f32    ? f32[i]
           : dtype == DType::bf16 ? from_bf16(half[i])
           : dtype == DType::f16  ? from_f16(half[i])
                                  : static_cast<float>(i8[i]);
  }
  void set(int64_t n, int64_t c, int64_t h, int64_t w, float value) {
    const size_t i = at(n, c, h, w);
    if (dtype == DType::f32) f32[i] = value;
    if (dtype == DType::bf16) half[i] = to_bf16(value);
    if (dtype == DType::f16) half[i] = to_f16(value);
    if (dtype == DType::i8) i8[i] = to_i8(value);
  }
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
  // Elements that belong to the array's memory and not to the array are as they were.
  bool gaps_untouched() const {
    std::vector<char> used(f32.size() + half.size() + i8.size(), 0);
    each([&](int64_t n, int64_t c, int64_t h, int64_t w) { used[at(n, c, h, w)] = 1; });
    for (size_t i = 0; i < used.size(); ++i) {
      if (used[i]) continue;
      if (dtype == DType::f32 ? !std::isnan(f32[i]) : dtype == DType::i8 ? i8[i] != kUnused8 : half[i] != kUnusedHalf) {
        return false;
      }
    }
    return true;
  }
};

// In (n, k, p, q) order.
inline std::vector<double> naive(const ConvArgs& args, const Array& x, const Array& weight, const Array& residual) {
  const ConvShape& s = args.shape;
  std::vector<double> y;
  const int64_t c_group = s.c / s.groups, k_group = s.k / s.groups;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t k = 0; k < s.k; ++k)
      for (int64_t p = 0; p < s.p(); ++p)
        for (int64_t q = 0; q < s.q(); ++q) {
          double sum = 0;
          for (int64_t c = 0; c < c_group; ++c)
            for (int64_t i = 0; i < s.r; ++i)
              for (int64_t j = 0; j < s.s; ++j) {
                const int64_t h = p * s.stride_h - s.pad_top + i * s.dilation_h;
                const int64_t w = q * s.stride_w - s.pad_left + j * s.dilation_w;
                if (h < 0 || h >= s.h || w < 0 || w >= s.w) continue;
                sum += static_cast<double>(x.get(n, k / k_group * c_group + c, h, w)) * weight.get(k, c, i, j);
              }
          if (args.scale) sum *= args.scale[k];
          if (args.shift) sum += args.shift[k];
          if (args.residual.data) sum += residual.get(n, k, p, q);
          y.push_back(test::activated(sum, args.activation, args.negative_slope));
        }
  return y;
}

}  // namespace pk::conv_test
