// The dense product's kernels for float in tf32's precision.
#include "cuda/gemm/dense.cuh"

namespace pk::cuda {

Status dense_tf32(const Dense& p, Reading reading, int tile, void* stream) {
  using gemm::tf32;
  return launch_dense<gemm::Tile<tf32, 128, 128, 2, 4, 4>, gemm::Tile<tf32, 64, 64, 2, 2, 4>>(p, reading, tile, stream);
}

}  // namespace pk::cuda
