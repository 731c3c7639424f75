// conv_bn_act on CUDA: y = act(conv2d(x, weight) * scale[k] + shift[k] + residual), the same in int8, and for training
// the convolution with the statistics of its output.
//
// Everything is enqueued on the caller's stream (a cudaStream_t) of the current device: nothing is allocated, nothing
// waits, and a CUDA graph may capture it. Pointers are of device memory. The same input on the same GPU model gives the
// same bits; float sums are float32, int8 sums are exact.
#pragma once

#include "pykernels/conv_bn_act.h"
#include "pykernels/cuda/batch_norm_act.h"

namespace pk::cuda {

// The packed weight: a matrix [rows][columns] of the weight's dtype, with no header; its shape follows from the
// weight's alone. Depthwise (groups == c > 1): [r s][k padded]. Else [k][(r, s, c / groups padded), padded]: what a
// channels_last weight is, each padding zero. `size`: rows and columns.
PK_API Status conv_packed_size(const ConvShape& shape, DType dtype, int64_t (&size)[2]);

// weight: (k, c / groups, r, s), of any strides, f32, bf16, f16 or i8; packed: [rows][columns], aligned to 16 bytes.
PK_API Status conv_pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, void* packed, void* stream);

// The bytes of workspace for these arguments, `workspace` itself unset; it is aligned to 256 bytes. x, residual and y
// may have any strides; fastest is NHWC, aligned to 16 bytes, with channels a multiple of 8. dtype: f32, bf16 or f16.
// f32 takes tf32's products if args.tf32, else products of float32's own precision (three of tf32).
PK_API Status conv_workspace_bytes(const ConvArgs& args, int64_t* bytes);
PK_API Status conv_bn_act(const ConvArgs& args, void* stream);

// y = conv2d(x, weight) + shift[k], and the mean and variance of each channel of y as it is stored: what training's
// batch norm wants. The convolution's epilogue leaves the moments of its tiles, so that y is not read again; where
// there is no such epilogue (depthwise, a sum that is split, images by the million) batch_norm_statistics reads it.
// args: without scale, residual and activation; y is dense, NCHW or NHWC. The workspace is as above.
PK_API Status conv_statistics_workspace_bytes(const ConvArgs& args, int64_t* bytes);
PK_API Status conv_statistics(const ConvArgs& args, const BatchNormStatistics& statistics, void* stream);

// y = cast(act(scale[k] * sum + shift[k] + residual_scale * residual) * y_scale)
//
// sum is the exact int32 convolution of x and weight; padding is 0, so x has no zero point. i8 is rounded to nearest
// even and saturated, NaN giving 0; f16 and bf16 are rounded to nearest even.
struct Int8Conv {
  ConvShape shape;
  ConvTensor x;                  // (n, c, h, w), i8
  const void* packed = nullptr;  // of conv_pack, i8
  int64_t packed_bytes = 0;
  const float* scale = nullptr;      // (k,), or null: 1
  const float* shift = nullptr;      // (k,), or null: 0
  ConvTensor residual;               // (n, k, p, q), or data null: 0
  DType residual_dtype = DType::i8;  // or f32, bf16, f16
  float residual_scale = 1.0f;
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  float y_scale = 1.0f;
  DType y_dtype = DType::i8;  // as residual's: i8 or a float; or i32, the sum itself, with nothing else given
  void* y = nullptr;          // (n, k, p, q)
  int64_t y_stride[4] = {};
  void* workspace = nullptr;  // [workspace_bytes], at least int8_conv_workspace_bytes
  int64_t workspace_bytes = 0;
};

PK_API Status int8_conv_workspace_bytes(const Int8Conv& args, int64_t* bytes);
PK_API Status int8_conv(const Int8Conv& args, void* stream);

}  // namespace pk::cuda
