// The Hopper main loop against naive sums: f16, bf16 and int8, every width, alone and in clusters, few k tiles and more
// than the ring has, tails on all sides.
#include "cuda/gemm/mainloop_sm90.cuh"

#include "cuda/launch.cuh"
#include "cuda/on_device.h"
#include "cuda/products.h"

using namespace pk::cuda;
using pk::ceil_div;

namespace {

// d (m x n) = a (m x k) b (n x k)^T, k tiles from `first` on.
template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    product(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, typename T::Sum* d, int m,
            int n, int first, int count) {
  const int row = static_cast<int>(blockIdx.x) * T::kM, column = static_cast<int>(blockIdx.y) * T::kN;
  gemm::wgmma_mainloop<T>(gemm::TmaRowsA<T>{&map_a, row}, gemm::TmaRowsB<T>{&map_b, column}, first, count,
                          dynamic_shared<char>(), [&](const typename T::Accumulator& acc) {
                            gemm::for_each_wgmma_pair<T>(acc,
                                                         [&](int i, int j, typename T::Sum v0, typename T::Sum v1) {
                                                           if (row + i >= m) return;
                                                           if (column + j < n)
                                                             d[static_cast<int64_t>(row + i) * n + column + j] = v0;
                                                           if (column + j + 1 < n)
                                                             d[static_cast<int64_t>(row + i) * n + column + j + 1] = v1;
                                                         });
                          });
}

template <class T>
void check(int m, int n, int k, int first_tile) {
  using E = typename T::Element;
  const simt::Guarded<E> a(operand<E>(static_cast<size_t>(m * k), 1)), b(operand<E>(static_cast<size_t>(n * k), 2));
  const auto expected = product_of(a, b, m, n, k, first_tile * T::kK, k);
  TensorMap map_a, map_b;
  pk::test::succeeded(make_tensor_map(matrix_view(a.data(), kDType<E>, m, k, k, T::kM, T::kK), &map_a), "map_a");
  pk::test::succeeded(make_tensor_map(matrix_view(b.data(), kDType<E>, n, k, k, T::kN / T::kCluster, T::kK), &map_b),
                      "map_b");
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    simt::Guarded<typename T::Sum> d(static_cast<size_t>(m * n));
    const int blocks_m = ceil_div(ceil_div(m, T::kM), T::kCluster) * T::kCluster;
    const pk::Status status =
        launch(product<T>,
               {.grid = dim3(static_cast<unsigned>(blocks_m), ceil_div(n, T::kN)),
                .block = dim3(T::kThreads),
                .shared_bytes = T::kSharedBytes,
                .cluster = T::kCluster},
               nullptr, map_a, map_b, d.data(), m, n, first_tile, ceil_div(k, T::kK) - first_tile);
    pk::test::succeeded(status, schedule.name);
    int wrong = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      // A float sum is rounded once a step of 16.
      const double tolerance = std::is_same_v<E, int8_t> ? 0.0 : 1e-6 * k;
      wrong += !(std::fabs(static_cast<double>(d[i]) - expected[i]) <= tolerance);
    }
    EXPECT(wrong == 0, "%d wrong of %d x %d x %d, %s", wrong, m, n, k, schedule.name);
  }
}

}  // namespace

int main() {
  simt::device() = pk::test::kH100;
  check<gemm::WgmmaTile<f16, 64, 4>>(130, 70, 6 * 64 + 8, 0);
  check<gemm::WgmmaTile<bf16, 64, 2>>(9, 5, 5 * 64, 2);
  check<gemm::WgmmaTile<int8_t, 64, 2>>(40, 64, 2 * 128 + 16, 0);
  check<gemm::WgmmaTile<f16, 128, 3>>(128, 136, 16, 0);
  check<gemm::WgmmaTile<int8_t, 256, 4, 2>>(150, 200, 6 * 128 + 16, 1);
  check<gemm::WgmmaTile<bf16, 64, 2, 2>>(270, 100, 4 * 64 + 8, 0);
  return pk::test::finish();
}
