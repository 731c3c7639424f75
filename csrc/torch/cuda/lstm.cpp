// The LSTM's CUDA implementations; the schemas are in csrc/torch/cpu/lstm.cpp.
#include "torch/lstm.h"

#include "pykernels/cuda/lstm.h"
#include "torch/cuda/checks.h"

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  using namespace pk;
  binding::LstmOps<binding::OnDevice, cuda::LstmForwardArgs, cuda::LstmForwardPlan, cuda::LstmBackwardArgs,
                   cuda::LstmBackwardPlan, cuda::LstmPackingPlan>::implement(m);
}
