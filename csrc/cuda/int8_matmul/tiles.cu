// Tiles of m x n by the shared tensor-core main loop, for every GPU since Ampere; and the sum of the slices of K of a
// product that was split.
//
// Blocks walk the tiles in groups of rows, so that those that run at once share few rows of a and b in L2. The sums
// leave the registers through shared memory, half of a warp's part at a time: so the epilogue stands in the code twice
// and not once per register, and a warp stores whole lines.
#include "cuda/gemm/mainloop.cuh"
#include "cuda/int8_matmul/epilogue.cuh"
#include "cuda/launch.cuh"

namespace pk::cuda::int8 {
namespace {

constexpr int kGroup = 8;  // tile rows

// Rows of a or b for the main loop. A row is an int, not a pointer and a flag: registers are what these tiles lack.
struct Rows {
  static constexpr int kCopyBytes = 16;
  static constexpr bool kTransposed = false;
  const int8_t* data;    // of the tile's first row
  int64_t stride, rows;  // that there are from it on
  int k;

  struct Row {
    int offset;
  };
  struct Position {
    int k;
  };
  PK_DEVICE Row row(int tile_row) const { return {row_offset(tile_row, rows, stride)}; }
  PK_DEVICE Position start(int at) const { return {at}; }
  PK_DEVICE void advance(Position& position, int step) const { position.k += step; }
  PK_DEVICE gemm::Source source(const Row& row, const Position& position) const {
    return {data + (row.offset + position.k), position.k < k};
  }
};

template <class Tile>
inline constexpr int kPassRows = Tile::kWarpM / 2;

template <class Tile>
PK_DEVICE void store_tile(const Product& p, const Epilogue& e, int64_t row, int64_t column,
                          const typename Tile::Accumulator& acc, char* shared) {
  constexpr int kBlocks = Tile::kBlocksM / 2;
  static_assert(Tile::kBlocksM % 2 == 0);
  static_assert(Tile::kThreads / kWarp * kPassRows<Tile> * Tile::kWarpN * 4 <= Tile::kSharedBytes);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int32_t* sums = reinterpret_cast<int32_t*>(shared) + warp * kPassRows<Tile> * Tile::kWarpN;
  row += warp / Tile::kWarpsN * Tile::kWarpM;
  column += warp % Tile::kWarpsN * Tile::kWarpN;
  PK_UNROLL
  for (int pass = 0; pass < 2; ++pass) {
    __syncwarp();  // the last pass has been read
    PK_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
      PK_UNROLL
      for (int j = 0; j < Tile::kBlocksN; ++j) {
        const auto& v = acc.v[pass * kBlocks + i][j];
        const int row_of = i * 16 + lane / 4, column_of = j * 8 + lane % 4 * 2;
        *reinterpret_cast<int2*>(sums + staged<Tile::kWarpN>(row_of, column_of)) = make_int2(v[0], v[1]);
        *reinterpret_cast<int2*>(sums + staged<Tile::kWarpN>(row_of + 8, column_of)) = make_int2(v[2], v[3]);
      }
    }
    __syncwarp();
    store_staged<Tile::kWarpN, 4>(p, e, static_cast<int>(blockIdx.y), sums, kPassRows<Tile>,
                                  row + pass * kPassRows<Tile>, column);
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) tile_kernel(Product p, Epilogue e) {
  char* shared = dynamic_shared<char>();
  const int64_t tiles_m = ceil_div<int64_t>(p.m, Tile::kM), tiles_n = ceil_div<int64_t>(p.n, Tile::kN);
  const int64_t tile = blockIdx.x, group = tile / (kGroup * tiles_n), in_group = tile % (kGroup * tiles_n);
  const int64_t group_rows = tiles_m - group * kGroup < kGroup ? tiles_m - group * kGroup : kGroup;
  const int64_t row = (group * kGroup + in_group % group_rows) * Tile::kM, column = in_group / group_rows * Tile::kN;
  const int k = static_cast<int>(p.k);
  const Rows a{p.a + row * p.a_stride, p.a_stride, p.m - row, k};
  const Rows b{p.b + column * p.b_stride, p.b_stride, p.n - column, k};
  const int steps = ceil_div(k, Tile::kK), slice = ceil_div(steps, static_cast<int>(gridDim.y));
  const int begin = static_cast<int>(blockIdx.y) * slice, end = begin + slice < steps ? begin + slice : steps;
  typename Tile::Accumulator acc;
  gemm::clear<Tile>(acc);
  gemm::mainloop<Tile>(a, b, begin, end - begin, acc, shared);
  store_tile<Tile>(p, e, row, column, acc, shared);
}

template <class Tile>
Status launch_tiles(const Product& p, const Epilogue& e, void* stream) {
  const int64_t tiles = ceil_div<int64_t>(p.m, Tile::kM) * ceil_div<int64_t>(p.n, Tile::kN);
  if (tiles > INT32_MAX) return {"m, n: expected fewer than 2^31 tiles"};
  return launch(tile_kernel<Tile>,
                {.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.split)),
                 .block = dim3(Tile::kThreads),
                 .shared_bytes = Tile::kSharedBytes},
                stream, p, e);
}

constexpr int kSliceThreads = 128, kSliceRows = 4, kColumns = 4;

// A thread has four columns of kSliceRows rows.
__global__ void __launch_bounds__(kSliceThreads) slices_kernel(Product p, Epilogue e) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kSliceThreads + threadIdx.x) * kColumns;
  if (column >= p.n) return;
  const Columns<kColumns> columns = load_columns<kColumns>(e, column);
  for (int r = 0; r < kSliceRows; ++r) {
    const int64_t row = static_cast<int64_t>(blockIdx.y) * kSliceRows + r;
    if (row >= p.m) return;
    int32_t sums[kColumns] = {};
    for (int slice = 0; slice < p.split; ++slice) {
      const int4 four = *reinterpret_cast<const int4*>(partial_row(p, slice, row) + column);
      sums[0] += four.x, sums[1] += four.y, sums[2] += four.z, sums[3] += four.w;
    }
    store_row(e, columns, row, sums);
  }
}

}  // namespace

Status tiles(const Product& p, const Epilogue& e, Int8Algorithm algorithm, void* stream) {
  switch (algorithm) {
    case Int8Algorithm::tile_64x64:
      return launch_tiles<gemm::Tile<int8_t, 64, 64, 2, 2>>(p, e, stream);
    case Int8Algorithm::tile_128x128:
      return launch_tiles<gemm::Tile<int8_t, 128, 128, 2, 2>>(p, e, stream);
    default:
      return launch_tiles<gemm::Tile<int8_t, 128, 256, 2, 4>>(p, e, stream);
  }
}

Status add_slices(const Product& p, const Epilogue& e, void* stream) {
  return launch(slices_kernel,
                {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kSliceThreads * kColumns)),
                              static_cast<unsigned>(ceil_div<int64_t>(p.m, kSliceRows))),
                 .block = dim3(kSliceThreads)},
                stream, p, e);
}

}  // namespace pk::cuda::int8
