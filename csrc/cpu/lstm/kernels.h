// The LSTM kernels of one ISA.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/lstm.h"

namespace pk {

struct LstmKernels {
  int lanes;
  // weights -> the packed block, whose header api.cpp writes; see layout.h.
  void (*pack)(const LstmShape& shape, const void* const* weights, void* packed, const Executor& executor);
  // Bytes of workspace, then the passes themselves; `call` has been validated.
  int64_t (*forward_workspace)(const LstmForward& call, int threads);
  void (*forward)(const LstmForward& call, const Executor& executor);
  int64_t (*backward_workspace)(const LstmBackward& call, int threads);
  void (*backward)(const LstmBackward& call, const Executor& executor);
};

PK_DECLARE_TABLES(LstmKernels, lstm_kernels)

}  // namespace pk
