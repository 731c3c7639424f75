// LSTM on CUDA: whole sequences of any depth and both directions, forward and backward; a single cell step is a
// sequence of length one. The formulas and the tensors' meaning are those of pykernels/lstm.h; here
// dtype may be f16 as well, and everything but batch_sizes (read on the host during the call) and the arrays of weight
// pointers lies in device memory.
//
// Sums, gates before their activation and c from step to step are float32 whatever the dtype; float32 products are
// exact to fp32 class (3xTF32) unless `tf32` allows plain TF32 for the products outside of the recurrence.
//
// Everything is enqueued on `stream` (a cudaStream_t); nothing is allocated or waited for, the same call on the same
// device gives the same bits, and a CUDA graph may capture it. Errors are static text.
#pragma once

#include <cstdint>

#include "pykernels/cuda/gemm.h"
#include "pykernels/dtype.h"
#include "pykernels/lstm.h"
#include "pykernels/status.h"

namespace pk::cuda {

// Packed weights of every layer and direction in one block. Per layer and direction, each part 16-byte aligned:
//   W_ih (h, 4, I'), W_hh (h, 4, h') in `dtype`, unit by unit the four gates' rows, I' and h' being I_l and h rounded
//   up to 16 bytes' worth of elements and filled with zeros; then b_ih + b_hh (h, 4) in float32, zeros without biases.
// There is no header: its length and dtype are all that tells one block from another.
struct LstmPackingPlan {
  LstmShape shape;
  int64_t packed_bytes;
};
PK_API Status make_packing_plan(const LstmShape& shape, LstmPackingPlan* plan);
// weights: per layer and direction w_ih (4h, I_l), w_hh (4h, h) and, with bias, b_ih (4h), b_hh (4h), contiguous.
PK_API Status pack(const LstmPackingPlan& plan, const void* const* weights, void* packed, void* stream);

// How the recurrence runs. `automatic` chooses from shape and device; the others are for tests and measurements, and
// fail where they can't run.
enum class LstmPath : int32_t {
  automatic,
  persistent,  // one cooperative kernel for many steps, W_hh pinned in registers and shared memory
  cluster,     // the same with h exchanged within clusters of Hopper; backward takes it for automatic
  step,        // one kernel a step: the product, with the cell as its epilogue; weights streamed once
};

// The reserve: what the backward pass needs, in elements of `dtype` (half the bytes of float32 where training is in 16
// bits, and what torch's own kernels keep): per layer and direction the activated gates (rows, h, 4) in the order i, f,
// g, o, so that the thread of a unit moves them as one vector, then c (rows, h); after all of them the outputs of all
// layers but the last (layers - 1, rows, d * h). Row first(t) + b is time step t of sequence b, first(t) = t * b or the
// sum of batch_sizes before t. No padding anywhere.
static inline int64_t lstm_reserve_gates(const LstmShape& s, int layer, int direction) {
  return (static_cast<int64_t>(layer) * s.directions + direction) * 5 * lstm_rows(s) * s.hidden;
}
static inline int64_t lstm_reserve_c(const LstmShape& s, int layer, int direction) {
  return lstm_reserve_gates(s, layer, direction) + 4 * lstm_rows(s) * s.hidden;
}
static inline int64_t lstm_reserve_output(const LstmShape& s, int layer) {
  return lstm_reserve_gates(s, s.layers, 0) + static_cast<int64_t>(layer) * lstm_rows(s) * s.directions * s.hidden;
}

// How the recurrence runs: the business of csrc/cuda/lstm/choose.h and backward_choose.h.
namespace lstm {

struct Choice {
  bool persistent = false;
  bool cluster = false;  // and persistent: h is exchanged within clusters
  int m_tiles = 2;
  int blocks = 0;            // of a worker
  int tiles = 1;             // sequences of a group / kTileRows
  int shared_bytes = 0;      // of a block
  int layers_at_once = 1;    // depth of the wavefront
  int64_t span = 1;          // steps between launches
  int64_t pinned_bytes = 0;  // of W_hh, of a block, in registers and shared memory
};

struct BackwardChoice {
  bool persistent = false;  // else a GEMM and a pointwise kernel a step
  int row_tiles = 0;        // 16 sequences each: 1, 2 or 4 a block
  int unit_tiles = 0;       // 8 hidden units each: 1, 2 or 4 a block
  int slices = 0;           // blocks to cover the units
  int groups = 0;           // groups of sequences side by side in one launch, as many blocks
  int launches = 0;         // to cover all sequences
  int pinned = 0;           // of the chunks of 32 rows of W_hh, how many lie in shared memory; the rest stays in L2
  int shared_bytes = 0;     // of a block
  int64_t cycles = 0;       // estimate for one layer
};

}  // namespace lstm

struct LstmForwardArgs : pk::LstmForwardArgs {
  bool tf32 = false;
  LstmPath path = LstmPath::automatic;
};

// A call whose shape is checked, for the device that was current when it was planned.
struct LstmForwardPlan {
  LstmForwardArgs args;  // pointers to results and the reserve may be set between make_plan and run
  int64_t workspace_bytes = 0;
  int64_t reserve_elements = 0;  // 0 unless `save`
  int multiprocessors = 0;
  lstm::Choice choice;
};

PK_API Status make_plan(const LstmForwardArgs& args, LstmForwardPlan* plan);
// workspace: [plan.workspace_bytes], aligned to 256 bytes. Trusts the plan: nothing is checked again.
PK_API Status run(const LstmForwardPlan& plan, void* workspace, void* stream);

struct LstmBackwardArgs : pk::LstmBackwardArgs {
  bool tf32 = false;
  LstmPath path = LstmPath::automatic;
};

struct LstmBackwardPlan {
  LstmBackwardArgs args;  // all pointers may be set between make_plan and run
  int64_t workspace_bytes = 0;
  int64_t reserve_elements = 0;
  lstm::BackwardChoice choice;
  // The products' plans, without pointers. [0]: of layer 0, [1]: of the others.
  GemmPlan grad_x[2], grad_w_ih[2], grad_w_hh;
  GemmPlan recurrent;  // of the first step: packed sequences have others besides
  int64_t gemm_bytes = 0;
};

PK_API Status make_plan(const LstmBackwardArgs& args, LstmBackwardPlan* plan);
PK_API Status run(const LstmBackwardPlan& plan, void* workspace, void* stream);

}  // namespace pk::cuda
