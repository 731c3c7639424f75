// LSTM on the CPU: whole sequences of any depth and both directions, forward and backward; a single cell step is a
// sequence of length one.
//
//   i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of (W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
//   c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)
//
// Shapes: t steps, b sequences, `rows` = t * b time steps in all (packed sequences: the sum of batch_sizes), i input
// features, h hidden units, d directions, l layers. Layer 0 reads i features, every other d * h.
// float32 throughout, or bfloat16 for every tensor with float32 arithmetic and state inside.
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
};

// Time steps of all sequences together; the weights of layer `layer`'s input; weight tensors in nn.LSTM's flat order.
static inline int64_t lstm_rows(const LstmShape& s) {
  if (!s.batch_sizes) return s.steps * s.batch;
  int64_t rows = 0;
  for (int64_t t = 0; t < s.steps; ++t) rows += s.batch_sizes[t];
  return rows;
}
static inline int64_t lstm_input(const LstmShape& s, int layer) { return layer ? s.directions * s.hidden : s.input; }
static inline int lstm_weights(const LstmShape& s) { return s.layers * s.directions * (s.bias ? 4 : 2); }

// A sequence tensor: element (t, b, f) at data + t * step + b * row + f; packed data is one row per time step, and
// `step` is not read.
struct LstmSequence {
  void* data = nullptr;
  int64_t step = 0;
  int64_t row = 0;
};

// Packed weights of every layer and direction in one block: a header, then for each W_ih (h/v, I_l, 4, v), W_hh
// (h/v, h, 4, v) in `dtype` and the sum of the biases (h/v, 4, v) in float32, v being the lanes of the active ISA.
PK_API Status lstm_packed_bytes(const LstmShape& shape, int64_t* bytes);
// weights: per layer and direction w_ih (4h, I_l), w_hh (4h, h) and, with bias, b_ih (4h), b_hh (4h), contiguous.
PK_API Status lstm_pack(const LstmShape& shape, const void* const* weights, void* packed, int64_t bytes,
                        const Executor& executor);
// Is `packed` what lstm_pack makes for this shape (input, hidden, layers, directions, dtype) and the active ISA?
// Sets *bias to whether it was packed with biases.
PK_API Status lstm_check_packed(const LstmShape& shape, const void* packed, int64_t bytes, bool* bias);

struct LstmForward {
  LstmShape shape;
  LstmSequence x;                        // (t, b, i)
  const void* h0 = nullptr;              // (l * d, b, h)
  const void* c0 = nullptr;              // (l * d, b, h)
  const void* const* weights = nullptr;  // lstm_weights(shape) pointers, as in lstm_pack; or
  const void* packed = nullptr;          // lstm_pack's block of packed_bytes, and then weights is not read
  int64_t packed_bytes = 0;
  LstmSequence output;        // (t, b, d * h)
  void* h_n = nullptr;        // (l * d, b, h)
  void* c_n = nullptr;        // (l * d, b, h)
  float* reserve = nullptr;   // lstm_reserve_size(shape) floats for lstm_backward, or nullptr
  void* workspace = nullptr;  // lstm_forward_workspace bytes, 64-byte aligned
  int64_t workspace_bytes = 0;
};

// Floats that the backward pass needs: per layer and direction (rows, 5, h): the four gates and c; then the outputs of
// all layers but the last (layers - 1, rows, d * h).
PK_API Status lstm_reserve_size(const LstmShape& shape, int64_t* floats);
PK_API Status lstm_forward_workspace(const LstmForward& call, int threads, int64_t* bytes);
PK_API Status lstm_forward(const LstmForward& call, const Executor& executor);

struct LstmBackward {
  LstmShape shape;
  LstmSequence grad_output;              // (t, b, d * h), data may be nullptr: zero
  const void* grad_h_n = nullptr;        // (l * d, b, h) or nullptr
  const void* grad_c_n = nullptr;        // (l * d, b, h) or nullptr
  LstmSequence x;                        // (t, b, i)
  const void* h0 = nullptr;              // (l * d, b, h)
  const void* c0 = nullptr;              // (l * d, b, h)
  const void* const* weights = nullptr;  // as in lstm_pack
  LstmSequence output;                   // (t, b, d * h), the forward pass's
  const float* reserve = nullptr;        // written by the forward pass
  LstmSequence grad_x;                   // (t, b, i)
  void* grad_h0 = nullptr;               // (l * d, b, h)
  void* grad_c0 = nullptr;               // (l * d, b, h)
  void* const* grad_weights = nullptr;   // lstm_weights(shape) pointers, shaped as the weights
  void* workspace = nullptr;             // lstm_backward_workspace bytes, 64-byte aligned
  int64_t workspace_bytes = 0;
};

PK_API Status lstm_backward_workspace(const LstmBackward& call, int threads, int64_t* bytes);
PK_API Status lstm_backward(const LstmBackward& call, const Executor& executor);

}  // namespace pk
