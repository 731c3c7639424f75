// y = (x - mean) / sqrt(variance + eps) * weight[c] + bias[c], where mean and variance are those of the c numbers of a
// pixel: LayerNorm, of rows (pixels whose channels are adjacent) or of an image's channels as they lie.
//
// x is read once from memory and twice from the cache, y is written once. The mean is subtracted before anything is
// squared, and again what rounding left of it, so that what is normalised is off by a few roundings however large the
// mean is. A pixel's bits depend on no other's, nor on the threads.
#pragma once

#include "pykernels/batch_norm_act.h"

namespace pk {

struct LayerNormArgs {
  int64_t n = 0, c = 0, h = 0, w = 0;
  DType dtype = DType::f32;  // of x and y: f32 or bf16
  double eps = 1e-5;
  const void* x = nullptr;  // (n, c, h, w); pixels one step apart, which is 1 or that of channels is
  int64_t x_stride[4] = {};
  DType weight_dtype = DType::f32;  // of weight and bias: f32, or dtype
  const void* weight = nullptr;     // (c,), or null: 1
  const void* bias = nullptr;       // (c,), or null: 0
  void* y = nullptr;                // (n, c, h, w), where channels or pixels are adjacent as x's are; may be x
  int64_t y_stride[4] = {};
};

struct LayerNormKernels;

struct LayerNormPlan {
  LayerNormArgs args;
  const LayerNormKernels* kernels = nullptr;
  bool by_channels = false;  // channels are adjacent
};

PK_API Status make_plan(const LayerNormArgs& args, LayerNormPlan* plan);
PK_API void run(const LayerNormPlan& plan, const Executor& executor);

}  // namespace pk
