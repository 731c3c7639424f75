// LSTM with int8 weights on the CPU: whole sequences of any depth and both directions, for inference; a single cell
// step is a sequence of length one. Shapes are those of pykernels/lstm.h.
//
//   q(r) = round(r / s), s = max|r| / 127: a row of x_t, of h_{t-1}, or of what the layer below puts out
//   i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (q(x_t) W_ih^T s_x s_ih + b_ih + b_hh + q(h_{t-1}) W_hh^T s_h s_hh)
//   c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)
//
// W_ih and W_hh are int8 with a float32 scale a row, s_ih and s_hh. The sums are exact, and each float32 operation
// rounds by itself: the bits are the same on every ISA, for any number of threads, any batch, and if a sequence is cut
// into several calls. (Int8 weights on rows that stay float: lstm.h's int8 blocks.) States and sequences are float32 or
// bfloat16; inside, all that is not int8 is float32.
#pragma once

#include "pykernels/int8_matmul.h"
#include "pykernels/lstm.h"

namespace pk {

struct Int8LstmArgs {
  LstmShape shape;               // dtype is that of x, states and results: f32 or bf16
  LstmSequence x;                // (t, b, i)
  const void* h0 = nullptr;      // (l * d, b, h)
  const void* c0 = nullptr;      // (l * d, b, h)
  const void* packed = nullptr;  // pack's block
  int64_t packed_bytes = 0;
  LstmSequence output;  // (t, b, d * h); data may be nullptr where only h_n and c_n are wanted
  void* h_n = nullptr;  // (l * d, b, h)
  void* c_n = nullptr;  // (l * d, b, h)
};

struct Int8LstmKernels;  // one ISA's: csrc/cpu/int8_lstm/kernels.h

// Packed weights of every layer and direction in one block, for any dtype of x; csrc/cpu/int8_lstm/layout.h.
struct Int8LstmPackingPlan {
  LstmShape shape;
  const Int8LstmKernels* kernels;
  int64_t packed_bytes;
};
PK_API Status make_packing_plan(const LstmShape& shape, Int8LstmPackingPlan* plan);
// weights: layers * directions of them.
PK_API void pack(const Int8LstmPackingPlan& plan, const Int8LstmWeights* weights, void* packed,
                 const Executor& executor);

// Plain data, valid as long as the call's arrays are; may run any number of times, each with a workspace of its own.
struct Int8LstmPlan {
  Int8LstmArgs args;  // pointers may be set between make_plan and run
  const Int8LstmKernels* kernels = nullptr;
  int64_t workspace_bytes = 0;
  // The rest is the kernels' own.
  int64_t padded = 0;
  int team = 1;
  struct {
    int64_t between[2], quantized, scales, gx, state, shares, own;
  } at = {};
};
// Checks the call and works out all that doesn't depend on data: reads the shape, `packed` and its header. The other
// pointers may be set in plan.args afterwards. A block of packed weights is refused unless it is what pack makes for
// this shape and the active ISA.
PK_API Status make_plan(const Int8LstmArgs& args, int threads, Int8LstmPlan* plan);
// workspace: [plan.workspace_bytes], 64-byte aligned.
PK_API void run(const Int8LstmPlan& plan, void* workspace, const Executor& executor);

}  // namespace pk
