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
// channels_last weight is, each padding zero.
struct ConvPackingPlan {
  ConvShape shape;
  int64_t element_bytes;
  int64_t rows, columns;
  int64_t packed_bytes;
};

// For a weight of f32, bf16, f16 or i8.
PK_API Status make_packing_plan(const ConvShape& shape, DType dtype, ConvPackingPlan* plan);
// weight: (k, c / groups, r, s), of any strides; packed: [plan.packed_bytes()], aligned to 16 bytes.
PK_API Status pack(const ConvPackingPlan& plan, const ConvTensor& weight, void* packed, void* stream);

// y = cast(act(scale[k] * sum + shift[k] + residual_scale * residual) * y_scale)
//
// sum is the exact int32 convolution of x and weight; padding is 0, so x has no zero point. i8 is rounded to nearest
// even and saturated, NaN giving 0; f16 and bf16 are rounded to nearest even.
struct Int8ConvArgs {
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
};

// Which kernel runs a convolution, and how: the business of csrc/cuda/conv_bn_act alone.
namespace conv {
enum class Math;
enum class Tile;
}  // namespace conv
struct ConvMethod {
  conv::Math math;
  conv::Tile tile;
  int splits;  // of the sum
  bool depthwise, copies_x;
  int copy;                             // bytes of a copy of x
  int tile_rows;                        // pixels of a tile that leaves moments; 0: none does
  int64_t padded_c;                     // of a group
  int64_t images;                       // in one launch
  int64_t copied_bytes, partial_bytes;  // of workspace, in this order
};

// A call whose arguments are checked, for the device that was current when it was planned.
template <class Args>
struct ConvPlanOf {
  Args args;  // y, residual, scale, shift and their strides may be set, or changed, between make_plan and run
  ConvPackingPlan packing;
  int64_t workspace_bytes;
  ConvMethod method;
};
using ConvPlan = ConvPlanOf<ConvArgs>;
using Int8ConvPlan = ConvPlanOf<Int8ConvArgs>;

// Without `packed` the plan is for packing too, by plan.packing, and plan.args.packed is to be set before the run. x,
// residual and y may have any strides; fastest is NHWC, aligned to 16 bytes, with channels a multiple of 8. dtype: f32,
// bf16 or f16. f32 takes tf32's products if args.tf32, else products of float32's own precision (three of tf32).
PK_API Status make_plan(const ConvArgs& args, ConvPlan* plan);
PK_API Status make_plan(const Int8ConvArgs& args, Int8ConvPlan* plan);
// workspace: [plan.workspace_bytes], aligned to 256 bytes. Trusts the plan: nothing is checked again.
PK_API Status run(const ConvPlan& plan, void* workspace, void* stream);
PK_API Status run(const Int8ConvPlan& plan, void* workspace, void* stream);

// y = conv2d(x, weight) + shift[k], and the mean and variance of each channel of y as it is stored: what training's
// batch norm wants. The convolution's epilogue leaves the moments of its tiles, so that y is not read again; where
// there is no such epilogue (depthwise, a sum that is split, images by the million) the statistics' kernel reads it.
// args: without scale, residual and activation; y is dense, NHWC or NCHW.
struct ConvStatisticsPlan {
  ConvPlan conv;
  int64_t workspace_bytes;
  int64_t conv_bytes;    // of workspace; then the moments, or what the separate pass needs
  BatchNormParts parts;  // of the epilogue; rows_per_part is 0 where it leaves none
  BatchNormStatisticsPlan separate;
};
PK_API Status make_plan(const ConvArgs& args, bool channels_last, ConvStatisticsPlan* plan);
PK_API Status run(const ConvStatisticsPlan& plan, const BatchNormStatistics& statistics, void* workspace, void* stream);

}  // namespace pk::cuda
