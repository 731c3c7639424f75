// Squeeze-and-excitation on the CPU: the maps of an image, each times a gate that the means of all of them make.
//
//   hidden[n, m] = activation(sum over c of reduce[m, c] * mean(x[n, c]) + reduce_bias[m])
//   y[n, c]      = x[n, c] * gate(sum over m of expand[c, m] * hidden[n, m] + expand_bias[c])
//
// x, y: (n, c, h, w), any strides, each map its own; float32, or bfloat16 with float32 arithmetic. y may be x. Fast
// where the channels of both are adjacent (channels_last) or the columns of both are (contiguous). The weights are read
// as they lie.
//
// Or x and y are int8, the rest float32; their real values are x_scale * (x - x_zero):
//
//   y = saturate(nearest_even((x - x_zero) * (gate * x_scale * y_inverse)) + y_zero), NaN as 0; y_inverse is 1 / scale
//
//   SqueezeExciteArgs args;                       // everything
//   SqueezeExcitePlan plan;
//   Status status = make_plan(args, &plan);       // checks, sizes, layout
//   run(plan, workspace, executor);               // plan.workspace_bytes, aligned for floats
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

struct SqueezeExciteArgs {
  DType dtype = DType::f32;            // of all tensors: f32 or bf16; i8: x and y
  int64_t n = 0, c = 0, h = 0, w = 0;  // x and y
  int64_t m = 0;                       // the channels between the two products
  Activation activation = Activation::relu, gate = Activation::sigmoid;
  float x_scale = 1.0f, y_inverse = 1.0f;  // of int8
  int32_t x_zero = 0, y_zero = 0;          // of int8, in [-128, 127]
  const void* x = nullptr;
  int64_t x_stride[4] = {};           // in elements: n, c, h, w
  const void* reduce = nullptr;       // (m, c), contiguous
  const void* reduce_bias = nullptr;  // (m,) or null
  const void* expand = nullptr;       // (c, m), contiguous
  const void* expand_bias = nullptr;  // (c,) or null
  void* y = nullptr;
  int64_t y_stride[4] = {};
};

struct SqueezeExciteKernels;

struct SqueezeExcitePlan {
  SqueezeExciteArgs args;
  int64_t workspace_bytes = 0;
  const SqueezeExciteKernels* kernels = nullptr;
};

PK_API Status make_plan(const SqueezeExciteArgs& args, SqueezeExcitePlan* plan);
PK_API void run(const SqueezeExcitePlan& plan, void* workspace, const Executor& executor);

}  // namespace pk
