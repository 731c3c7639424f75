// The dense product's kernels for float, in float's own precision. Eight warps: the split operands need registers.
#include "cuda/gemm/dense.cuh"

namespace pk::cuda {

Status dense_f32(const Dense& p, Reading reading, int tile, void* stream) {
  using gemm::tf32x3;
  return launch_dense<gemm::Tile<tf32x3, 128, 128, 2, 4, 4>, gemm::Tile<tf32x3, 64, 64, 2, 2, 4>>(p, reading, tile,
                                                                                                  stream);
}

}  // namespace pk::cuda
