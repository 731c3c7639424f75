// y = activation(x (m, k) * (q * scale)^T + bias): a linear layer whose weight is int8 with a scale a row, on rows that
// stay float. Where few rows read the weight from memory, its bytes are the time: a quarter of those
// of float32.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

// x and y are float32 or bfloat16; sums and all that follows are float32, or no less exact: with VNNI a row is rounded
// to 24 bits, relative to its largest magnitude, and its sums are exact (csrc/cpu/weight_only_linear/digits.h). The
// bits of y depend on the sizes, but neither on the number of threads nor on strides.
struct WeightOnlyLinearArgs {
  int64_t m = 0, n = 0, k = 0;  // k up to kInt8MaxK
  DType dtype = DType::f32;     // of x and y
  const void* x = nullptr;      // (m, k), rows of adjacent elements
  int64_t x_stride = 0;         // from row to row

  const int8_t* weight = nullptr;  // (n, k), contiguous; with scale and bias not read where `packed` is given
  const float* scale = nullptr;    // (n)
  const float* bias = nullptr;     // (n), or none
  const void* packed = nullptr;    // what pack made of the three, on the same ISA
  int64_t packed_bytes = 0;

  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  void* y = nullptr;             // (m, n), contiguous
};

struct WeightOnlyLinearKernels;

struct WeightOnlyLinearPlan {
  WeightOnlyLinearArgs args;  // pointers may be set between make_plan and run
  const WeightOnlyLinearKernels* kernels = nullptr;
  int64_t workspace_bytes = 0;
  // The rest is the kernels' own: where in the workspace x as float32, a packed weight and x's digits lie, or -1.
  int64_t x_at = -1, packed_at = -1, digits_at = -1;
};

// Checks the call, `packed` and its header too.
PK_API Status make_plan(const WeightOnlyLinearArgs& args, WeightOnlyLinearPlan* plan);
// workspace: [plan.workspace_bytes], 64-byte aligned.
PK_API void run(const WeightOnlyLinearPlan& plan, void* workspace, const Executor& executor);

// Weight, scales and bias in one block for many calls: csrc/cpu/weight_only_linear/layout.h.
struct WeightOnlyLinearPackingPlan {
  int64_t n, k;
  const WeightOnlyLinearKernels* kernels;
  int64_t packed_bytes;
};
PK_API Status make_packing_plan(int64_t n, int64_t k, WeightOnlyLinearPackingPlan* plan);
// weight: (n, k), contiguous; scale: (n); bias: (n), or none.
PK_API void pack(const WeightOnlyLinearPackingPlan& plan, const int8_t* weight, const float* scale, const float* bias,
                 void* packed, const Executor& executor);

}  // namespace pk
