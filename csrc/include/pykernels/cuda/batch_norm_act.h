// Batch norm, residual add and activation in training, on a CUDA device:
//
// - batch_norm_statistics: mean[c], var[c] over n, h, w of x; batch_norm_combine: the same from statistics of parts
// - batch_norm_act: y = act((x - mean) * weight / sqrt(var + eps) + bias + residual)
// - batch_norm_act_backward: grad_x, grad_residual, grad_weight, grad_bias of grad_y
//
// Values are read as `dtype` and computed in float32; vectors of length c are float32. Every sum has a fixed order: the
// same input on the same GPU model gives the same bits. Nothing here allocates or waits for the device; all of it can
// be captured in a CUDA graph.
//
// A plan checks shape, dtype, activation and mask; its run, on `stream` (a cudaStream_t), trusts it.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/status.h"

namespace pk::cuda {

// Tensors "of the shape" are dense, all in one layout: (n, hw, c) where channels_last, else (n, c, hw).
// c and hw are below 2^31 - 4096, the number of elements is below 2^62.
struct BatchNormShape {
  int64_t n = 0, c = 0, hw = 0;
  bool channels_last = true;
};

// How a tensor is divided among blocks: the business of csrc/cuda/batch_norm_act/choose.h.
namespace bn {
struct Slabs {
  int inner = 0;
  int groups = 0;       // of a row
  int width = 1;        // groups of a block; a function of the shape alone, for it gives the mask's bits their order
  int64_t columns = 0;  // of blocks
  int64_t rows = 0;     // that a column of blocks walks
  int64_t rows_per_slab = 1;
  int64_t slabs = 0;
  int64_t values_per_row = 1;  // of a channel
};
}  // namespace bn

// Statistics of parts of the rows, as a convolution's epilogue leaves them: part p holds `rows_per_part` values of each
// channel, the last one what is left of `rows`.
struct BatchNormParts {
  int64_t parts = 0;
  int64_t rows_per_part = 0, rows = 0;
  int64_t c = 0;
  const float* moments = nullptr;  // (parts, 2, c): the mean of the part, and the sum of (x - that mean)^2
};

// What becomes of the statistics. var is the mean of (x - mean)^2; running_var takes the unbiased one, NaN for a single
// value. Without any value (rows = 0) mean and var are 0, and the running ones stay.
struct BatchNormStatistics {
  float* mean = nullptr;          // (c,)
  float* var = nullptr;           // (c,)
  float* running_mean = nullptr;  // (c,): (1 - momentum) * itself + momentum * mean; or null
  float* running_var = nullptr;   // (c,); or null
  float momentum = 0.1f;
};

struct BatchNormStatisticsPlan {
  BatchNormShape shape;
  DType dtype;
  int64_t workspace_bytes;
  bn::Slabs slabs;
};
PK_API Status make_plan(const BatchNormShape& shape, DType dtype, BatchNormStatisticsPlan* plan);
// x: of the shape; workspace: [plan.workspace_bytes].
PK_API Status run(const BatchNormStatisticsPlan& plan, const void* x, const BatchNormStatistics& statistics,
                  void* workspace, void* stream);
PK_API Status batch_norm_combine(const BatchNormParts& parts, const BatchNormStatistics& statistics, void* stream);

struct BatchNormActArgs {
  BatchNormShape shape;
  DType dtype = DType::f32;        // of x, residual, y: f32, bf16 or f16
  const void* x = nullptr;         // of the shape
  const void* residual = nullptr;  // of the shape, or null: 0
  void* y = nullptr;               // of the shape
  uint8_t* mask = nullptr;         // [plan.mask_bytes] of the signs of what goes into the activation; or null
  const float* mean = nullptr;     // (c,)
  const float* var = nullptr;      // (c,)
  const float* weight = nullptr;   // (c,), or null: 1
  const float* bias = nullptr;     // (c,), or null: 0
  float eps = 1e-5f;
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
};

struct BatchNormActPlan {
  BatchNormActArgs args;  // pointers may be set between make_plan and run
  int64_t mask_bytes;     // that the backward pass needs: of relu and leaky_relu after a residual; else the sign is x's
  bn::Slabs slabs;
};
PK_API Status make_plan(const BatchNormActArgs& args, BatchNormActPlan* plan);
PK_API Status run(const BatchNormActPlan& plan, void* stream);

// With x^ = (x - mean) / sqrt(var + eps), z what went into the activation, m = n * hw:
//   grad_residual = dz = grad_y * act'(z),  grad_bias = sum(dz),  grad_weight = sum(dz * x^)
//   grad_x = weight / sqrt(var + eps) * (dz - grad_bias / m - x^ * grad_weight / m)
// the last two terms only where mean and var are the batch's own.
struct BatchNormActBackwardArgs {
  BatchNormActArgs forward;       // its arguments; y is not read, nor the residual where there is a mask
  const void* grad_y = nullptr;   // of the shape
  void* grad_x = nullptr;         // of the shape
  void* grad_residual = nullptr;  // of the shape; or null: not wanted
  float* grad_weight = nullptr;   // (c,), always written
  float* grad_bias = nullptr;     // (c,), always written
  bool batch_statistics = true;
};

struct BatchNormActBackwardPlan {
  BatchNormActBackwardArgs args;  // pointers may be set between make_plan and run, but for the residual and the mask
  int64_t workspace_bytes;
  int64_t mask_bytes;  // of the mask, where there is one
  bn::Slabs sums, pointwise;
};
PK_API Status make_plan(const BatchNormActBackwardArgs& args, BatchNormActBackwardPlan* plan);
PK_API Status run(const BatchNormActBackwardPlan& plan, void* workspace, void* stream);

}  // namespace pk::cuda
