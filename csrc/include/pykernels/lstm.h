// LSTM on the CPU: whole sequences of any depth and both directions, forward and backward; a single cell step is a
// sequence of length one.
//
//   i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
//   c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)
//
// Shapes: t steps, b sequences, `rows` = t * b time steps in all (packed sequences: the sum of batch_sizes), i input
// features, h hidden units, d directions, l layers. Layer 0 reads i features, every other d * h.
// float32 throughout, or bfloat16 for every tensor with float32 arithmetic and state inside. Packed weights may also be
// int8 with a float32 scale a row (weight-only quantisation): nothing else is rounded, so it computes what the float32
// weights W * s give, from a quarter of their bytes.
//
//   LstmForwardArgs args;  // shape, inputs, weights or packed weights
//   LstmForwardPlan plan;
//   Status status = make_plan(args, executor.threads, &plan);  // all the checks, the ISA, sizes and blocking
//   plan.args.output = ...;                                    // results, now that plan.reserve_elements is known
//   run(plan, workspace, executor);                            // plan.workspace_bytes, 64-byte aligned
#pragma once

#include <cstdint>

#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

struct LstmShape {
  int64_t steps = 0;   // t >= 1
  int64_t batch = 0;   // b >= 0; packed sequences: batch_sizes[0]
  int64_t input = 0;   // i >= 0
  int64_t hidden = 0;  // h >= 1
  int layers = 1;
  int directions = 1;  // 2: bidirectional
  bool bias = true;
  DType dtype = DType::f32;              // f32 or bf16
  const int64_t* batch_sizes = nullptr;  // (t), non-increasing, each >= 1, or nullptr: all steps have b rows
  const int64_t* starts = nullptr;       // (t + 1), as lstm_starts makes it of batch_sizes
};

// The one walk over batch_sizes (steps): starts (steps + 1) gets the rows before each step and, last, those in all.
// Refuses sizes below 1 and sizes that increase. Here, not in a library, because the CUDA binding links no CPU kernels.
static inline Status lstm_starts(const int64_t* batch_sizes, int64_t steps, int64_t* starts) {
  starts[0] = 0;
  for (int64_t t = 0; t < steps; ++t) {
    if (batch_sizes[t] < 1 || (t && batch_sizes[t] > batch_sizes[t - 1]))
      return {"batch_sizes: expected positive sizes that don't increase"};
    if (__builtin_add_overflow(starts[t], batch_sizes[t], &starts[t + 1])) return {"batch_sizes: too many rows"};
  }
  return kOk;
}

// Time steps of all sequences together; the weights of layer `layer`'s input; weight tensors in nn.LSTM's flat order.
static inline int64_t lstm_rows(const LstmShape& s) { return s.batch_sizes ? s.starts[s.steps] : s.steps * s.batch; }
static inline int64_t lstm_input(const LstmShape& s, int layer) { return layer ? s.directions * s.hidden : s.input; }
static inline int lstm_weights(const LstmShape& s) { return s.layers * s.directions * (s.bias ? 4 : 2); }

// A sequence tensor: element (t, b, f) at data + t * step + b * row + f; packed data is one row per time step, and
// `step` is not read.
struct LstmSequence {
  void* data = nullptr;
  int64_t step = 0;
  int64_t row = 0;
};

// int8 weights of one layer and direction, with a scale a row.
struct Int8LstmWeights {
  const int8_t* w_ih = nullptr;  // (4h, I_l), contiguous
  const int8_t* w_hh = nullptr;  // (4h, h)
  const float* s_ih = nullptr;   // (4h)
  const float* s_hh = nullptr;   // (4h)
  const float* b_ih = nullptr;   // (4h), read if shape.bias
  const float* b_hh = nullptr;   // (4h)
};

// A forward pass's tensors, on every device.
struct LstmForwardArgs {
  LstmShape shape;
  LstmSequence x;                        // (t, b, i)
  const void* h0 = nullptr;              // (l * d, b, h)
  const void* c0 = nullptr;              // (l * d, b, h)
  const void* const* weights = nullptr;  // lstm_weights(shape) pointers, as in pack; or
  const void* packed = nullptr;          // pack's block, and then weights and shape.bias are not read
  int64_t packed_bytes = 0;
  LstmSequence output;      // (t, b, d * h); data may be nullptr where only h_n and c_n are wanted
  void* h_n = nullptr;      // (l * d, b, h)
  void* c_n = nullptr;      // (l * d, b, h)
  bool save = false;        // write `reserve`
  void* reserve = nullptr;  // what the backward pass needs
};

