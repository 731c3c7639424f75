// y = act((x - mean) / sqrt(variance + eps) * weight[c] + bias[c] + residual), where mean and variance are those of
// each image and group of channels: GroupNorm, and InstanceNorm with a group for each channel, with what follows.
//
// x is read twice and y written once; the second time most of it comes from a cache. Moments are taken in blocks whose
// means are subtracted, and merged (Chan, Golub and LeVeque 1979), so that the variance is right however large the
// mean. What is normalised is off by a few roundings, and one of the mean relative to the deviation.
#pragma once

#include "pykernels/batch_norm_act.h"

namespace pk {

struct GroupNormActArgs {
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t groups = 1;
  DType dtype = DType::f32;  // of x, residual and y: f32 or bf16
  double eps = 1e-5;
  BatchNormTensor x;              // (n, c, h, w); pixels one step apart, which is 1 or that of channels is
  const float* weight = nullptr;  // (c,), or null: 1
  const float* bias = nullptr;    // (c,), or null: 0
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  BatchNormTensor residual;      // (n, c, h, w), or data null: 0
  void* y = nullptr;             // (n, c, h, w); may be x or the residual, if it lies alike
  int64_t y_stride[4] = {};
};

struct GroupNormActKernels;

struct GroupNormActPlan {
  GroupNormActArgs args;
  const GroupNormActKernels* kernels = nullptr;
  BatchNormActPlan apply = {};  // of the second pass: a group's or, by_channels, an image's, but for the pointers
  bool by_channels = false;     // how x lies: channels are adjacent
  int64_t chunk = 0;            // pixels whose moments are taken at once, by_channels
  size_t workspace_bytes = 0;   // of which nothing is read afterwards
};

PK_API Status make_plan(const GroupNormActArgs& args, GroupNormActPlan* plan);
PK_API void run(const GroupNormActPlan& plan, void* workspace, const Executor& executor);

}  // namespace pk
