// The products on Hopper: TMA brings 128 bytes of K a row, wgmma multiplies them from shared memory, int32 sums in
// registers; csrc/cuda/gemm has the loops.
//
//   128 x 256: persistent, two blocks of neighbouring rows share what they load of b. Large products.
//   128 x 128: a block a tile, two on a multiprocessor: one multiplies while the other stores. K may be split.
//   swapped:   b's rows on the tall side of the tile and up to 64 of a's rows as its columns: little of the tile is
//              empty where a is short. K is split, and the sums, which come out transposed, are put aside for
//              add_slices.
#include "cuda/gemm/persistent_sm90.cuh"
#include "cuda/int8_matmul/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/tensor_map.h"

namespace pk::cuda::int8 {
namespace {

using Large = gemm::WgmmaTile<int8_t, 256, 4, 2>;
using Small = gemm::WgmmaTile<int8_t, 128, 3>;
using Swapped = gemm::WgmmaTile<int8_t, 64, 4>;

// Sums of a warp in shared memory: 16 rows of 64 columns at a time.
constexpr int kStagedColumns = 64, kStagedInts = 16 * kStagedColumns;
static_assert(kStagedInts * 4 * Large::kConsumers / kWarp <= gemm::kWgmmaStagedBytes<Large>);
static_assert(kStagedInts * 4 * Small::kConsumers / kWarp <= Small::kFreeBytes);

// Columns a lane. Two blocks a multiprocessor leave too few registers for four.
template <class T>
inline constexpr int kColumns = T::kBlocks == 1 ? 4 : 2;

// The consumers' sums of a tile whose first output is (row, column). `staging`: kStagedInts of each of the eight warps.
template <class T>
PK_DEVICE void store_sums(const Product& p, const Epilogue& e, int slice, int64_t row, int64_t column,
                          const typename T::Accumulator& acc, char* staging) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int32_t* sums = reinterpret_cast<int32_t*>(staging) + warp * kStagedInts;
  PK_UNROLL
  for (int part = 0; part < T::kN / kStagedColumns; ++part) {
    __syncwarp();  // the last part has been read
    PK_UNROLL
    for (int j = 0; j < kStagedColumns / 8; ++j) {
      const int32_t* v = acc.v + (part * kStagedColumns / 8 + j) * 4;
      const int row_of = lane / 4, column_of = j * 8 + lane % 4 * 2;
      *reinterpret_cast<int2*>(sums + staged<kStagedColumns>(row_of, column_of)) = make_int2(v[0], v[1]);
      *reinterpret_cast<int2*>(sums + staged<kStagedColumns>(row_of + 8, column_of)) = make_int2(v[2], v[3]);
    }
    __syncwarp();
    store_staged<kStagedColumns, kColumns<T>>(p, e, slice, sums, 16, row + warp * 16, column + part * kStagedColumns);
  }
}

__global__ void __launch_bounds__(gemm::kPersistentThreads<Large>, 1)
    large_kernel(const Product p, const Epilogue e, const gemm::Tiles tiles, const __grid_constant__ TensorMap map_a,
                 const __grid_constant__ TensorMap map_b) {
#if PK_HAS_SM90A
  using T = Large;
  gemm::wgmma_persistent<T>(
      tiles, dynamic_shared<char>(), [&](const gemm::Work& w) { return gemm::TmaRowsA<T>{&map_a, w.m * T::kM}; },
      [&](const gemm::Work& w) { return gemm::TmaRowsB<T>{&map_b, w.n * T::kN}; },
      [&](const gemm::Work& w, const T::Accumulator& acc, char* staging) {
        store_sums<T>(p, e, w.slice, static_cast<int64_t>(w.m) * T::kM, static_cast<int64_t>(w.n) * T::kN, acc,
                      staging);
      });
#endif
}

// Blocks of x: the tiles; of y: the slices of K.
__global__ void __launch_bounds__(Small::kThreads, Small::kBlocks)
    small_kernel(const Product p, const Epilogue e, const gemm::Tiles tiles, const __grid_constant__ TensorMap map_a,
                 const __grid_constant__ TensorMap map_b) {
#if PK_HAS_SM90A
  using T = Small;
  const gemm::Work w = tiles.work(static_cast<int>(blockIdx.x + gridDim.x * blockIdx.y), 1, 0);
  char* shared = dynamic_shared<char>();
  gemm::wgmma_mainloop<T>(gemm::TmaRowsA<T>{&map_a, w.m * T::kM}, gemm::TmaRowsB<T>{&map_b, w.n * T::kN}, w.first,
                          w.count, shared, [&](const T::Accumulator& acc) {
                            store_sums<T>(p, e, w.slice, static_cast<int64_t>(w.m) * T::kM,
                                          static_cast<int64_t>(w.n) * T::kN, acc, shared);
                          });
#endif
}

// tiles.m counts tiles of b's rows; a's rows are the single tile across.
__global__ void __launch_bounds__(Swapped::kThreads, Swapped::kBlocks)
    swapped_kernel(const Product p, const gemm::Tiles tiles, const __grid_constant__ TensorMap map_a,
                   const __grid_constant__ TensorMap map_b) {
#if PK_HAS_SM90A
  using T = Swapped;
  const gemm::Work w = tiles.work(static_cast<int>(blockIdx.x + gridDim.x * blockIdx.y), 1, 0);
  gemm::wgmma_mainloop<T>(gemm::TmaRowsA<T>{&map_b, w.m * T::kM}, gemm::TmaRowsB<T>{&map_a, 0}, w.first, w.count,
                          dynamic_shared<char>(), [&](const T::Accumulator& acc) {
                            // Eight lanes have neighbouring columns of the output: whole sectors, without shared
                            // memory.
                            gemm::for_each_wgmma_pair<T>(acc, [&](int row, int token, int32_t v0, int32_t v1) {
                              const int64_t column = static_cast<int64_t>(w.m) * T::kM + row;
                              if (column >= p.n) return;
                              if (token < p.m) partial_row(p, w.slice, token)[column] = v0;
                              if (token + 1 < p.m) partial_row(p, w.slice, token + 1)[column] = v1;
                            });
                          });
#endif
}

// Maps of rows of K, boxes of so many rows.
Status map_rows(const int8_t* data, int64_t rows, int64_t k, int64_t stride, int box_rows, TensorMap* map) {
  return make_tensor_map(matrix_view(data, DType::i8, rows, k, stride, box_rows, 128), map);
}

// In tiles of T; `tall` are the rows on the tile's first side.
template <class T>
gemm::Tiles tiles_of(const Product& p, int64_t tall, int64_t wide) {
  const auto k_tiles = static_cast<int>(ceil_div<int64_t>(p.k, T::kK));
  return {static_cast<int>(ceil_div<int64_t>(tall, T::kM)), static_cast<int>(ceil_div<int64_t>(wide, T::kN)), k_tiles,
          p.split, ceil_div(k_tiles, p.split)};
}

}  // namespace

