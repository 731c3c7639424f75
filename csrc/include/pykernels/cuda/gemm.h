// Dense matrix products on a CUDA device, as the LSTM needs them: its input projection, and the gradients of its input
// and weights. Not an operator of its own.
//
// Nothing here allocates, waits for the device, or depends on the order in which blocks run: the same input on the same
// GPU model gives the same bits. All of it can be captured in a CUDA graph.
#pragma once

#include <cstdint>

#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/status.h"

namespace pk::cuda {

// How the outputs are cut: for tests and tuning. Zeros: chosen by shape and device (csrc/cuda/gemm/choose.h).
struct GemmChoice {
  int tile = 0;   // 1: 64 x 64, 2: 128 x 128, 3: Hopper's 128 x 256
  int split = 0;  // K is cut into so many slices, added in order by a second kernel
};

// out[i,j] = sum_p a[i,p] * b[j,p] + bias[j] + bias2[j] (+ out[i,j])
//
// Of each operand's two strides one is 1, so that x W^T, G W and G^T x are all read where they lie:
//   gates  (rows, 4h) = x (rows, i) . w (4h, i)^T      a = x:  (i, 1)    b = w: (i, 1)
//   grad_x (rows, i)  = g (rows, 4h) . w (4h, i)       a = g:  (4h, 1)   b = w: (1, i)
//   grad_w (4h, i)    = g (rows, 4h)^T . x (rows, i)   a = g:  (1, 4h)   b = x: (1, i)
// Rows aligned to 16 bytes are the fastest. Sums are float32; those of f32 operands have float32's own precision (each
// product three of tf32's; an infinite operand may give NaN), or with `tf32` tf32's.
struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;  // each below 2^31 - 256; k == 0: the sum is 0

  DType dtype = DType::f32;  // of a, b and the biases: f32, bf16 or f16
  bool tf32 = false;
  const void* a = nullptr;  // (m, k), strides in elements
  int64_t a_stride_m = 0, a_stride_k = 1;
  const void* b = nullptr;  // (n, k), strides in elements
  int64_t b_stride_n = 0, b_stride_k = 1;
  const void* bias = nullptr;   // (n), or none
  const void* bias2 = nullptr;  // (n), or none

  DType out_dtype = DType::f32;  // dtype or f32
  void* out = nullptr;           // (m, n), columns contiguous; must not overlap a or b
  int64_t out_stride = 0;        // of rows, in elements
  bool accumulate = false;       // adds to what out holds

  GemmChoice asked;
};

// A product that has been checked, and how it is cut on the device that was current: slices of k_of_slice elements.
struct GemmPlan {
  // Pointers may be set, or changed, between make_plan and run: their alignment decides how they are read.
  GemmArgs args;
  GemmChoice choice;
  int k_of_slice = 0, multiprocessors = 0;
  int64_t workspace_bytes = 0;
};

PK_API Status make_plan(const GemmArgs& args, GemmPlan* plan);
// workspace: [plan.workspace_bytes], aligned to 16 bytes. Trusts the plan: nothing is checked again.
PK_API Status run(const GemmPlan& plan, void* workspace, void* stream);

}  // namespace pk::cuda
