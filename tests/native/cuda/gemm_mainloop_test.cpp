// csrc/cuda/gemm/mainloop.cuh against a product in double: every element, copy width, orientation and epilogue, tails
// of m, n and k, parts of K, under all schedules.
#include "cuda/gemm/mainloop.cuh"
#include "cuda/launch.cuh"
#include "cuda/on_device.h"
#include "cuda/products.h"
#include "cuda/tf32.h"

using namespace pk::cuda;
using pk::ceil_div;
namespace gemm = pk::cuda::gemm;

namespace {

// How an operand lies in memory and is read: bytes of a copy, and whether rows or columns are contiguous.
template <int kBytes, bool kTransposed>
struct Read {
  template <class T>
  using Loader = std::conditional_t<kTransposed, gemm::ColumnsLoader<T, kBytes>, gemm::RowsLoader<T, kBytes>>;
  static constexpr bool transposed = kTransposed;
};

enum class Epilogue { pairs, staged4, staged8, staged16 };

template <class Tile, class ReadA, class ReadB, Epilogue kEpilogue>
__global__ void product(const typename Tile::Storage* a, int64_t a_stride, const typename Tile::Storage* b,
                        int64_t b_stride, typename Tile::Sum* out, int m, int n, int k, int first_k_tile, int k_tiles) {
  using Storage = typename Tile::Storage;
  using Sum = typename Tile::Sum;
  char* const shared = dynamic_shared<char>();
  const int first_m = static_cast<int>(blockIdx.y) * Tile::kM, first_n = static_cast<int>(blockIdx.x) * Tile::kN;
  const typename ReadA::template Loader<Storage> load_a{a, a_stride, first_m, m, k};
  const typename ReadB::template Loader<Storage> load_b{b, b_stride, first_n, n, k};
  typename Tile::Accumulator acc;
  gemm::clear<Tile>(acc);
  gemm::mainloop<Tile>(load_a, load_b, first_k_tile, k_tiles, acc, shared);
  const auto store = [&](int row, int column, Sum v) {
    row += first_m, column += first_n;
    if (row < m && column < n) out[static_cast<int64_t>(row) * n + column] += v;
  };
  if constexpr (kEpilogue == Epilogue::pairs) {
    gemm::for_each_pair<Tile>(acc, [&](int row, int column, Sum v0, Sum v1) {
      store(row, column, v0);
      store(row, column + 1, v1);
    });
  } else {
    constexpr int kColumns = kEpilogue == Epilogue::staged4 ? 4 : kEpilogue == Epilogue::staged8 ? 8 : 16;
    gemm::for_each_staged<Tile, kColumns>(acc, shared, [&](int row, int column, const Sum(&v)[kColumns]) {
      if (column != gemm::staged_column<Tile, kColumns>()) column = -1;
      for (int i = 0; i < kColumns; ++i) store(row, column + i, v[i]);
    });
  }
}

// What the matrix unit sees of an element.
template <class Element>
double seen(typename gemm::ElementTraits<Element>::Storage x) {
  if constexpr (std::is_same_v<Element, gemm::tf32>) {
    return pk::to_tf32(x);
  } else {
    return value(x);
  }
}

template <class Tile, class ReadA, class ReadB, Epilogue kEpilogue = Epilogue::pairs>
void check(const char* name, int m, int n, int k) {
  using Storage = typename Tile::Storage;
  using Sum = typename Tile::Sum;
  const simt::Guarded<Storage> a(operand<Storage>(static_cast<size_t>(m) * k, 1)),
      b(operand<Storage>(static_cast<size_t>(n) * k, 2));
  const auto elements = [k](const simt::Guarded<Storage>& v, int rows, bool transposed) {
    return [&v, k, rows, transposed](int i, int l) {
      const int at = transposed ? l * rows + i : i * k + l;
      return seen<typename Tile::Element>(v[static_cast<size_t>(at)]);
    };
  };
  const auto want = product_of(m, n, 0, k, elements(a, m, ReadA::transposed), elements(b, n, ReadB::transposed));
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    simt::Guarded<Sum> out(want.size());
    for (size_t i = 0; i < want.size(); ++i) out[i] = 0;
    // In two parts, of which the first may be empty.
    const int tiles = ceil_div(k, Tile::kK), first = tiles / 3;
    for (const auto& [begin, count] : {std::pair{0, first}, std::pair{first, tiles - first}}) {
      const pk::Status status = launch(product<Tile, ReadA, ReadB, kEpilogue>,
                                       {.grid = dim3(ceil_div(n, Tile::kN), ceil_div(m, Tile::kM)),
                                        .block = dim3(Tile::kThreads),
                                        .shared_bytes = std::max(Tile::kSharedBytes, gemm::kStagedBytes<Tile>)},
                                       nullptr, a.data(), int64_t{ReadA::transposed ? m : k}, b.data(),
                                       int64_t{ReadB::transposed ? n : k}, out.data(), m, n, k, begin, count);
      pk::test::succeeded(status, name);
    }
    const double difference = pk::test::relative_l2(out.vector(), want);
    EXPECT(difference <= kProductError<Sum>, "%s %dx%dx%d %s: %g", name, m, n, k, schedule.name, difference);
  }
}