Status hopper_tiles(const Product& p, const Epilogue& e, Int8Algorithm algorithm, int multiprocessors, void* stream) {
  if (ceil_div<int64_t>(p.m, 64) * ceil_div<int64_t>(p.n, 64) * p.split > INT32_MAX) {
    return {"m, n: expected fewer than 2^31 tiles"};
  }
  TensorMap a, b;
  if (algorithm == Int8Algorithm::hopper_swapped) {
    using T = Swapped;
    const gemm::Tiles tiles = tiles_of<T>(p, p.n, p.m);
    PK_TRY(map_rows(p.b, p.n, p.k, p.b_stride, T::kM, &b));
    PK_TRY(map_rows(p.a, p.m, p.k, p.a_stride, T::kN, &a));
    return launch(swapped_kernel,
                  {.grid = dim3(static_cast<unsigned>(tiles.m), static_cast<unsigned>(tiles.split)),
                   .block = dim3(T::kThreads),
                   .shared_bytes = T::kSharedBytes},
                  stream, p, tiles, a, b);
  }
  if (algorithm == Int8Algorithm::hopper_128x128) {
    using T = Small;
    const gemm::Tiles tiles = tiles_of<T>(p, p.m, p.n);
    PK_TRY(map_rows(p.a, p.m, p.k, p.a_stride, T::kM, &a));
    PK_TRY(map_rows(p.b, p.n, p.k, p.b_stride, T::kN, &b));
    return launch(small_kernel,
                  {.grid = dim3(static_cast<unsigned>(tiles.m * tiles.n), static_cast<unsigned>(tiles.split)),
                   .block = dim3(T::kThreads),
                   .shared_bytes = T::kSharedBytes},
                  stream, p, e, tiles, a, b);
  }
  using T = Large;
  const gemm::Tiles tiles = tiles_of<T>(p, p.m, p.n);
  PK_TRY(map_rows(p.a, p.m, p.k, p.a_stride, T::kM, &a));
  PK_TRY(map_rows(p.b, p.n, p.k, p.b_stride, T::kN / T::kCluster, &b));
  const int64_t resident = multiprocessors / T::kCluster, clusters = tiles.clusters(T::kCluster);
  return launch(large_kernel,
                {.grid = dim3(static_cast<unsigned>((clusters < resident ? clusters : resident) * T::kCluster)),
                 .block = dim3(gemm::kPersistentThreads<T>),
                 .shared_bytes = gemm::kPersistentBytes<T>,
                 .cluster = T::kCluster},
                stream, p, e, tiles, a, b);
}

}  // namespace pk::cuda::int8
