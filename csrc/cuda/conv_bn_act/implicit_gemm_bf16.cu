// The implicit GEMM of bfloat16, summed in float32.
#include "cuda/conv_bn_act/implicit_gemm.cuh"

namespace pk::cuda::conv {

Status run_gemm_bf16(const Gemm& gemm, Tile tile, int copy, void* stream) {
  return run_math<bf16, bf16>(gemm, tile, copy, stream);
}

}  // namespace pk::cuda::conv
