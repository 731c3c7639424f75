// x as the kernels want it: float32, channels adjacent, where x itself is not.
#pragma once

#include "cpu/conv_bn_act/transpose.h"
#include "cpu/parallel_for.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {
namespace {

// One row of pixels: to[w * c + i] = from[w * stride_w + (i / repeat) * stride_c], i < c.
template <class T>
inline void copy_row(float* to, int64_t w, int64_t c, const T* from, int64_t stride_w, int64_t stride_c,
                     int64_t repeat) {
  if (repeat == 1 && stride_c == 1) {
    for (int64_t j = 0; j < w; ++j) {
      for (int64_t i = 0; i < c; ++i) to[j * c + i] = widen(from[j * stride_w + i]);
    }
    return;
  }
  int64_t done = 0;
  if (repeat == 1 && stride_w == 1) {
    for (; done + kLanes <= c; done += kLanes) {
      float* pixel = to + done - c;
      transpose_rows(from + done * stride_c, stride_c, w, [&] { return pixel += c; });
    }
  }
  for (int64_t j = 0; j < w; ++j) {
    for (int64_t i = done; i < c; ++i) to[j * c + i] = widen(from[j * stride_w + i / repeat * stride_c]);
  }
}

// to: [images][height][width][c * repeat], zero outside x, which begins at (top, left); channel i is x's i / repeat.
void to_nhwc(float* to, const ConvTensor& x, DType dtype, int64_t first_image, int64_t images, const ConvShape& shape,
             int64_t repeat, int64_t height, int64_t width, int64_t top, int64_t left, const Executor& executor) {
  const int64_t channels = shape.c * repeat, row = width * channels;
  const int64_t grain = row > 0 ? 16384 / row + 1 : 1;
  parallel_for(executor, 0, images * height, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* out = to + i * row;
      const int64_t image = first_image + i / height, h = i % height - top;
      int64_t w = width - left < shape.w ? width - left : shape.w;
      if (h < 0 || h >= shape.h || w < 0) w = 0;
      const int64_t before = w > 0 ? left * channels : 0;
      std::memset(out, 0, static_cast<size_t>(before) * sizeof(float));
      const int64_t from = image * x.stride[0] + h * x.stride[2];
      if (w > 0 && dtype == DType::f32) {
        copy_row(out + before, w, channels, static_cast<const float*>(x.data) + from, x.stride[3], x.stride[1], repeat);
      } else if (w > 0) {
        copy_row(out + before, w, channels, static_cast<const bf16_t*>(x.data) + from, x.stride[3], x.stride[1],
                 repeat);
      }
      const int64_t done = before + w * channels;
      std::memset(out + done, 0, static_cast<size_t>(row - done) * sizeof(float));
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
