// int8 matrix product with an epilogue, its packed weights, and quantisation. Everything here is free of torch.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

// The longest sums that no input can wrap: K * 2^14 < 2^31, and with zero points K * 255 * 128 < 2^31.
inline constexpr int64_t kInt8MaxK = 131071;
inline constexpr int64_t kInt8MaxKWithZeroPoint = 65793;
// Columns enough for any memory; sizes made of it stay far from overflow.
inline constexpr int64_t kInt8MaxN = int64_t{1} << 36;

// out[i,j] = activation(a_scale[i] * b_scale[j] * sum_k (a[i,k] - a_zero_point[i]) * b[k,j] + bias[j])
//
// The sum is exact. out_dtype i32 is the sum itself: no scales, bias or activation. i8 is the float result rounded to
// nearest even and saturated, NaN giving 0; bf16 is rounded to nearest even.
// a may be float: then each row is quantised as quantize_int8 does with axis 0, symmetric, and a_scale is made, not
// given.
struct Int8MatmulArgs {
  int64_t m = 0, n = 0, k = 0;

  DType a_dtype = DType::i8;  // i8, or f32 / bf16 to be quantised row by row
  const void* a = nullptr;    // (m, k), strides in elements; a float a has a_stride_k == 1
  int64_t a_stride_m = 0, a_stride_k = 0;

  const int8_t* b = nullptr;  // (k, n), strides in elements; unused where `packed` is given
  int64_t b_stride_k = 0, b_stride_n = 0;
  const void* packed = nullptr;  // what pack made of b, on the same ISA
  int64_t packed_bytes = 0;

  const float* a_scale = nullptr;  // (m) or (1), or none: 1
  int64_t a_scale_stride = 0;      // 1 or 0
  const float* b_scale = nullptr;  // (n) or (1), or none: 1
  int64_t b_scale_stride = 0;
  const int32_t* a_zero_point = nullptr;  // (m) or (1), in [-128, 127], or none: 0
  int64_t a_zero_point_stride = 0;
  const float* bias = nullptr;  // (n), or none

  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's

  DType out_dtype = DType::i32;
  void* out = nullptr;  // (m, n), rows contiguous
};

// How the product is cut, by csrc/cpu/int8_matmul/choose.h: the business of the kernels alone.
struct Int8Blocking {
  int64_t tiles, blocks, chunks, slots;  // of a's rows, of tiles, of b's columns; threads that have a part of workspace
  bool pack_first;                       // b is not packed yet, and worth packing as a whole
  bool streams;                          // b is read as it lies; the sums of all columns are kept
  bool by_depth;                         // panels inside blocks of k, not blocks of k inside panels
  int64_t pass;                          // blocks of k whose sums stay in registers
  int64_t packed_bytes;                  // of workspace: that packed b, then for each slot slot_bytes, which are
  int64_t slot_bytes, a_bytes, sums_bytes, panels_bytes, wide_bytes, scale_bytes;
};

struct Int8Kernels;

// Args that have been checked, the kernels that run them, and how. It holds for one ISA: that in force when it was
// made. A plan may run any number of times, and with any data behind the same shapes, strides and packed header.
struct Int8MatmulPlan {
  Int8MatmulArgs args;  // `out` may be set, and any pointer changed, between make_plan and run
  const Int8Kernels* kernels = nullptr;
  Int8Blocking blocking = {};
  int64_t workspace_bytes = 0;
};

// Checks the args, `packed` and zero points included, and plans for up to `threads` threads.
PK_API Status make_plan(const Int8MatmulArgs& args, int threads, Int8MatmulPlan* plan);
// workspace: [plan.workspace_bytes], of any alignment. Trusts the plan: nothing is checked again.
PK_API void run(const Int8MatmulPlan& plan, void* workspace, const Executor& executor);

// Packs b (k, n) once for many products. The size is the same for every ISA, the contents are not: a blob says which
// layout it has, and make_plan refuses another's.
struct Int8PackingPlan {
  int64_t k, n;
  const Int8Kernels* kernels;
  int64_t packed_bytes;
};
PK_API Status make_packing_plan(int64_t k, int64_t n, Int8PackingPlan* plan);
PK_API void pack(const Int8PackingPlan& plan, const int8_t* b, int64_t stride_k, int64_t stride_n, void* packed,
                 const Executor& executor);

// Quantises x, seen as (outer, channels, inner) and contiguous, with one scale a channel (a single channel: one for the
// tensor):
//   symmetric   scale = max|x| / 127                          zero_point = 0
//   asymmetric  scale = max(x, 0) / 255 - min(x, 0) / 255     zero_point = round(-128 - min(x, 0) / scale), saturated
//   q = saturate(round(x / scale) + zero_point), to nearest even; symmetric q stays within +-127
// A scale of 0 becomes 1. A channel with a NaN or an infinity has scale NaN or infinity, zero_point 0 and q 0, so that
// q * scale is NaN.
struct QuantizeInt8Args {
  DType x_dtype = DType::f32;  // f32 or bf16
  const void* x = nullptr;     // (outer, channels, inner)
  int64_t outer = 1, channels = 1, inner = 0;
  bool symmetric = true;
  int8_t* q = nullptr;            // as x
  float* scale = nullptr;         // (channels)
  int32_t* zero_point = nullptr;  // (channels)
};

struct QuantizeKernels;
struct QuantizeInt8Plan {
  QuantizeInt8Args args;  // pointers may be set between make_plan and run
  const QuantizeKernels* kernels = nullptr;
};
PK_API Status make_plan(const QuantizeInt8Args& args, QuantizeInt8Plan* plan);
PK_API void run(const QuantizeInt8Plan& plan, const Executor& executor);

}  // namespace pk
