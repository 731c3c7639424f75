// What is done to each element of int8 tensors on the CPU. The real value of an element is scale * (q - zero_point).
//
//   quantize    y = saturate(nearest_even(x * y_inverse) + y_zero), NaN as 0; y_inverse is 1 / scale
//   dequantize  y = (x - x_zero) * x_scale
//
// x, y: of the same size, up to eight dimensions; float32 or bfloat16 where they are not int8. Each operation is a
// rounding of its own to float32, and none is fused: y is the same to the bit on every ISA, for every number of threads
// and in every memory format.
//
//   Int8PointwiseArgs args;
//   Int8PointwisePlan plan;
//   Status status = make_plan(args, &plan);  // fails where neither the elements of x and y, in y's order, nor those
//   run(plan, executor);                     // of x in another dimension are adjacent
#pragma once

#include <cstdint>

#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

enum class Int8PointwiseKind : int32_t { quantize, dequantize };
inline constexpr int32_t kInt8PointwiseKinds = 2;
inline constexpr int kInt8PointwiseDims = 8;

struct Int8PointwiseArgs {
  Int8PointwiseKind kind = Int8PointwiseKind::quantize;
  DType dtype = DType::f32;  // of what is not int8: f32 or bf16
  float x_scale = 1.0f, y_inverse = 1.0f;
  int32_t x_zero = 0, y_zero = 0;  // in [-128, 127]
  int64_t dim = 0;
  int64_t size[kInt8PointwiseDims] = {};
  const void* x = nullptr;
  int64_t x_stride[kInt8PointwiseDims] = {};  // in elements
  void* y = nullptr;                          // whose elements don't overlap
  int64_t y_stride[kInt8PointwiseDims] = {};
};

struct Int8PointwiseKernels;

// Dimensions of one size, which lie behind each other in memory, are one; the last one is y's adjacent.
struct Int8PointwisePlan {
  Int8PointwiseArgs args;  // pointers may be set, or changed, between make_plan and run
  const Int8PointwiseKernels* kernels = nullptr;
  bool turned = false;  // x is adjacent in the last dimension but one
};

PK_API Status make_plan(const Int8PointwiseArgs& args, Int8PointwisePlan* plan);
PK_API void run(const Int8PointwisePlan& plan, const Executor& executor);

}  // namespace pk
