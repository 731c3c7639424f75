// csrc/cuda/gemm/persistent_sm90.cuh against naive sums: elements, widths, clusters, more tiles than blocks, tiles
// behind the last row, slices of K of unequal length.
#include "cuda/gemm/persistent_sm90.cuh"
#include "cuda/launch.cuh"
#include "cuda/on_device.h"
#include "cuda/products.h"
#include "cuda/tensor_map.h"

using namespace pk::cuda;
using pk::ceil_div;

namespace {

// out[slice] (m x n) = the slice's part of a (m x k) b (n x k)^T.
template <class T, int kColumns>
__global__ void __launch_bounds__(gemm::kPersistentThreads<T>, T::kBlocks)
    product(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const gemm::Tiles tiles,
            typename T::Sum* out, int m, int n) {
  using Sum = typename T::Sum;
  gemm::wgmma_persistent<T>(
      tiles, dynamic_shared<char>(), [&](const gemm::Work& w) { return gemm::TmaRowsA<T>{&map_a, w.m * T::kM}; },
      [&](const gemm::Work& w) { return gemm::TmaRowsB<T>{&map_b, w.n * T::kN}; },
      [&](const gemm::Work& w, const typename T::Accumulator& acc, char* staging) {
        gemm::for_each_wgmma_staged<T, kColumns>(acc, staging, [&](int row, int column, const Sum(&v)[kColumns]) {
          row += w.m * T::kM, column += w.n * T::kN;
          if (row >= m) return;
          for (int i = 0; i < kColumns; ++i) {
            if (column + i < n) out[(static_cast<int64_t>(w.slice) * m + row) * n + column + i] = v[i];
          }
        });
      });
}

template <class T, int kColumns>
void check(const char* name, int m, int n, int k, int split, int clusters) {
  using E = typename T::Element;
  using Sum = typename T::Sum;
  const simt::Guarded<E> a(operand<E>(static_cast<size_t>(m) * k, 1)), b(operand<E>(static_cast<size_t>(n) * k, 2));
  const int k_tiles = ceil_div(k, T::kK), of_slice = ceil_div(k_tiles, split);
  const gemm::Tiles tiles = {ceil_div(m, T::kM), ceil_div(n, T::kN), k_tiles, split, of_slice};
  std::vector<double> want;
  for (int slice = 0; slice < split; ++slice) {
    const int first = slice * of_slice * T::kK, last = std::min(k, first + of_slice * T::kK);
    const auto part = product_of(a, b, m, n, k, first, last);
    want.insert(want.end(), part.begin(), part.end());
  }
  TensorMap map_a, map_b;
  pk::test::succeeded(make_tensor_map(matrix_view(a.data(), kDType<E>, m, k, k, T::kM, T::kK), &map_a), name);
  pk::test::succeeded(make_tensor_map(matrix_view(b.data(), kDType<E>, n, k, k, T::kN / T::kCluster, T::kK), &map_b),
                      name);
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    simt::Guarded<Sum> out(want.size());
    const auto status = launch(product<T, kColumns>,
                               {.grid = dim3(static_cast<unsigned>(clusters * T::kCluster)),
                                .block = dim3(gemm::kPersistentThreads<T>),
                                .shared_bytes = gemm::kPersistentBytes<T>,
                                .cluster = T::kCluster},
                               nullptr, map_a, map_b, tiles, out.data(), m, n);
    pk::test::succeeded(status, name);
    const double difference = pk::test::relative_l2(out.vector(), want);
    EXPECT(difference <= kProductError<Sum>, "%s %dx%dx%d %s: %g", name, m, n, k, schedule.name, difference);
  }
}

}  // namespace

int main() {
  simt::device() = pk::test::kH100;
  check<gemm::WgmmaTile<int8_t, 256, 4, 2>, 16>("int8 256", 200, 272, 6 * 128 + 16, 1, 1);
  check<gemm::WgmmaTile<int8_t, 64, 2>, 8>("int8 64", 130, 200, 3 * 128, 1, 3);
  check<gemm::WgmmaTile<f16, 128, 2>, 4>("f16 128", 300, 136, 5 * 64 + 8, 3, 2);
  check<gemm::WgmmaTile<bf16, 64, 2, 2>, 8>("bf16 64", 270, 100, 4 * 64 + 8, 2, 2);
  check<gemm::WgmmaTile<bf16, 64, 3, 2>, 8>("bf16 64, idle blocks", 50, 40, 32, 1, 2);
  return pk::test::finish();
}
