// Convolution as a matrix product without the matrix: rows are pixels (n, p, q), columns filters k, and the sum runs
// over (r, s, c) of a group, channels fastest, as NHWC pixels and packed weights have them in memory.
//
// The engine is cuda/gemm/mainloop.cuh; this is its loader of x, which turns (pixel, index of the sum) into an address.
// A thread of the engine always loads the same 16-byte column of the k tiles, for a few pixels: so it holds a tap and
// channel (one Position), stepped by additions, and each pixel's corner (Row). Taps beside the image, past the last tap
// and rows past the last pixel are zeros that cp.async fills in; nothing there is read.
//
// A block computes one tile for one group; splits of the sum write partial sums, which a second kernel adds in order.
#pragma once

#include "cuda/conv_bn_act/epilogue.cuh"
#include "cuda/conv_bn_act/tile_statistics.cuh"
#include "cuda/gemm/mainloop.cuh"
#include "cuda/launch.cuh"

namespace pk::cuda::conv {

// Farther than any image reaches: sums of a few of these stay int.
inline constexpr int kOutside = 1 << 29;

template <class T, int kCopyBytes_>
struct TapLoader {
  static constexpr int kCopyBytes = kCopyBytes_;
  static constexpr bool kTransposed = false;
  const Gemm& g;
  const T* x;  // the group's first channel
  int first_row;

  // The input under tap (0, 0), which may lie outside, and its distance from x. Distances are ints, to save registers:
  // api.cu sees to it that a launch's pixels span less than 2^30 elements.
  struct Row {
    int corner, h, w;
  };
  // A tap's distance from tap (0, 0), a channel, and both as a distance in memory.
  struct Position {
    int h, w, c, offset;
  };

  PK_DEVICE Row row(int tile_row) const {
    const int row = first_row + tile_row;
    if (row >= g.rows) return {0, -2 * kOutside, 0};  // outside under the position past the last tap, too
    const int pq = g.p * g.q, n = row / pq, within = row % pq;
    const int h = within / g.q * g.stride_h - g.pad_top, w = within % g.q * g.stride_w - g.pad_left;
    return {n * g.x_stride_n + h * g.x_stride_h + w * g.x_stride_w, h, w};
  }
  PK_DEVICE Position start(int k) const {
    const int tap = k / g.padded_c, c = k % g.padded_c, r = tap / g.s;
    const int h = r * g.dilation_h, w = tap % g.s * g.dilation_w;
    if (h >= g.end_h) return {kOutside, 0, 0, 0};
    return {h, w, c, h * g.x_stride_h + w * g.x_stride_w + c};
  }
  PK_DEVICE void advance(Position& position, int step) const {
    position.c += step;
    position.offset += step;
    while (position.c >= g.padded_c) {
      position.c -= g.padded_c;
      position.offset += g.next_w;
      position.w += g.dilation_w;
      if (position.w < g.end_w) continue;
      position.w = 0;
      position.offset += g.next_h;
      position.h += g.dilation_h;
      if (position.h >= g.end_h) {
        position = {kOutside, 0, -kOutside, 0};  // the end, for good
      }
    }
  }
  PK_DEVICE gemm::Source source(const Row& row, const Position& position) const {
    const bool inside = static_cast<unsigned>(row.h + position.h) < static_cast<unsigned>(g.h) &&
                        static_cast<unsigned>(row.w + position.w) < static_cast<unsigned>(g.w);
    return {x + (row.corner + position.offset), inside};
  }
};

// Rows of a matrix in memory, those of the packed weight, or of x where it is one; `corner` as above.
template <class T>
struct MatrixLoader {
  static constexpr int kCopyBytes = 16;
  static constexpr bool kTransposed = false;
  const T* data;
  int stride, first_row, rows, k;

