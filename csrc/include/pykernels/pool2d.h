// Maximum and average of windows of an image, and of whole maps, on the CPU.
//
//   y[n, c, i, j] = max, or sum / divisor, over u < r, v < s of
//                   x[n, c, i * stride_h - pad_h + u * dilation_h, j * stride_w - pad_w + v * dilation_w]
//
// What lies outside the image takes no part in a maximum and is 0 in a sum. A NaN in a window is its maximum.
// x: (n, c, h, w), y: (n, c, p, q), any strides; float32, or bfloat16 with float32 arithmetic. Fast where the channels
// of both are adjacent (channels_last) or the columns of both are (contiguous).
//
// Or int8, where the average's sum of x - zero_point is exact, the division is float32's, and
//
//   y = saturate(nearest_even(sum / divisor) + zero_point), or, in float32, (sum / divisor) * scale
//
// the same to the bit on every ISA and in every memory format.
//
//   Pool2dArgs args;                          // everything but y
//   Pool2dPlan plan;
//   Status status = make_plan(args, &plan);   // checks, sizes, layout
//   plan.args.y = ...;                        // of plan.p and plan.q
//   run(plan, executor);                      // no workspace
#pragma once

#include <cstdint>

#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

enum class PoolKind : int32_t { max, average };
inline constexpr int32_t kPoolKinds = 2;

// The most elements of int8 that are averaged: their sum fits in an int32.
inline constexpr int64_t kInt8PoolWindow = int64_t{1} << 23;

struct Pool2dArgs {
  PoolKind kind = PoolKind::max;
  DType dtype = DType::f32;                // f32, bf16 or i8
  int64_t n = 0, c = 0, h = 0, w = 0;      // x
  int64_t r = 1, s = 1;                    // the window
  int64_t stride_h = 1, stride_w = 1;      // >= 1
  int64_t pad_h = 0, pad_w = 0;            // at most half the window
  int64_t dilation_h = 1, dilation_w = 1;  // of an average: 1
  bool ceil_mode = false;                  // windows that leave the image at its end count, if they begin in it
  bool count_include_pad = true;           // an average divides by what lies in the padding too
  int64_t divisor = 0;                     // instead of the number of elements, where it is not 0
  int32_t zero_point = 0;                  // of int8, in [-128, 127]
  float scale = 0.0f;                      // of an average of int8: where it is not 0, y is float32
  const void* x = nullptr;
  int64_t x_stride[4] = {};  // in elements: n, c, h, w
  void* y = nullptr;
  int64_t y_stride[4] = {};
};

struct Pool2dKernels;

struct Pool2dPlan {
  Pool2dArgs args;
  int64_t p = 0, q = 0;  // y
  const Pool2dKernels* kernels = nullptr;
};

PK_API Status make_plan(const Pool2dArgs& args, Pool2dPlan* plan);
PK_API void run(const Pool2dPlan& plan, const Executor& executor);

}  // namespace pk
