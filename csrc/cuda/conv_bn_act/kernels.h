// What api.cu tells the kernels. Sizes are checked there: all ints below stay under 2^28, or under 2^31 where said.
#pragma once

#include "cuda/conv_bn_act/choose.h"
#include "pykernels/cuda/conv_bn_act.h"

namespace pk::cuda::conv {

// Channels that an epilogue takes at once.
inline constexpr int kChannelsAtOnce = 8;

// y = cast(act(scale[k] * sum + shift[k] + residual_scale * residual) * y_scale), and where all that lies.
struct Epilogue {
  const float* scale;    // (k,) or null
  const float* shift;    // (k,) or null
  const void* residual;  // (n, k, p, q) or null
  void* y;               // (n, k, p, q)
  int64_t residual_stride[4], y_stride[4];
  DType residual_dtype, y_dtype;  // differ from x's for int8 alone
  float residual_scale, y_scale;  // 1 but for int8
  Activation activation;
  float negative_slope;
  int q, pq;
  bool linear;      // pixel m of y and of residual is m * stride[3] away, images included
  bool vectors;     // eight channels are adjacent, and aligned to as many bytes (to 16 at most)
  bool rows_first;  // neighbouring lanes take neighbouring pixels: pixels, not channels, are adjacent
};

// x as the kernels read it: pixels of adjacent channels, a group's padded to padded_channels.
struct Pixels {
  const void* x;
  int64_t stride_n, stride_h, stride_w, stride_group;  // in elements, multiples of copy_bytes
};

struct Gemm {
  const void* x;  // of Pixels, which here span less than 2^30 elements
  int64_t x_stride_group;
  int x_stride_n, x_stride_h, x_stride_w;
  const void* weight;  // [k][columns]
  Epilogue epilogue;
  void* partial;   // [splits][groups][rows][columns of y padded to 8], float or int32; null: one split
  float* moments;  // [blocks_m][2][groups * filters]: each tile's mean of z and sum of (z - mean)^2; or null
  int rows;        // n p q, < 2^31
  int filters;     // of a group
  int groups, columns, padded_c;
  int h, w, p, q, s;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int end_h, end_w;         // r * dilation_h, s * dilation_w: one tap past the last
  int next_w, next_h;       // from a tap's last channel to the next tap's first; at the end of a row of taps besides
  int steps;                // k tiles
  int splits, split_steps;  // k tiles of a split
  int blocks_m, blocks_n;   // tiles of a group
  bool plain;               // 1 x 1, stride 1, no padding, pixels at equal distances: a matrix
};

struct Depthwise {
  Pixels pixels;
  const void* weight;  // [r s][k padded to 16 bytes]
  Epilogue epilogue;
  int n, k, multiplier, columns;
  int h, w, p, q, r, s;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

Status run_gemm_f16(const Gemm& gemm, Tile tile, int copy, void* stream);
Status run_gemm_bf16(const Gemm& gemm, Tile tile, int copy, void* stream);
Status run_gemm_f32(const Gemm& gemm, Tile tile, int copy, void* stream);
Status run_gemm_tf32(const Gemm& gemm, Tile tile, int copy, void* stream);
Status run_gemm_i8(const Gemm& gemm, Tile tile, int copy, void* stream);
// The tiles of wgmma.
Status run_gemm_sm90(const Gemm& gemm, Math math, Tile tile, void* stream);

Status run_depthwise(const Depthwise& depthwise, Math math, void* stream);

// Weight (k, c / groups, r, s) to its packed matrix.
Status run_pack_weight(const ConvPackingPlan& plan, const ConvTensor& weight, void* packed, void* stream);
// x (n, c, h, w) to [n][h][w][groups][padded_c].
Status run_pack_pixels(const ConvShape& shape, int64_t bytes, int64_t padded_c, const ConvTensor& x, void* out,
                       void* stream);

}  // namespace pk::cuda::conv
