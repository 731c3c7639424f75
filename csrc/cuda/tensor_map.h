// Tensor maps: what TMA knows of a tensor in global memory (its sizes and strides, the box that one copy moves, the
// swizzle). Made on the host by pure functions, passed to kernels as `const __grid_constant__ TensorMap` parameters.
//
// A map holds the tensor's address, so it is made for each call; that is arithmetic on the host, no device memory. In a
// CUDA graph it is part of the launch, like the pointers.
#pragma once

#include <cstdint>

#include "cuda/platform.cuh"
#include "pykernels/dtype.h"
#include "pykernels/status.h"

#ifndef __CUDACC__
#include "simt/tensor_map.h"
#endif

namespace pk::cuda {

#ifdef __CUDACC__
struct alignas(128) TensorMap {
  unsigned char opaque[128];  // a CUtensorMap
};
#else
using TensorMap = simt::TensorMap;
#endif

// b128: the box's innermost dimension is 128 bytes, and its 16-byte chunks are permuted as ptx.cuh says, so that
// neither wgmma nor ldmatrix meets bank conflicts. none: the box lies as it is.
enum class Swizzle : int32_t { none, b128 };

// A tensor of `rank` dimensions (1 to 5), innermost first, and the box of one copy.
struct TiledView {
  const void* data = nullptr;  // 16-byte aligned
  DType dtype = DType::f32;
  int rank = 0;
  int64_t size[5] = {};    // elements; at least 1
  int64_t stride[5] = {};  // elements; stride[0] is 1, the others are multiples of 16 bytes
  int box[5] = {};         // elements, 1 to 256; box[0] is a multiple of 16 bytes
  Swizzle swizzle = Swizzle::none;
};

// A row-major matrix (rows, cols), rows ld elements apart; the box is box_rows x box_cols.
inline TiledView matrix_view(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t ld, int box_rows,
                             int box_cols, Swizzle swizzle = Swizzle::b128) {
  return {data, dtype, 2, {cols, rows}, {1, ld}, {box_cols, box_rows}, swizzle};
}

// x (n, h, w, c), channels contiguous, as the implicit matrix of a convolution: n p q rows, one for each output pixel;
// one load takes `pixels` rows by `channels` columns for one tap of the filter. The coordinates of tma_load_im2col_4d
// for output pixel (n, p, q) and tap (r, s) are (c, q step_w - pad_left, p step_h - pad_top, n), the offsets
// (s dilation_w, r dilation_h).
struct Im2colView {
  const void* data = nullptr;  // 16-byte aligned
  DType dtype = DType::f16;
  int64_t n = 0, h = 0, w = 0, c = 0;                // at least 1
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;  // elements; multiples of 16 bytes
  int64_t p = 0, q = 0;                              // output pixels, at least 1
  int64_t pad_top = 0, pad_left = 0;                 // -127 to 128
  int64_t step_h = 1, step_w = 1;                    // the convolution's stride, 1 to 8
  int pixels = 0;                                    // 1 to 1024
  int channels = 0;                                  // at most 256, a multiple of 16 bytes
  Swizzle swizzle = Swizzle::b128;
};

// Whether TMA can express the view: the limits above, and that the base pixel of the last output pixel lies no more
// than 128 before and 127 after the image's last, in both directions. Pure functions.
Status check(const TiledView& view);
Status check(const Im2colView& view);

Status make_tensor_map(const TiledView& view, TensorMap* map);
Status make_tensor_map(const Im2colView& view, TensorMap* map);

}  // namespace pk::cuda
