// The dense product's kernels for f16. Large tiles have four warps of 64 x 64, of which two blocks fit a
// multiprocessor: a warp's square part takes the fewest bytes of shared memory for a product.
#include "cuda/gemm/dense.cuh"

namespace pk::cuda {

Status dense_f16(const Dense& p, Reading reading, int tile, void* stream) {
  return launch_dense<gemm::Tile<f16, 128, 128, 2, 2, 4>, gemm::Tile<f16, 64, 64, 2, 2, 4>>(p, reading, tile, stream);
}

}  // namespace pk::cuda
