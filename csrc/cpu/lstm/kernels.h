// The LSTM kernels of one ISA.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/lstm.h"

namespace pk {

struct LstmKernels {
  int lanes;
  // weights -> the packed block, whose header api.cpp writes; see layout.h.
  void (*pack)(const LstmShape& shape, const void* const* weights, void* packed, const Executor& executor);
  void (*pack_int8)(const LstmShape& shape, const Int8LstmWeights* weights, void* packed, const Executor& executor);
  // Completes a plan whose args are set, and valid; then the passes themselves.
  void (*plan_forward)(LstmForwardPlan* plan, int threads);
  void (*forward)(const LstmForwardPlan& plan, void* workspace, const Executor& executor);
  void (*plan_backward)(LstmBackwardPlan* plan, int threads);
  void (*backward)(const LstmBackwardPlan& plan, void* workspace, const Executor& executor);
};

PK_DECLARE_TABLES(LstmKernels, lstm_kernels)

}  // namespace pk