  struct Row {
    int corner;  // negative: there is no such row (and its address is aligned all the same)
  };
  struct Position {
    int k;
  };
  PK_DEVICE Row row(int tile_row) const {
    const int row = first_row + tile_row;
    return {row < rows ? row * stride : -kOutside};
  }
  PK_DEVICE Position start(int at) const { return {at}; }
  PK_DEVICE void advance(Position& position, int step) const { position.k += step; }
  PK_DEVICE gemm::Source source(const Row& row, const Position& position) const {
    return {data + (row.corner + position.k), row.corner >= 0 && position.k < k};
  }
};

// kCopy: bytes of a copy of x; kPlain: rows of a plain matrix.
template <class Tile_, class Type_, int kCopy_, bool kPlain_>
struct Config {
  using Tile = Tile_;
  using Type = Type_;  // of y and residual
  static constexpr int kCopy = kCopy_;
  static constexpr bool kPlain = kPlain_;
  // Blocks of a multiprocessor that the registers are to allow: without spills, and that is less where a product needs
  // its factors twice, or two positions are kept.
  static constexpr bool kIsTight = std::is_same_v<typename Tile::Element, gemm::tf32x3> || kCopy == 8 ||
                                   (std::is_same_v<typename Tile::Element, gemm::tf32> && Tile::kM == 128);
  static constexpr int kResident = (Tile::kM == 64 ? 4 : Tile::kN == 64 ? 3 : 2) - (kIsTight ? 1 : 0);
  static constexpr int kStagedBytes = Tile::kM * Tile::kN * 4;
  static constexpr int kTileBytes = kStagedBytes > Tile::kSharedBytes ? kStagedBytes : Tile::kSharedBytes;
  static constexpr int kSharedBytes = kTileBytes + 16;  // and where the tile lies
};

// From the staged tile on.
template <class Config>
PK_DEVICE void finish_tile(const Gemm& g, typename Config::Tile::Sum* staged, int first_row, int first_filter,
                           int group, int split) {
  using Tile = typename Config::Tile;
  using Sum = typename Tile::Sum;
  if (g.partial == nullptr) {
    store_tile<Tile::kM, Tile::kN, Tile::kThreads, typename Config::Type>(
        g.epilogue, staged, first_row, g.rows, group * g.filters + first_filter, g.filters - first_filter);
  } else {
    const int width = ceil_div(g.filters, kChannelsAtOnce) * kChannelsAtOnce;
    Sum* partial = static_cast<Sum*>(g.partial) + (int64_t{split} * g.groups + group) * g.rows * width;
    store_partial<Tile::kM, Tile::kN, Tile::kThreads>(partial, staged, first_row, g.rows, first_filter, width);
  }
  if constexpr (!std::is_same_v<typename Config::Type, AnyType>) {
    if (g.moments != nullptr) {
      store_statistics<Tile::kM, Tile::kN, Tile::kThreads, typename Config::Type>(
          g.epilogue, staged, first_row, g.rows, group * g.filters + first_filter, g.filters - first_filter, g.moments,
          g.groups * g.filters, [] { __syncthreads(); });
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::Tile::kThreads, Config::kResident)
    implicit_gemm(const __grid_constant__ Gemm g) {
  using Tile = typename Config::Tile;
  using T = typename Tile::Storage;
  using Sum = typename Tile::Sum;
  // Filters fastest: blocks that run together share pixels, which are the larger operand.
  unsigned block = blockIdx.x;
  const int block_n = static_cast<int>(block % g.blocks_n);
  block /= g.blocks_n;
  const int block_m = static_cast<int>(block % g.blocks_m);
  block /= g.blocks_m;
  const int group = static_cast<int>(block % g.groups), split = static_cast<int>(block / g.groups);
  const int first_row = block_m * Tile::kM, first_filter = block_n * Tile::kN;

  const T* x = static_cast<const T*>(g.x) + group * g.x_stride_group;
  const T* weight = static_cast<const T*>(g.weight) + int64_t{group} * g.filters * g.columns;
  const MatrixLoader<T> filters = {weight, g.columns, first_filter, g.filters, g.columns};
  const int k_tiles = ceil_div(g.columns, Tile::kK), first_k_tile = split * g.split_steps;
  const int count = k_tiles - first_k_tile < g.split_steps ? k_tiles - first_k_tile : g.split_steps;
  char* shared = dynamic_shared<char>();
  // What only the epilogue needs waits in shared memory: the main loop wants the registers.
  int* const where = reinterpret_cast<int*>(shared + Config::kTileBytes);
  if (threadIdx.x == 0) where[0] = first_row, where[1] = first_filter, where[2] = group, where[3] = split;
  typename Tile::Accumulator acc;
  gemm::clear<Tile>(acc);
  if constexpr (Config::kPlain) {
    const MatrixLoader<T> pixels = {x, g.x_stride_w, first_row, g.rows, g.padded_c};
    gemm::mainloop<Tile>(pixels, filters, first_k_tile, count, acc, shared);
  } else {
    const TapLoader<T, Config::kCopy> pixels = {g, x, first_row};
    gemm::mainloop<Tile>(pixels, filters, first_k_tile, count, acc, shared);
  }

  Sum* staged = reinterpret_cast<Sum*>(shared);
  gemm::for_each_pair<Tile>(acc, [&](int row, int column, Sum v0, Sum v1) {
    Sum* pair = staged + staged_index<Tile::kN>(row, column);
    pair[0] = v0;
    pair[1] = v1;
  });
  __syncthreads();
  finish_tile<Config>(g, staged, where[0], where[1], where[2], where[3]);
}

inline constexpr int kReduceThreads = 256;

// Adds the splits' sums, first to last, and finishes them: a thread eight channels of a pixel. kArch: files that are
// compiled for different targets must not share an instance, or the linker may keep the one that lacks a target.
template <class Type, class Sum, int kArch = 80>
__global__ void __launch_bounds__(kReduceThreads) reduce_splits(const __grid_constant__ Gemm g) {
  const int units = ceil_div(g.filters, kChannelsAtOnce), width = units * kChannelsAtOnce;
  const int64_t i = int64_t{blockIdx.x} * kReduceThreads + threadIdx.x, each = int64_t{g.rows} * units;
  if (i >= each * g.groups) return;
  const int group = static_cast<int>(i / each);
  const int64_t within = i % each;
  const bool rows_first = g.epilogue.rows_first;
  const int row = static_cast<int>(rows_first ? within % g.rows : within / units);
  const int column = static_cast<int>(rows_first ? within / g.rows : within % units) * kChannelsAtOnce;
  const Sum* partial = static_cast<const Sum*>(g.partial) + (int64_t{group} * g.rows + row) * width + column;
  Sum sum[8] = {};
  for (int split = 0; split < g.splits; ++split) {
    const uint4* from = reinterpret_cast<const uint4*>(partial + split * int64_t{g.groups} * g.rows * width);
    const uint4 a = from[0], b = from[1];
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    PK_UNROLL
    for (int j = 0; j < 8; ++j) {
      if constexpr (std::is_same_v<Sum, float>) {
        sum[j] += __uint_as_float(words[j]);
      } else {
        sum[j] += static_cast<Sum>(words[j]);
      }
    }
  }
  finish<Type>(g.epilogue, channels_at(g.epilogue, group * g.filters + column, g.filters - column), row, sum);
}

template <class Type, class Sum, int kArch = 80>
Status run_reduce(const Gemm& g, void* stream) {
  const int64_t units = int64_t{g.rows} * ceil_div(g.filters, kChannelsAtOnce) * g.groups;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(units, kReduceThreads));
  return launch(reduce_splits<Type, Sum, kArch>, {.grid = blocks, .block = kReduceThreads}, stream, g);
}

template <class Config>
Status run_config(const Gemm& g, void* stream) {
  using Tile = typename Config::Tile;
  const auto blocks = static_cast<unsigned>(int64_t{g.blocks_m} * g.blocks_n * g.groups * g.splits);
  const Status status =
      launch(implicit_gemm<Config>, {.grid = blocks, .block = Tile::kThreads, .shared_bytes = Config::kSharedBytes},
             stream, g);
  if (!status || g.partial == nullptr) return status;
  return run_reduce<typename Config::Type, typename Tile::Sum>(g, stream);
}

template <class Tile, class Type>
Status run_tile(const Gemm& g, int copy, void* stream) {
  if (g.plain && copy == 16) return run_config<Config<Tile, Type, 16, true>>(g, stream);
  if (copy == 16) return run_config<Config<Tile, Type, 16, false>>(g, stream);
  return {"no such tile"};
}

// 8-byte copies are for a few channels; they have the middle tile alone.
template <class Element, class Type>
Status run_math(const Gemm& g, conv::Tile tile, int copy, void* stream) {
  using Middle = gemm::Tile<Element, 128, 64, 2, 2>;
  if (copy == 8) return run_config<Config<Middle, Type, 8, false>>(g, stream);
  if (tile == conv::Tile::t64x64) return run_tile<gemm::Tile<Element, 64, 64, 2, 2>, Type>(g, copy, stream);
  if constexpr (!std::is_same_v<Element, gemm::tf32> && !std::is_same_v<Element, gemm::tf32x3>) {
    if (tile == conv::Tile::t128x128) return run_tile<gemm::Tile<Element, 128, 128, 2, 2>, Type>(g, copy, stream);
  }
  return run_tile<Middle, Type>(g, copy, stream);
}

}  // namespace pk::cuda::conv
