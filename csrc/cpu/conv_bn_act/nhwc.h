// x as the kernels want it: float32, channels adjacent, where x itself is not.
#pragma once

#include "cpu/parallel_for.h"
#include "cpu/vec.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {
namespace {

// One row of pixels: to[w * c + i] = from[w * stride_w + (i / repeat) * stride_c], i < c.
template <class Load>
inline void copy_row(float* to, int64_t w, int64_t c, int64_t stride_w, int64_t stride_c, int64_t repeat, Load value) {
  constexpr int64_t kBlock = 16;  // channels at a time, so that the lines read by one pixel serve the next ones
  if (repeat == 1) {
    for (int64_t c0 = 0; c0 < c; c0 += kBlock) {
      const int64_t end = c0 + kBlock < c ? c0 + kBlock : c;
      for (int64_t j = 0; j < w; ++j) {
        for (int64_t i = c0; i < end; ++i) to[j * c + i] = value(j * stride_w + i * stride_c);
      }
    }
    return;
  }
  for (int64_t j = 0; j < w; ++j) {
    for (int64_t i = 0; i < c; ++i) to[j * c + i] = value(j * stride_w + i / repeat * stride_c);
  }
}

inline float widen(bf16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
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
        const float* p = static_cast<const float*>(x.data) + from;
        copy_row(out + before, w, channels, x.stride[3], x.stride[1], repeat, [p](int64_t at) { return p[at]; });
      } else if (w > 0) {
        const bf16_t* p = static_cast<const bf16_t*>(x.data) + from;
        copy_row(out + before, w, channels, x.stride[3], x.stride[1], repeat, [p](int64_t at) { return widen(p[at]); });
      }
      const int64_t done = before + w * channels;
      std::memset(out + done, 0, static_cast<size_t>(row - done) * sizeof(float));
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
