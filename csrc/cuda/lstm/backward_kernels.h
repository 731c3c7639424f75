// What api.cu asks of backward.cu, and what that puts together: the recurrence of a layer, two ways, and the small
// kernels around it. All pointers are device memory, all work goes to `stream`.
#pragma once

#include "cuda/lstm/backward_choose.h"
#include "cuda/lstm/backward_layer.cuh"
#include "pykernels/status.h"

namespace pk::cuda::lstm {

// Fills in what follows of the plan's call.
Status plan_backward(const Device& device, LstmBackwardPlan* plan);
Status run_backward(const LstmBackwardPlan& plan, void* workspace, void* stream);
// No sequences: the weights' gradients are zero, everything else is empty.
Status clear_gradients(const LstmBackwardArgs& args, void* stream);

// Both directions of a layer in one kernel. d_gates holds nothing but bytes of 0xff. workspace:
// backward_persistent_workspace bytes, 16-byte aligned.
int64_t backward_persistent_workspace(const LstmShape& shape, const BackwardChoice& choice);
Status backward_persistent_layer(const BackwardLayer& layer, DType dtype, const BackwardChoice& choice, void* workspace,
                                 void* stream);

// The cell's derivative for one step of direction d. dh (b, h): d_gates of the step before times W_hh; dc (b, h): from
// step to step.
Status backward_cell(const BackwardLayer& layer, DType dtype, int d, const StepRows& rows, const float* dh, float* dc,
                     void* stream);

// Copies host integers to `to` without reading host memory after the call, so that a CUDA graph may hold it.
Status write_integers(const int* values, int64_t count, int* to, void* stream);

// h_{t-1} of every row of direction d, (rows, h): what multiplied W_hh. output: (t, b, d * h); h0: (b, h).
Status previous_states(const BackwardLayer& layer, DType dtype, int d, int rows, const LstmSequence& output,
                       const void* h0, void* to, void* stream);

// A sequence tensor that isn't packed, (t, b, features), to dense rows, or back from them.
Status copy_sequence(const LstmSequence& sequence, DType dtype, int steps, int batch, int64_t features, void* rows,
                     bool to_rows, void* stream);

// The sums of d_gates over all rows, (4h) of direction d, to two tensors. workspace: column_sums_workspace bytes.
int64_t column_sums_workspace(const LstmShape& shape, int64_t pitch);
Status column_sums(const BackwardLayer& layer, DType dtype, int d, int rows, void* b_ih, void* b_hh, void* workspace,
                   void* stream);

}  // namespace pk::cuda::lstm
