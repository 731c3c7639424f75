// The implicit GEMM of float16, summed in float32.
#include "cuda/conv_bn_act/implicit_gemm.cuh"

namespace pk::cuda::conv {

Status run_gemm_f16(const Gemm& gemm, Tile tile, int copy, void* stream) {
  return run_math<f16, f16>(gemm, tile, copy, stream);
}

}  // namespace pk::cuda::conv
