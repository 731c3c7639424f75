// How images (N, C, H, W) may lie in memory, for the tests of kernels that take any strides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pk::test {

enum class Layout {
  last,            // channels_last
  planes,          // contiguous
  last_slice,      // some channels of a larger image
  planes_slice,    // the same
  last_columns,    // some columns of a wider image, channels adjacent
  planes_columns,  // some columns of wider planes
  apart,           // columns far apart, rows next to each other, channels two apart
};

inline bool by_channels(Layout layout) {
  return layout == Layout::last || layout == Layout::last_slice || layout == Layout::last_columns;
}

// Fills the strides; returns how many elements such a tensor takes.
inline size_t lay_out(Layout layout, int64_t n, int64_t c, int64_t h, int64_t w, int64_t (&stride)[4]) {
  const int64_t wide_c = c + 3 * (layout == Layout::last_slice || layout == Layout::planes_slice);
  const int64_t wide_w = w + 5 * (layout == Layout::last_columns || layout == Layout::planes_columns);
  if (by_channels(layout)) {
    stride[1] = 1, stride[3] = wide_c, stride[2] = wide_w * wide_c, stride[0] = h * wide_w * wide_c;
  } else if (layout == Layout::apart) {
    stride[1] = 2, stride[2] = 2 * c, stride[3] = 2 * c * h, stride[0] = 2 * c * h * w;
  } else {
    stride[3] = 1, stride[2] = wide_w, stride[1] = h * wide_w, stride[0] = wide_c * h * wide_w;
  }
  return static_cast<size_t>(n * stride[0] + 1);
}

// Where an element lies.
inline size_t place(const int64_t (&stride)[4], int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<size_t>(n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3]);
}

}  // namespace pk::test
