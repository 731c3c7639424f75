// x as the product reads it: the lines of a block of output pixels, once each, with the pixels of padding, as values of
// the product (bytes for fours, on x86 with the sign bit flipped; 16-bit words for pairs). A line of the filter reads s
// * channels adjacent values of one line, so that nothing is copied for each pixel.
#pragma once

#include "cpu/int8_conv2d/choose.h"
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
inline void convert(const int8_t* from, AValue* to, int offset) {
  const auto bytes = load<typename Run<n>::Bytes>(from);
  if constexpr (kDot4) {
    store(to, with_offset(bytes));
  } else {
    store(to, __builtin_convertvector(bytes, typename Run<n>::Words) + static_cast<int16_t>(offset));
  }
}

// n bytes, n at least `size`: the last ones with those before them.
template <int size>
inline void convert_run(const int8_t* from, int64_t n, AValue* to, int offset) {
  int64_t i = 0;
  for (; i + size <= n; i += size) convert<size>(from + i, to + i, offset);
  if (i < n) convert<size>(from + n - size, to + n - size, offset);
}

inline void convert_some(const int8_t* from, int64_t n, AValue* to, int offset) {
  constexpr int most = kDot4 ? kVecBytes : 2 * kLanes;
  if (n >= most) return convert_run<most>(from, n, to, offset);
  if (most > 32 && n >= 32) return convert_run<32>(from, n, to, offset);
  if (most > 16 && n >= 16) return convert_run<16>(from, n, to, offset);
  if (n >= 8) return convert_run<8>(from, n, to, offset);
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<AValue>(from[i] + offset);
}

inline void fill(AValue* to, int64_t n, AValue value) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

// The pixels of the output that a block has: rows [row, row_end) of all images', columns [column, column_end).
struct Block {
  int64_t row, row_end, column, column_end;

  int64_t columns() const { return column_end - column; }
  int64_t pixels() const { return (row_end - row) * columns(); }
};

// Lines are counted over the images with their padding; for a filter of one line only those that it reads.
inline int64_t line_step(const ConvShape& s) { return s.r == 1 ? 1 : s.stride_h; }
inline int64_t lines_of_image(const ConvShape& s) { return block_lines(s, s.p()); }
// The line that the filter's first one reads for `row`.
inline int64_t first_line(const ConvShape& s, int64_t row) {
  return row / s.p() * lines_of_image(s) + row % s.p() * line_step(s);
}

// [begin, end) of the lines or the columns of a filter.
struct Taps {
  int64_t begin, end;
};

// Those of them that are within x's `size`.
inline Taps taps_within(int64_t first, int64_t dilation, int64_t taps, int64_t size) {
  if (first >= 0 && first + (taps - 1) * dilation < size) return {0, taps};  // without a division
  const int64_t begin = first < 0 ? min(taps, ceil_div(-first, dilation)) : 0;
  const int64_t end = first >= size ? 0 : min(taps, ceil_div(size - first, dilation));
  return {begin, max(begin, end)};
}

// The lines of one group of channels for a block.
struct Lines {
  const ConvShape& shape;
  const Int8ConvBlocking& cut;
  const int8_t* x;             // the group's first channel
  const int64_t (&stride)[4];  // of x, with adjacent channels
  AValue padding;              // what x_zero_point is
  int offset = kAOffset;       // of words: what is added to x

  void copy(const Block& block, AValue* to) const {
    each(block, [&](int64_t line, const int8_t* from) {
      AValue* const at = to + line * cut.line;
      if (from != nullptr) {
        copy_line(from, block, at);
      } else if (!cut.in_rows) {  // else no tile reads it
        fill(at, cut.line, padding);
      }
    });
  }

  // body(line, x's or null beyond the edges) for each line of a block, from 0 on.
  template <class Body>
  void each(const Block& block, const Body& body) const {
    const int64_t first = first_line(shape, block.row), height = lines_of_image(shape);
    const int64_t step = shape.r == 1 ? shape.stride_h : 1;  // of x's lines
    for (int64_t row = block.row, next = first; row < block.row_end; ++row) {
      const int64_t begin = first_line(shape, row);
      for (int64_t line = max(next, begin); line < begin + block_lines(shape, 1); ++line) {
        const int64_t n = line / height, y = line % height * step - shape.pad_top;
        body(line - first, y >= 0 && y < shape.h ? x + n * stride[0] + y * stride[2] : nullptr);
      }
      next = begin + block_lines(shape, 1);
    }
  }

  // The pixels of a line that a block reads: those of [begin, end) lie in x, `step` values apart, the others beyond.
  struct Span {
    int64_t begin, end, count, step;
    const int8_t* from;
  };
  Span span(const int8_t* line, const Block& block) const {
    const int64_t step = shape.s == 1 ? shape.stride_w : 1, count = line_pixels(shape, block.columns());
    const int64_t first = block.column * shape.stride_w - shape.pad_left;  // of x, may be in the padding
    const int64_t begin = first < 0 ? min(count, ceil_div(-first, step)) : 0;
    const int64_t end = first >= shape.w ? begin : max(begin, min(count, ceil_div(shape.w - first, step)));
    return {begin, end, count, step * stride[3], line + (first + begin * step) * stride[3]};
  }

 private:
  void copy_line(const int8_t* line, const Block& block, AValue* to) const {
    const int64_t channels = shape.c / shape.groups;
    Span s = span(line, block);
    fill(to, s.begin * cut.pixel, padding);
    fill(to + s.end * cut.pixel, (s.count - s.end) * cut.pixel, padding);
    to += s.begin * cut.pixel;
    if (s.step == channels && cut.pixel == channels) {
      if (s.begin < s.end) convert_some(s.from, (s.end - s.begin) * channels, to, offset);
      return;
    }
    for (; s.begin < s.end; ++s.begin, s.from += s.step, to += cut.pixel) convert_some(s.from, channels, to, offset);
  }
};

// Rows of x, [begin, end) of n * h, to adjacent channels: (n, h, w, c).
inline void turn_rows(const ConvShape& s, const int8_t* x, const int64_t (&stride)[4], int64_t begin, int64_t end,
                      int8_t* to) {
  constexpr int64_t kBlock = 64;
  for (int64_t row = begin; row < end; ++row) {
    const int8_t* const from = x + row / s.h * stride[0] + row % s.h * stride[2];
    int8_t* const line = to + row * s.w * s.c;
    for (int64_t c0 = 0; c0 < s.c; c0 += kBlock) {
      const int64_t c1 = min(s.c, c0 + kBlock);
      for (int64_t w0 = 0; w0 < s.w; w0 += kBlock) {
        const int64_t w1 = min(s.w, w0 + kBlock);
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
