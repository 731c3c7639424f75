// A call of the LSTM's CUDA ops.
#pragma once

#include "pykernels/cuda/lstm.h"
#include "torch/cuda/checks.h"
#include "torch/lstm.h"

namespace pk::binding {

struct OnCuda : OnDevice {
  using OnDevice::OnDevice;
  static DType dtype(const char* op, ScalarType t) { return to_cuda_float(t, op, "x"); }
};
using CudaLstmCall = LstmCall<OnCuda>;

}  // namespace pk::binding
