// The dense product on Hopper, f16 and bf16, both operands contiguous along K: 128 x 256 tiles by the persistent wgmma
// loop, two blocks of neighbouring rows sharing what they read of b.
#include "cuda/gemm/dense.cuh"
#include "cuda/gemm/persistent_sm90.cuh"
#include "cuda/tensor_map.h"

namespace pk::cuda {
namespace {

template <class Element>
using DenseTile = gemm::WgmmaTile<Element, 256, 4, 2>;

template <class Element>
__global__ void __launch_bounds__(gemm::kPersistentThreads<DenseTile<Element>>, 1)
    dense_sm90_kernel(const Dense p, const gemm::Tiles tiles, const __grid_constant__ TensorMap map_a,
                      const __grid_constant__ TensorMap map_b) {
#if PK_HAS_SM90A
  using T = DenseTile<Element>;
  gemm::wgmma_persistent<T>(
      tiles, dynamic_shared<char>(), [&](const gemm::Work& w) { return gemm::TmaRowsA<T>{&map_a, w.m * T::kM}; },
      [&](const gemm::Work& w) { return gemm::TmaRowsB<T>{&map_b, w.n * T::kN}; },
      [&](const gemm::Work& w, const typename T::Accumulator& acc, char* staging) {
        const int first_m = w.m * T::kM, first_n = w.n * T::kN;
        gemm::for_each_wgmma_staged<T, kDenseColumns>(
            acc, staging, [&](int row, int column, float (&v)[kDenseColumns]) {
              finish_slice<Element>(p, w.slice, first_m + row, first_n + column, v);
            });
      });
#endif
}

template <class Element>
Status launch_dense_sm90(const Dense& p, int multiprocessors, void* stream) {
  using T = DenseTile<Element>;
  TensorMap map_a, map_b;
  Status status = make_tensor_map(matrix_view(p.a, kDType<Element>, p.m, p.k, p.a_stride, T::kM, T::kK), &map_a);
  if (!status) return status;
  status = make_tensor_map(matrix_view(p.b, kDType<Element>, p.n, p.k, p.b_stride, T::kN / T::kCluster, T::kK), &map_b);
  if (!status) return status;
  const gemm::Tiles tiles = {ceil_div(p.m, T::kM), ceil_div(p.n, T::kN), ceil_div(p.k, T::kK), p.split,
                             p.k_of_slice / T::kK};
  const int64_t clusters = tiles.clusters(T::kCluster);
  if (clusters > 0x7fffffff) return {"gemm: m * n is too large"};
  const int64_t resident = std::max(multiprocessors / T::kCluster, 1);
  return launch(dense_sm90_kernel<Element>,
                {.grid = dim3(static_cast<unsigned>(std::min(clusters, resident) * T::kCluster)),
                 .block = dim3(gemm::kPersistentThreads<T>),
                 .shared_bytes = gemm::kPersistentBytes<T>,
                 .cluster = T::kCluster},
                stream, p, tiles, map_a, map_b);
}

}  // namespace

Status dense_sm90(const Dense& p, DType dtype, int multiprocessors, void* stream) {
  return dtype == DType::f16 ? launch_dense_sm90<f16>(p, multiprocessors, stream)
                             : launch_dense_sm90<bf16>(p, multiprocessors, stream);
}

}  // namespace pk::cuda
