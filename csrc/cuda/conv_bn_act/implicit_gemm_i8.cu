// The implicit GEMM of int8, summed in int32.
#include "cuda/conv_bn_act/implicit_gemm.cuh"

namespace pk::cuda::conv {

Status run_gemm_i8(const Gemm& gemm, Tile tile, int copy, void* stream) {
  return run_math<int8_t, AnyType>(gemm, tile, copy, stream);
}

}  // namespace pk::cuda::conv
