// The LSTM's products, on the matrix unit's main loop (gemm/mainloop.cuh), in one of two forms:
//
//   sums (m, h, 4) = A W' + b_ih + b_hh       the input's share of the gates, of a span of time steps at once
//   h', c' = cell(A W' + b_ih + b_hh + sums)  a whole step in one launch: a row of A is x's, then h's, or h's alone
//
// A tile's columns are the four gates of neighbouring units, whatever the order of the weight rows in memory: the
// loader of W does that. So a thread of the epilogue has the four sums of a unit, and neither form needs the sums in
// memory between product and cell. Several independent products (directions, layers of a wavefront) share a launch.
//
// Tiles: 128 x 128 for large products (3xTF32: 128 x 64); 64 x 64; 16 x 32 for few rows, where the weights are what is
// read, once, and 128-byte rows of K keep enough of them on their way.
#include "cuda/gemm/mainloop.cuh"
#include "cuda/launch.cuh"
#include "cuda/lstm/cell.cuh"

namespace pk::cuda::lstm {
namespace {

template <class T>
struct Pair {
  const T* first;
  const T* second;
  bool valid;
};
struct Along {
  int k;
};

// Rows that are one row of a matrix and behind it one of another.
template <class T, int kCopyBytes_>
struct PairLoader {
  static constexpr int kCopyBytes = kCopyBytes_;
  static constexpr bool kTransposed = false;
  using Row = Pair<T>;
  using Position = Along;
  int split, k;  // elements of the first, of both

  PK_DEVICE Position start(int at) const { return {at}; }
  PK_DEVICE void advance(Position& position, int step) const { position.k += step; }
  PK_DEVICE gemm::Source source(const Row& row, const Position& at) const {
    // What is not read has an aligned address, too.
    const T* const from = at.k < split ? row.first + at.k : row.second + (at.k - split);
    return {at.k < k ? from : row.first, row.valid && at.k < k};
  }
};

// Sequences: of x and of h.
template <class T, int kCopyBytes>
struct SequenceLoader : PairLoader<T, kCopyBytes> {
  const Product& p;
  int first_row;

  PK_DEVICE SequenceLoader(const Product& p, int first_row)
      : PairLoader<T, kCopyBytes>{p.x_k, p.x_k + p.h_k}, p(p), first_row(first_row) {}
  PK_DEVICE Pair<T> row(int tile_row) const {
    const int64_t r = first_row + tile_row;
    return {static_cast<const T*>(p.x) + (r / p.inner) * p.outer_stride + (r % p.inner) * p.inner_stride,
            static_cast<const T*>(p.h) + r * p.h_pitch, r < p.m};
  }
};

// Gates: unit by unit the four rows, of W_ih and of W_hh.
template <class T, int kCopyBytes>
struct GateLoader : PairLoader<T, kCopyBytes> {
  const Product& p;
  int first_row;

