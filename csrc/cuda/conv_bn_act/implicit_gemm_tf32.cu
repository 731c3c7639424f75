// The implicit GEMM of float32 rounded to tf32.
#include "cuda/conv_bn_act/implicit_gemm.cuh"

namespace pk::cuda::conv {

Status run_gemm_tf32(const Gemm& gemm, Tile tile, int copy, void* stream) {
  return run_math<gemm::tf32, float>(gemm, tile, copy, stream);
}

}  // namespace pk::cuda::conv
