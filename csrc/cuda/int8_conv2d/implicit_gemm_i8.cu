// int8_conv2d: the implicit GEMM of csrc/cuda/conv_bn_act on int8, summed in int32. The depthwise kernel and wgmma's
// tiles of int8 are beside their float twins, and so is the entry, pk::cuda::int8_conv, whose plan is theirs.
#include "cuda/conv_bn_act/implicit_gemm.cuh"

namespace pk::cuda::conv {

Status run_gemm_i8(const Gemm& gemm, Tile tile, int copy, void* stream) {
  return run_math<int8_t, AnyType>(gemm, tile, copy, stream);
}

}  // namespace pk::cuda::conv
