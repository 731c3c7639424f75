// x as the kernels want it: float32, channels adjacent, where x itself is not.
#pragma once

#include "cpu/conv_bn_act/transpose.h"
#include "cpu/parallel_for.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {
namespace {

// One row of pixels: to[w * c + i] = from[w * stride_w + i * stride_c], i < c.
template <class T>
inline void copy_row(float* to, int64_t w, int64_t c, const T* from, int64_t stride_w, int64_t stride_c) {
  if (stride_c == 1 && stride_w == c) {
    for (int64_t i = 0; i < w * c; ++i) to[i] = widen(from[i]);
    return;
  }
  if (stride_c == 1) {
    for (int64_t j = 0; j < w; ++j) {
      for (int64_t i = 0; i < c; ++i) to[j * c + i] = widen(from[j * stride_w + i]);
    }
    return;
  }
  int64_t done = 0;
  if (stride_w == 1) {
    for (; done + kLanes <= c; done += kLanes) {
      float* pixel = to + done - c;
      transpose_rows(from + done * stride_c, stride_c, w, [&] { return pixel += c; });
    }
    if (done == 0 && c == 3) {
      for (int64_t j = 0; j < w; ++j, to += 3, ++from) {
        to[0] = widen(from[0]);
        to[1] = widen(from[stride_c]);
        to[2] = widen(from[2 * stride_c]);
      }
      return;
    }
  }
  for (int64_t j = 0; j < w; ++j) {
    for (int64_t i = done; i < c; ++i) to[j * c + i] = widen(from[j * stride_w + i * stride_c]);
  }
}

// to: [images][h][w][c].
inline void to_nhwc(float* to, const ConvTensor& x, DType dtype, int64_t first_image, int64_t images,
                    const ConvShape& shape, const Executor& executor) {
  const int64_t row = shape.w * shape.c, grain = row > 0 ? 16384 / row + 1 : 1;
  parallel_for(executor, 0, images * shape.h, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = (first_image + i / shape.h) * x.stride[0] + i % shape.h * x.stride[2];
      if (dtype == DType::f32) {
        copy_row(to + i * row, shape.w, shape.c, static_cast<const float*>(x.data) + from, x.stride[3], x.stride[1]);
      } else {
        copy_row(to + i * row, shape.w, shape.c, static_cast<const bf16_t*>(x.data) + from, x.stride[3], x.stride[1]);
      }
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
