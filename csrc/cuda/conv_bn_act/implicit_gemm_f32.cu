// The implicit GEMM of float32, three products of tf32 each.
#include "cuda/conv_bn_act/implicit_gemm.cuh"

namespace pk::cuda::conv {

Status run_gemm_f32(const Gemm& gemm, Tile tile, int copy, void* stream) {
  return run_math<gemm::tf32x3, float>(gemm, tile, copy, stream);
}

}  // namespace pk::cuda::conv
