// The int8 LSTM's kernels of one ISA.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/int8_lstm.h"

namespace pk {

struct Int8LstmKernels {
  int32_t lanes, group;  // which packed form it reads
  // weights -> the packed block, whose header api.cpp writes; see layout.h.
  void (*pack)(const LstmShape& shape, const Int8LstmWeights* weights, char* packed, const Executor& executor);
  // Completes a plan whose args are set, and valid; then the pass itself.
  void (*plan)(Int8LstmPlan* plan, int threads);
  void (*run)(const Int8LstmPlan& plan, void* workspace, const Executor& executor);
};

PK_DECLARE_TABLES(Int8LstmKernels, int8_lstm_kernels)
PK_DECLARE_DOT4_TABLE(Int8LstmKernels, int8_lstm_kernels)

}  // namespace pk
