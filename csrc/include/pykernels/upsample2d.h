// Resizes images on the CPU: takes the nearest pixel, or interpolates bilinearly between the four around.
//
//   y[n, c, i, j] = x[n, c, row(i), column(j)], or the sum over both rows u and both columns v around of
//                   weight(i, u) * weight(j, v) * x[n, c, u, v]
//
// Indices of nearest pixels are torch's to the bit (computed in float32, as there). Weights are computed in double and
// rounded once. x: (n, c, h, w), y: (n, c, p, q), any strides; float32, or bfloat16 with float32 arithmetic. Fast where
// the channels of both are adjacent (channels_last) or the columns of both are (contiguous).
//
// Or int8, on any grid: what is bilinear is computed in float32, along the columns first, then rounded to nearest even;
// to the bit the same on every ISA and in every memory format.
//
//   Upsample2dArgs args;
//   Upsample2dPlan plan;
//   Status status = make_plan(args, &plan);
//   run(plan, executor);  // no workspace
#pragma once

#include <cstdint>

#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

// bilinear_corners: the corner pixels of x are those of y (torch's align_corners).
enum class UpsampleMode : int32_t { nearest, nearest_exact, bilinear, bilinear_corners };
inline constexpr int32_t kUpsampleModes = 4;

struct Upsample2dArgs {
  UpsampleMode mode = UpsampleMode::nearest;
  DType dtype = DType::f32;            // f32, bf16 or i8
  int64_t n = 0, c = 0, h = 0, w = 0;  // x
  int64_t p = 0, q = 0;                // y
  double scale_h = 0, scale_w = 0;     // p / h and q / w where they are 0; bilinear_corners needs none
  const void* x = nullptr;
  int64_t x_stride[4] = {};  // in elements: n, c, h, w
  void* y = nullptr;
  int64_t y_stride[4] = {};
};

struct Upsample2dKernels;

struct Upsample2dPlan {
  Upsample2dArgs args;
  const Upsample2dKernels* kernels = nullptr;
};

PK_API Status make_plan(const Upsample2dArgs& args, Upsample2dPlan* plan);
PK_API void run(const Upsample2dPlan& plan, const Executor& executor);

}  // namespace pk
