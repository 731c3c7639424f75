// x as the rows of a matrix: a pixel of the output is the depth = r * s * (c / groups) bytes that its sums read, in the
// form of int8_matmul's packed a: blocks [depth / kKc][row][kARow], with the sign bit flipped for fours, as 16-bit
// words for pairs.
#pragma once

#include "cpu/int8_conv2d/kernels.h"
#include "cpu/int8_matmul/tiling.h"

namespace pk {
namespace PK_ISA {
namespace {

template <int n>
struct Run {
  typedef int8_t Bytes __attribute__((vector_size(n)));
  typedef int16_t Words __attribute__((vector_size(2 * n)));
};

template <int n>
inline void convert(const int8_t* from, AValue* to) {
  const auto bytes = load<typename Run<n>::Bytes>(from);
  if constexpr (kDot4) {
    store(to, bytes ^ static_cast<int8_t>(-128));
  } else {
    store(to, __builtin_convertvector(bytes, typename Run<n>::Words));
  }
}

// n bytes, n at least `size`: the last ones with those before them.
template <int size>
inline void convert_run(const int8_t* from, int64_t n, AValue* to) {
  int64_t i = 0;
  for (; i + size <= n; i += size) convert<size>(from + i, to + i);
  if (i < n) convert<size>(from + n - size, to + n - size);
}

inline void convert_some(const int8_t* from, int64_t n, AValue* to) {
  constexpr int most = kDot4 ? kVecBytes : 2 * kLanes;
  if (n >= most) return convert_run<most>(from, n, to);
  if (most > 32 && n >= 32) return convert_run<32>(from, n, to);
  if (most > 16 && n >= 16) return convert_run<16>(from, n, to);
  if (n >= 8) return convert_run<8>(from, n, to);
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<AValue>(from[i] + kAOffset);
}

// The rows of one block of pixels.
struct Gatherer {
  AValue* to;
  int64_t rows;
  AValue padding;     // what x_zero_point is
  const int8_t* end;  // of x
  bool whole;         // a row lies in one block of the depth

  AValue* at(int64_t row, int64_t k) const { return to + (k / kKc * rows + row) * kARow + k % kKc; }

  // n values from k on: all of them in one block of the depth, or cut where it ends.
  void copy(int64_t row, int64_t k, const int8_t* from, int64_t n) const {
    while (n > 0) {
      const int64_t here = smaller(n, kKc - k % kKc);
      convert_some(from, here, at(row, k));
      k += here, from += here, n -= here;
    }
  }
  void pad(int64_t row, int64_t k, int64_t n) const {
    while (n > 0) {
      const int64_t here = smaller(n, kKc - k % kKc);
      AValue* const begin = at(row, k);
      for (int64_t i = 0; i < here; ++i) begin[i] = padding;
      k += here, n -= here;
    }
  }
};

// The taps of a line of the filter that are within x's `size`: [begin, end).
struct Taps {
  int64_t begin, end;
};
inline Taps taps_within(int64_t first, int64_t dilation, int64_t taps, int64_t size) {
  if (first >= 0 && first + (taps - 1) * dilation < size) return {0, taps};  // without a division
  const int64_t begin = first < 0 ? smaller(taps, ceil_div(-first, dilation)) : 0;
  const int64_t end = first >= size ? 0 : smaller(taps, ceil_div(size - first, dilation));
  return {begin, larger(begin, end)};
}

// Row `row` of the block is pixel (p, q) of an image, whose bytes begin at `image`, those of its group that is;
// `stride` is x's, with adjacent channels.
inline void gather_pixel(const Gatherer& g, const ConvShape& s, const int8_t* image, const int64_t (&stride)[4],
                         int64_t p, int64_t q, int64_t row) {
  const int64_t channels = s.c / s.groups, line = s.s * channels;
  const int64_t h = p * s.stride_h - s.pad_top, w = q * s.stride_w - s.pad_left;
  const Taps taps = taps_within(w, s.dilation_w, s.s, s.w);
  const bool adjacent = s.dilation_w == 1 && stride[3] == channels;
  const bool inside = h >= 0 && h + (s.r - 1) * s.dilation_h < s.h && taps.begin == 0 && taps.end == s.s;
  if (g.whole && adjacent && inside) {
    constexpr int kStep = kDot4 ? 32 : 16;
    const int64_t step = s.dilation_h * stride[2];
    const int8_t* from = image + h * stride[2] + w * channels;
    if (from + (s.r - 1) * step + round_up(line, kStep) <= g.end) {
      // What a line writes too much the next one writes again, and behind the last there is room.
      AValue* to = g.at(row, 0);
      for (int64_t r = 0; r < s.r; ++r, from += step, to += line) {
        for (int64_t i = 0; i < line; i += kStep) convert<kStep>(from + i, to + i);
      }
      return;
    }
  }
  for (int64_t r = 0; r < s.r; ++r) {
    const int64_t y = h + r * s.dilation_h, k = r * line;
    if (y < 0 || y >= s.h) {
      g.pad(row, k, line);
      continue;
    }
    const int8_t* const from = image + y * stride[2];
    if (taps.begin > 0) g.pad(row, k, taps.begin * channels);
    if (adjacent) {
      g.copy(row, k + taps.begin * channels, from + (w + taps.begin) * channels, (taps.end - taps.begin) * channels);
    } else {
      for (int64_t t = taps.begin; t < taps.end; ++t) {
        g.copy(row, k + t * channels, from + (w + t * s.dilation_w) * stride[3], channels);
      }
    }
    if (taps.end < s.s) g.pad(row, k + taps.end * channels, (s.s - taps.end) * channels);
  }
}

// Rows of x, [begin, end) of n * h, to adjacent channels: (n, h, w, c).
inline void turn_rows(const ConvShape& s, const int8_t* x, const int64_t (&stride)[4], int64_t begin, int64_t end,
                      int8_t* to) {
  constexpr int64_t kBlock = 64;
  for (int64_t row = begin; row < end; ++row) {
    const int8_t* const from = x + row / s.h * stride[0] + row % s.h * stride[2];
    int8_t* const line = to + row * s.w * s.c;
    for (int64_t c0 = 0; c0 < s.c; c0 += kBlock) {
      const int64_t c1 = smaller(s.c, c0 + kBlock);
      for (int64_t w0 = 0; w0 < s.w; w0 += kBlock) {
        const int64_t w1 = smaller(s.w, w0 + kBlock);
        for (int64_t c = c0; c < c1; ++c) {
          for (int64_t w = w0; w < w1; ++w) line[w * s.c + c] = from[c * stride[1] + w * stride[3]];
        }
      }
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
