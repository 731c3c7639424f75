// x as the kernels want it: float32, channels adjacent, where x itself is not.
#pragma once

#include "cpu/conv_bn_act/transpose.h"
#include "cpu/parallel_for.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {
namespace {

// A run of pixels: to[j * pitch + i] = from[j * stride_w + i * stride_c], j < w, i < c.
template <class T>
inline void copy_row(float* to, int64_t pitch, int64_t w, int64_t c, const T* from, int64_t stride_w,
                     int64_t stride_c) {
  if (stride_c == 1) {
    if (pitch == c && stride_w == c) c *= w, w = 1;
    for (int64_t j = 0; j < w; ++j) {
      for (int64_t i = 0; i < c; ++i) to[j * pitch + i] = widen(from[j * stride_w + i]);
    }
    return;
  }
  if (stride_w == 1 && c >= kLanes) {
    // In squares, of which the last ones may overlap those before.
    for (int64_t at = 0; at < c; at += kLanes) {
      const int64_t i = at + kLanes <= c ? at : c - kLanes;
      const int64_t squares = w >= kLanes ? w / kLanes * kLanes : 0;
      float* pixel = to + i - pitch;
      transpose_rows(from + i * stride_c, stride_c, squares, [&] { return pixel += pitch; });
      if (squares == w) continue;
      const int64_t rest = w >= kLanes ? w - kLanes : 0;
      pixel = to + rest * pitch + i - pitch;
      transpose_rows(from + i * stride_c + rest, stride_c, w - rest, [&] { return pixel += pitch; });
    }
    return;
  }
  if (stride_w == 1 && c == 3) {
    for (int64_t j = 0; j < w; ++j, to += pitch, ++from) {
      to[0] = widen(from[0]);
      to[1] = widen(from[stride_c]);
      to[2] = widen(from[2 * stride_c]);
    }
    return;
  }
  for (int64_t j = 0; j < w; ++j) {
    for (int64_t i = 0; i < c; ++i) to[j * pitch + i] = widen(from[j * stride_w + i * stride_c]);
  }
}

// The same of a tensor's elements from `offset` on.
inline void copy_pixels(float* to, int64_t pitch, int64_t w, int64_t c, const ConvTensor& x, DType dtype,
                        int64_t offset, int64_t stride_w) {
  if (dtype == DType::f32) {
    copy_row(to, pitch, w, c, static_cast<const float*>(x.data) + offset, stride_w, x.stride[1]);
  } else {
    copy_row(to, pitch, w, c, static_cast<const bf16_t*>(x.data) + offset, stride_w, x.stride[1]);
  }
}

// to: [images][h][w][pitch], of which c are filled.
inline void to_nhwc(float* to, int64_t pitch, const ConvTensor& x, DType dtype, int64_t first_image, int64_t images,
                    const ConvShape& shape, const Executor& executor) {
  const int64_t row = shape.w * pitch, grain = row > 0 ? 16384 / row + 1 : 1;
  const bool joined = x.stride[2] == shape.w * x.stride[3];  // rows that follow each other are one
  parallel_for(executor, 0, images * shape.h, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin, rows; i < end; i += rows) {
      const int64_t h = i % shape.h, left = min(end - i, shape.h - h);
      rows = joined ? min(left, 1 + 127 / shape.w) : 1;
      copy_pixels(to + i * row, pitch, rows * shape.w, shape.c, x, dtype,
                  (first_image + i / shape.h) * x.stride[0] + h * x.stride[2], x.stride[3]);
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
