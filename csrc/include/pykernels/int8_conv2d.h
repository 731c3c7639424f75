// int8 convolution: exact int32 sums, then scale, bias, residual, activation and the next layer's rounding in one pass.
//
//   sum = sum over channels and taps of (x - x_zero_point) * weight        beyond the edges x is x_zero_point
//   t   = float(sum) * scale[k] + bias[k] + residual_scale * (residual - residual_zero_point)
//   t   = act(t) * out_scale
//   y   = t, or for i8: saturate(nearest_even(t) + out_zero_point), of which table[y + 128] is taken; NaN as t = 0
//
// Each operation is a rounding of its own to float32, in this order, from left to right, and none is fused; so with an
// activation of none, relu, relu6 or leaky_relu, y is the same to the bit on every ISA, for every number of threads and
// in every memory format. So it is with any activation that comes as a table.
#pragma once

#include "pykernels/conv_bn_act.h"
#include "pykernels/int8_matmul.h"

namespace pk {

// What a call takes besides its tensors and their shape.
struct Int8ConvOptions {
  int32_t x_zero_point = 0, residual_zero_point = 0, out_zero_point = 0;  // in [-128, 127]
  float residual_scale = 1.0f, out_scale = 1.0f;
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  DType out_dtype = DType::f32;  // i8, f32, bf16, or i32: the sums
};

// What is known before any x: all of a call but x, residual and y. n, h and w of `shape` are not read.
struct Int8ConvPacking {
  ConvShape shape;
  Int8ConvOptions options;
  ConvTensor weight;              // (k, c / groups, r, s), int8
  const float* scale = nullptr;   // (k), or none: 1
  const float* bias = nullptr;    // (k), or none
  const int8_t* table = nullptr;  // (256), for i8, or none
  bool once = false;              // for a single call: no form that takes longer to make than it saves
};

struct Int8ConvKernels;

struct Int8ConvPackingPlan {
  Int8ConvPacking args;  // pointers may be set, or changed, between make_packing_plan and pack
  const Int8ConvKernels* kernels = nullptr;
  int64_t packed_bytes = 0;  // the same for every ISA; the contents are not
};
PK_API Status make_packing_plan(const Int8ConvPacking& args, Int8ConvPackingPlan* plan);
PK_API void pack(const Int8ConvPackingPlan& plan, void* packed, const Executor& executor);

struct Int8ConvArgs {
  int64_t n = 0, h = 0, w = 0;
  ConvTensor x;                  // (n, c, h, w), int8
  const void* packed = nullptr;  // [packed_bytes], of pack, on the same ISA
  int64_t packed_bytes = 0;
  ConvTensor residual;               // (n, k, p, q), or data null: none
  DType residual_dtype = DType::i8;  // or f32, bf16
  void* y = nullptr;                 // (n, k, p, q), of the packed options' out_dtype
  int64_t y_stride[4] = {};
};

// How it is cut, by csrc/cpu/int8_conv2d/choose.h: the business of the kernels alone.
struct Int8ConvBlocking {
  bool depthwise, winograd, turn;     // a channel a group; winograd.h; x is copied to adjacent channels first
  bool quads, byte_pairs;             // depthwise_quads.h; byte_pairs.h
  bool in_rows, by_taps;              // a tile has pixels of one row; a filter is done tap by tap
  int64_t rows, columns;              // of a block of pixels, at the most
  int64_t row_blocks, column_blocks;  // of all images together
  int64_t panels, together;           // of a group's columns; panels that a tile goes through at once
  int64_t chunks, slots;              // of panels; threads that have workspace
  int64_t pixel, line;                // values of a block's x from one to the next; winograd.h: of m and of v
  int64_t turned_bytes, slot_bytes, x_bytes, sums_bytes, wide_bytes, spots_bytes;  // of workspace
  int64_t firsts, excess, runs, tiles, items;  // of byte_pairs.h: how many of each fit the workspace
};

struct Int8ConvPlan {
  Int8ConvArgs args;  // pointers and y's strides may be set, or changed, between make_plan and run
  ConvShape shape;
  Int8ConvOptions options;
  const Int8ConvKernels* kernels = nullptr;
  Int8ConvBlocking blocking = {};
  int64_t workspace_bytes = 0;
};

// Reads shape and options from `args.packed`, and refuses a blob that is truncated or made for another ISA. Of strides
// it reads x's.
PK_API Status make_plan(const Int8ConvArgs& args, int threads, Int8ConvPlan* plan);
// workspace: [plan.workspace_bytes], of any alignment. Trusts the plan: nothing is checked again.
PK_API void run(const Int8ConvPlan& plan, void* workspace, const Executor& executor);

}  // namespace pk
