// y = act(x * scale[c] + shift[c] + residual), where x may be several tensors, joined along their channels: a batch
// norm of given statistics with what follows it, before a convolution or alone, and a concatenation before it, in one
// pass.
//
// 2 operations an element and those of the activation, against 8 bytes (12 with a residual): the memory's speed is all
// that counts. An element's bits depend on no other's, nor on the layout or the threads.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

// A tensor of four dimensions in logical order (n, channels, h, w), any strides, in elements.
struct BatchNormTensor {
  const void* data = nullptr;
  int64_t channels = 0;
  int64_t stride[4] = {};
};

struct BatchNormActArgs {
  int64_t n, c, h, w;
  DType dtype;                         // of x, residual and y: f32 or bf16
  const BatchNormTensor* x = nullptr;  // [pieces], whose channels are c together; read by run too
  int64_t pieces = 0;
  const float* scale = nullptr;  // (c,), or null: 1
  const float* shift = nullptr;  // (c,), or null: 0
  Activation activation = Activation::none;
  float negative_slope = 0.01f;       // leaky_relu's
  const float* parameters = nullptr;  // (parameters_of(activation), c), or null: the usual ones
  BatchNormTensor residual;           // (n, c, h, w), or data null: 0
  void* y = nullptr;                  // (n, c, h, w); may be x or the residual, if it lies alike
  int64_t y_stride[4] = {};
};

struct BatchNormActKernels;

// A call whose arguments are checked, for the ISA that was in force when it was planned.
struct BatchNormActPlan {
  BatchNormActArgs args;
  const BatchNormActKernels* kernels;
};

PK_API Status make_plan(const BatchNormActArgs& args, BatchNormActPlan* plan);
PK_API void run(const BatchNormActPlan& plan, const Executor& executor);

}  // namespace pk