// A backward pass's.
struct LstmBackwardArgs {
  LstmShape shape;
  LstmSequence grad_output;              // (t, b, d * h), data may be nullptr: zero
  const void* grad_h_n = nullptr;        // (l * d, b, h) or nullptr
  const void* grad_c_n = nullptr;        // (l * d, b, h) or nullptr
  LstmSequence x;                        // (t, b, i)
  const void* h0 = nullptr;              // (l * d, b, h)
  const void* c0 = nullptr;              // (l * d, b, h)
  const void* const* weights = nullptr;  // as in pack
  LstmSequence output;                   // (t, b, d * h), the forward pass's; a single step reads none
  const void* reserve = nullptr;         // written by the forward pass
  LstmSequence grad_x;                   // (t, b, i)
  void* grad_h0 = nullptr;               // (l * d, b, h)
  void* grad_c0 = nullptr;               // (l * d, b, h)
  void* const* grad_weights = nullptr;   // lstm_weights(shape) pointers, shaped as the weights
};

struct LstmKernels;  // one ISA's: csrc/cpu/lstm/kernels.h

// Packed weights of every layer and direction in one block: a header, then for each W_ih (h/v, I_l, 4, v), W_hh
// (h/v, h, 4, v) in `weights` and the sum of the biases (h/v, 4, v) in float32, v being the lanes of the active ISA;
// with int8 weights also their scales, as the biases.
struct LstmPackingPlan {
  LstmShape shape;
  DType weights;  // shape.dtype, or i8, which goes with either dtype
  const LstmKernels* kernels;
  int64_t packed_bytes;
};
PK_API Status make_packing_plan(const LstmShape& shape, LstmPackingPlan* plan);
// weights: per layer and direction w_ih (4h, I_l), w_hh (4h, h) and, with bias, b_ih (4h), b_hh (4h), contiguous.
PK_API void pack(const LstmPackingPlan& plan, const void* const* weights, void* packed, const Executor& executor);
// The same for int8. weights: layers * directions of them.
PK_API Status make_int8_packing_plan(const LstmShape& shape, LstmPackingPlan* plan);
PK_API void pack(const LstmPackingPlan& plan, const Int8LstmWeights* weights, void* packed, const Executor& executor);

// Plain data, valid as long as the call's arrays are; may run any number of times, each with a workspace of its own.
template <class Args, class Parts>
struct LstmPlan {
  Args args;  // pointers may be set between make_plan and run
  const LstmKernels* kernels = nullptr;
  int64_t workspace_bytes = 0;
  // Of `reserve`, in float32: per layer and direction (rows, 5, h), the four gates and c; then the outputs of all
  // layers but the last (layers - 1, rows, d * h).
  int64_t reserve_elements = 0;
  // The rest is the kernels' own: the weights' dtype, rows in all, hidden units rounded up to whole vectors or panels,
  // shares of a step, and where in the workspace things lie, in bytes; -1 for what the call doesn't need.
  DType weights = DType::f32;
  int64_t rows = 0, padded = 0;
  int team = 1;
  Parts at{};
};

struct LstmForwardParts {
  int64_t x, between[2], gx, state, shares, packed, bias;
};
using LstmForwardPlan = LstmPlan<LstmForwardArgs, LstmForwardParts>;

struct LstmBackwardParts {
  int64_t x, output, grad_output, grad_x, between[2], states, running, d_gates, w_hh[2], panels, grad_weight, shares;
};
using LstmBackwardPlan = LstmPlan<LstmBackwardArgs, LstmBackwardParts>;

// Checks the call and works out all that doesn't depend on data: reads the shape, x's strides, `packed` and its header,
// and `save`. The other pointers may be set in plan.args afterwards. A block of packed weights is refused unless it is
// what pack makes for this shape and the active ISA.
PK_API Status make_plan(const LstmForwardArgs& args, int threads, LstmForwardPlan* plan);
PK_API void run(const LstmForwardPlan& plan, void* workspace, const Executor& executor);
// Reads the strides of grad_output, output and grad_x too, and whether there are the first two.
PK_API Status make_plan(const LstmBackwardArgs& args, int threads, LstmBackwardPlan* plan);
PK_API void run(const LstmBackwardPlan& plan, void* workspace, const Executor& executor);

}  // namespace pk
