// The int8 family's CUDA implementations; the schemas are in csrc/torch/cpu/int8_matmul.cpp.
#include "torch/int8_matmul.h"

#include "pykernels/cuda/int8_matmul.h"
#include "torch/cuda/checks.h"

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  using namespace pk;
  binding::Int8Ops<binding::OnDevice, cuda::Int8MatmulArgs, cuda::Int8MatmulPlan, cuda::Int8PackingPlan,
                   cuda::QuantizeInt8Plan>::implement(m);
}