  PK_DEVICE GateLoader(const Product& p, int first_row)
      : PairLoader<T, kCopyBytes>{p.x_k, p.x_k + p.h_k}, p(p), first_row(first_row) {}
  PK_DEVICE Pair<T> row(int tile_row) const {
    const int r = first_row + tile_row, unit = r / 4, gate = r % 4;
    return {static_cast<const T*>(p.w_x.data) + (unit * p.w_x.unit + gate * p.w_x.gate) * p.w_x.pitch,
            static_cast<const T*>(p.w_h.data) + (unit * p.w_h.unit + gate * p.w_h.gate) * p.w_h.pitch, unit < p.hidden};
  }
};

template <class T>
PK_DEVICE float4 bias_of(const Product& p, int unit) {
  if (p.bias) return reinterpret_cast<const float4*>(p.bias)[unit];
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (p.b_ih) {
    PK_UNROLL
    for (int g = 0; g < 4; ++g) {
      const int64_t at = static_cast<int64_t>(g) * p.hidden + unit;
      sums[g] = to_float(static_cast<const T*>(p.b_ih)[at]) + to_float(static_cast<const T*>(p.b_hh)[at]);
    }
  }
  return make_float4(sums[0], sums[1], sums[2], sums[3]);
}

template <class Tile, int kCopyBytes>
__global__ void __launch_bounds__(Tile::kThreads) product_kernel(const __grid_constant__ Products call) {
  using T = typename Tile::Storage;
  const Product& p = call.of[blockIdx.z];
  // Blocks that share weights are neighbours: they are few, and A is small or in the L2 cache.
  const int first_m = static_cast<int>(blockIdx.x) % call.blocks_m * Tile::kM;
  const int first_n = static_cast<int>(blockIdx.x) / call.blocks_m * Tile::kN;
  if (first_m >= p.m) return;
  char* shared = dynamic_shared<char>();

  typename Tile::Accumulator acc;
  gemm::clear<Tile>(acc);
  gemm::mainloop<Tile>(SequenceLoader<T, kCopyBytes>(p, first_m), GateLoader<T, kCopyBytes>(p, first_n), 0,
                       ceil_div(p.x_k + p.h_k, Tile::kK), acc, shared);

  const int unit = (first_n + gemm::staged_column<Tile, 4>()) / 4;
  const float4 bias = unit < p.hidden ? bias_of<T>(p, unit) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  gemm::for_each_staged<Tile, 4>(acc, shared, [&](int tile_row, int, const float (&v)[4]) {
    const int row = first_m + tile_row;
    if (row >= p.m || unit >= p.hidden) return;
    const int64_t at = static_cast<int64_t>(row) * p.hidden + unit;
    float4 sums = make_float4(v[0] + bias.x, v[1] + bias.y, v[2] + bias.z, v[3] + bias.w);
    if (p.out) {
      reinterpret_cast<float4*>(p.out)[at] = sums;
      return;
    }
    if (p.add) {
      const float4 add = reinterpret_cast<const float4*>(p.add)[at];
      sums = make_float4(sums.x + add.x, sums.y + add.y, sums.z + add.z, sums.w + add.w);
    }
    const CellResult r = cell_step<T>(sums, p.cell.c[at]);
    p.cell.c[at] = r.c;
    if (p.h_next) static_cast<T*>(p.h_next)[row * p.h_next_pitch + unit] = from_float<T>(r.h);
    write_cell<T>(p.cell, p.hidden, p.time, p.first_row + row, row, unit, r, row >= p.go_on);
  });
}

template <class Tile, int kCopyBytes>
Status run(const Products& products, int rows, void* stream) {
  static_assert(gemm::kStagedBytes<Tile> <= Tile::kSharedBytes);
  Products call = products;
  call.blocks_m = ceil_div(rows, Tile::kM);
  const int64_t blocks = int64_t{call.blocks_m} * ceil_div(int64_t{4} * call.of[0].hidden, int64_t{Tile::kN});
  if (blocks > INT32_MAX) return {"steps, batch, hidden: too large a product"};
  return launch(&product_kernel<Tile, kCopyBytes>,
                {.grid = dim3(static_cast<unsigned>(blocks), 1, static_cast<unsigned>(call.count)),
                 .block = dim3(Tile::kThreads),
                 .shared_bytes = Tile::kSharedBytes},
                stream, call);
}

template <class Element>
Status run_element(bool aligned, ProductTile tile, const Products& products, int rows, void* stream) {
  using Storage = typename gemm::ElementTraits<Element>::Storage;
  using Middle = gemm::Tile<Element, 64, 64, 2, 2, 4>;
  if (!aligned) return run<Middle, sizeof(Storage)>(products, rows, stream);
  if (tile == ProductTile::few_rows) return run<gemm::Tile<Element, 16, 32, 1, 4, 4, 128>, 16>(products, rows, stream);
  if (tile == ProductTile::middle) return run<Middle, 16>(products, rows, stream);
  // Split operands need twice the registers.
  using Large = std::conditional_t<std::is_same_v<Element, gemm::tf32x3>, gemm::Tile<Element, 128, 64, 4, 2, 4>,
                                   gemm::Tile<Element, 128, 128, 2, 4, 4>>;
  return run<Large, 16>(products, rows, stream);
}

bool whole(const void* data, int64_t stride, int64_t element) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * element % 16 == 0;
}

}  // namespace

bool is_aligned(const Product& p, int64_t element) {
  const bool x = p.x_k == 0 || (whole(p.x, p.outer_stride, element) && p.inner_stride * element % 16 == 0 &&
                                whole(p.w_x.data, p.w_x.pitch, element) && p.x_k * element % 16 == 0);
  const bool h = p.h_k == 0 || (whole(p.h, p.h_pitch, element) && whole(p.w_h.data, p.w_h.pitch, element) &&
                                p.h_k * element % 16 == 0);
  return x && h;
}

Status multiply(DType dtype, bool tf32, bool aligned, int multiprocessors, const Products& products, void* stream) {
  int rows = 0;
  for (int i = 0; i < products.count; ++i) rows = products.of[i].m > rows ? products.of[i].m : rows;
  const ProductTile tile = choose_tile(rows, products.of[0].hidden, products.count, multiprocessors);
  if (dtype == DType::f16) return run_element<f16>(aligned, tile, products, rows, stream);
  if (dtype == DType::bf16) return run_element<bf16>(aligned, tile, products, rows, stream);
  if (tf32) return run_element<gemm::tf32>(aligned, tile, products, rows, stream);
  return run_element<gemm::tf32x3>(aligned, tile, products, rows, stream);
}

}  // namespace pk::cuda::lstm