template <class Element>
using Small = gemm::Tile<Element, 32, 32, 2, 1, 3>;

// All copy widths and orientations of one element; `unit` elements are 16 bytes.
template <class Element, int kSize>
void check_element(const char* name) {
  using Rows = Read<16, false>;
  constexpr int unit = 16 / kSize;
  check<Small<Element>, Rows, Rows>(name, 37, 41, 9 * unit);
  check<Small<Element>, Rows, Rows>(name, 1, 1, unit);
  check<Small<Element>, Read<8, false>, Rows, Epilogue::staged4>(name, 5, 33, 5 * unit);
  check<Small<Element>, Read<8, false>, Read<8, false>>(name, 33, 17, 7 * unit / 2);
  check<Small<Element>, Read<4, false>, Read<8, false>>(name, 33, 17, 7 * unit / 2);
  check<Small<Element>, Read<4, false>, Read<4, false>, Epilogue::staged8>(name, 40, 20, 5 * unit / 4);
  if constexpr (kSize < 4) {
    check<Small<Element>, Read<kSize, false>, Read<kSize, false>, Epilogue::staged16>(name, 34, 9, 3 * unit + 5);
    check<Small<Element>, Read<kSize, false>, Read<kSize, false>>(name, 3, 2, 1);
  }
  if constexpr (kSize > 1) {
    using Columns = Read<16, true>;
    check<Small<Element>, Columns, Columns>(name, 5 * unit, 3 * unit, 71);
    check<Small<Element>, Rows, Columns>(name, 34, 5 * unit, 5 * unit);
    check<Small<Element>, Columns, Read<4, false>>(name, 5 * unit, 9, 3 * unit / 2 * 2);
    check<Small<Element>, Read<8, true>, Read<4, true>>(name, 9 * unit / 2, 11 * unit / 4, 33);
    if constexpr (kSize < 4) check<Small<Element>, Read<kSize, true>, Read<kSize, true>>(name, 35, 33, 37);
  }
}

}  // namespace

int main() {
  check_element<f16, 2>("f16");
  check_element<bf16, 2>("bf16");
  check_element<int8_t, 1>("int8");
  check_element<gemm::tf32, 4>("tf32");
  check_element<gemm::tf32x3, 4>("tf32x3");

  // The tiles that kernels use, on few blocks: other warps, stages, bytes of a k tile, lines.
  using Rows = Read<16, false>;
  using Columns = Read<16, true>;
  check<gemm::Tile<f16, 128, 128, 2, 4, 4>, Rows, Rows, Epilogue::staged8>("f16 128x128", 120, 130, 136);
  check<gemm::Tile<f16, 128, 128, 2, 4, 4>, Columns, Columns, Epilogue::staged8>("f16 128x128", 120, 136, 65);
  check<gemm::Tile<bf16, 64, 64, 2, 2, 3, 128>, Rows, Columns>("bf16 64x64x64", 60, 72, 200);
  check<gemm::Tile<int8_t, 128, 128, 2, 4, 3, 128>, Rows, Rows, Epilogue::staged16>("int8 128x128", 70, 129, 400);
  check<gemm::Tile<int8_t, 64, 16, 4, 1, 4, 128>, Rows, Rows>("int8 64x16", 70, 13, 272);
  check<gemm::Tile<int8_t, 64, 8, 4, 1, 4, 64>, Rows, Rows, Epilogue::staged4>("int8 64x8", 64, 8, 272);
  check<gemm::Tile<f16, 64, 8, 4, 1, 2, 64>, Rows, Read<8, false>, Epilogue::staged8>("f16 64x8", 64, 8, 136);
  check<gemm::Tile<gemm::tf32x3, 128, 64, 4, 2, 3>, Columns, Columns, Epilogue::staged4>("tf32x3 128x64", 124, 68, 33);
  check<gemm::Tile<gemm::tf32x3, 128, 64, 4, 2, 3>, Rows, Rows>("tf32x3 128x64", 124, 68, 36);
  return pk::test::finish();
}
