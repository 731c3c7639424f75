// LSTM on CUDA: whole sequences of any depth and both directions, forward and backward; a single cell step is a
// sequence of length one. The formulas and the tensors' meaning are those of pykernels/lstm.h; here
// dtype may be f16 as well, and everything but batch_sizes (read on the host during the call) and the arrays of weight
// pointers lies in device memory.
//
// Sums, gates before their activation and c from step to step are float32 whatever the dtype; float32 products are
// exact to fp32 class (3xTF32) unless `tf32` allows plain TF32 for the products outside of the recurrence.
//
// Every function enqueues on `stream` (a cudaStream_t), allocates nothing, synchronises nothing, gives the same bits
// for the same call on the same device, and can be captured in a CUDA graph. Errors are static text.
#pragma once

#include <cstdint>

#include "pykernels/dtype.h"
#include "pykernels/lstm.h"
#include "pykernels/status.h"

namespace pk::cuda {

// Packed weights of every layer and direction in one block. Per layer and direction, each part 16-byte aligned:
//   W_ih (h, 4, I'), W_hh (h, 4, h') in `dtype`, unit by unit the four gates' rows, I' and h' being I_l and h rounded
//   up to 16 bytes' worth of elements and filled with zeros; then b_ih + b_hh (h, 4) in float32, zeros without biases.
// There is no header: its length and dtype are all that tells one block from another.
PK_API Status lstm_packed_bytes(const LstmShape& shape, int64_t* bytes);
// weights: per layer and direction w_ih (4h, I_l), w_hh (4h, h) and, with bias, b_ih (4h), b_hh (4h), contiguous.
PK_API Status lstm_pack(const LstmShape& shape, const void* const* weights, void* packed, void* stream);

// How the recurrence runs. `automatic` chooses from shape and device; the others are for tests and measurements, and
// fail where they can't run.
enum class LstmPath : int32_t {
  automatic,
  persistent,  // one cooperative kernel for many steps, W_hh pinned in registers and shared memory
  cluster,     // the same with h exchanged within clusters of Hopper; backward takes it for automatic
  step,        // one kernel a step: the product, with the cell as its epilogue; weights streamed once
};

struct LstmForward : LstmForwardTensors {
  void* workspace = nullptr;  // lstm_forward_workspace bytes, 256-byte aligned
  int64_t workspace_bytes = 0;
  bool tf32 = false;
  LstmPath path = LstmPath::automatic;
};

// The reserve: what the backward pass needs, in elements of `dtype` (half the bytes of float32 where training is in 16
// bits, and what torch's own kernels keep): per layer and direction the activated gates (rows, h, 4) in the order i, f,
// g, o, so that the thread of a unit moves them as one vector, then c (rows, h); after all of them the outputs of all
// layers but the last (layers - 1, rows, d * h). Row first(t) + b is time step t of sequence b, first(t) = t * b or the
// sum of batch_sizes before t. No padding anywhere.
PK_API Status lstm_reserve_elements(const LstmShape& shape, int64_t* elements);
static inline int64_t lstm_reserve_gates(const LstmShape& s, int layer, int direction) {
  return (static_cast<int64_t>(layer) * s.directions + direction) * 5 * lstm_rows(s) * s.hidden;
}
static inline int64_t lstm_reserve_c(const LstmShape& s, int layer, int direction) {
  return lstm_reserve_gates(s, layer, direction) + 4 * lstm_rows(s) * s.hidden;
}
static inline int64_t lstm_reserve_output(const LstmShape& s, int layer) {
  return lstm_reserve_gates(s, s.layers, 0) + static_cast<int64_t>(layer) * lstm_rows(s) * s.directions * s.hidden;
}

// Reads shape, x's and output's strides, path and which of the optional pointers are set.
PK_API Status lstm_forward_workspace(const LstmForward& call, int64_t* bytes);
PK_API Status lstm_forward(const LstmForward& call, void* stream);

struct LstmBackward : LstmBackwardTensors {
  void* workspace = nullptr;  // lstm_backward_workspace bytes, 256-byte aligned
  int64_t workspace_bytes = 0;
  bool tf32 = false;
  LstmPath path = LstmPath::automatic;
};

PK_API Status lstm_backward_workspace(const LstmBackward& call, int64_t* bytes);
PK_API Status lstm_backward(const LstmBackward& call, void* stream);

}  // namespace pk::cuda
