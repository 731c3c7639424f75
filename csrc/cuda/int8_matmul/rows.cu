// int8 operands as the products want them: rows along K, padded with zeros; and the sums of rows.
//
// Rows that lie along K already are copied 16 bytes a thread. Rows that are neighbours in memory (b as (k, n) row by
// row, a transposed) go through a tile of 128 rows x 64 K in shared memory: 4 x 4 bytes are turned in registers, read
// and written by whole lines.
#include "cuda/int8_matmul/kernels.h"
#include "cuda/launch.cuh"

namespace pk::cuda::int8 {
namespace {

constexpr int kThreads = 256;

bool aligned(const void* p, int64_t stride, int64_t to) {
  return reinterpret_cast<uintptr_t>(p) % to == 0 && stride % to == 0;
}

// words: from and stride_row are aligned to 4, and stride_k is 1.
__global__ void __launch_bounds__(kThreads) copy_kernel(const int8_t* from, int64_t rows, int k, int64_t stride_row,
                                                        int64_t stride_k, int8_t* to, int to_stride, bool words) {
  const int chunks = to_stride / 16;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = at / chunks;
  if (row >= rows) return;
  const int first = static_cast<int>(at % chunks) * 16;
  const int8_t* source = from + row * stride_row + first * stride_k;
  uint32_t v[4];
  PK_UNROLL
  for (int w = 0; w < 4; ++w) {
    v[w] = 0;
    if (words && first + w * 4 + 4 <= k) {
      v[w] = *reinterpret_cast<const uint32_t*>(source + w * 4);
      continue;
    }
    PK_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (first + w * 4 + i < k)
        v[w] |= static_cast<uint32_t>(static_cast<uint8_t>(source[(w * 4 + i) * stride_k])) << 8 * i;
    }
  }
  *reinterpret_cast<uint4*>(to + row * to_stride + first) = make_uint4(v[0], v[1], v[2], v[3]);
}

constexpr int kTileRows = 128, kTileK = 64, kTileWords = kTileK / 4;

// Where word `word` of a row lies in shared memory: neighbouring quads of rows are shifted against each other.
PK_DEVICE int tile_word(int row, int word) { return row * kTileWords + (word ^ (row / 4 % kTileWords)); }

// from[row + i * stride_k]. words: from and stride_k are aligned to 4.
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const int8_t* from, int64_t rows, int k, int64_t stride_k, int8_t* to, int to_stride, bool words) {
  uint32_t* tile = dynamic_shared<uint32_t>();
  const int tiles_k = ceil_div(to_stride, kTileK);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / tiles_k) * kTileRows;
  const int first_k = static_cast<int>(blockIdx.x % tiles_k) * kTileK;
  PK_UNROLL
  for (int turn = 0; turn < kTileRows / 4 * kTileWords / kThreads; ++turn) {
    const int at = turn * kThreads + static_cast<int>(threadIdx.x);
    const int row = at % (kTileRows / 4) * 4, word = at / (kTileRows / 4);
    uint32_t line[4];  // the four rows at each of four k
    PK_UNROLL
    for (int i = 0; i < 4; ++i) {
      line[i] = 0;
      const int here = first_k + word * 4 + i;
      if (here >= k) continue;
      const int8_t* source = from + here * stride_k + first_row + row;
      if (words && first_row + row + 4 <= rows) {
        line[i] = *reinterpret_cast<const uint32_t*>(source);
        continue;
      }
      PK_UNROLL
      for (int r = 0; r < 4; ++r) {
        if (first_row + row + r < rows) line[i] |= static_cast<uint32_t>(static_cast<uint8_t>(source[r])) << 8 * r;
      }
    }
    const uint32_t low01 = __byte_perm(line[0], line[1], 0x5140), low23 = __byte_perm(line[2], line[3], 0x5140);
    const uint32_t high01 = __byte_perm(line[0], line[1], 0x7362), high23 = __byte_perm(line[2], line[3], 0x7362);
    tile[tile_word(row, word)] = __byte_perm(low01, low23, 0x5410);
    tile[tile_word(row + 1, word)] = __byte_perm(low01, low23, 0x7632);
    tile[tile_word(row + 2, word)] = __byte_perm(high01, high23, 0x5410);
    tile[tile_word(row + 3, word)] = __byte_perm(high01, high23, 0x7632);
  }
  __syncthreads();
  PK_UNROLL
  for (int turn = 0; turn < kTileRows * kTileWords / 4 / kThreads; ++turn) {
    const int at = turn * kThreads + static_cast<int>(threadIdx.x);
    const int row = at / (kTileWords / 4), word = at % (kTileWords / 4) * 4;
    if (first_row + row >= rows || first_k + word * 4 >= to_stride) continue;
    *reinterpret_cast<uint4*>(to + (first_row + row) * to_stride + first_k + word * 4) =
        make_uint4(tile[tile_word(row, word)], tile[tile_word(row, word + 1)], tile[tile_word(row, word + 2)],
                   tile[tile_word(row, word + 3)]);
  }
}

// A warp a row.
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const int8_t* from, int64_t rows, int64_t k, int64_t stride, int32_t* sums) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int kOnes = 0x01010101;
  int32_t sum = 0;
  for (int64_t at = lane * 16; at < k; at += kWarp * 16) {
    const int4 v = *reinterpret_cast<const int4*>(from + row * stride + at);
    sum = __dp4a(v.x, kOnes, __dp4a(v.y, kOnes, __dp4a(v.z, kOnes, __dp4a(v.w, kOnes, sum))));
  }
  PK_UNROLL
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (lane == 0) sums[row] = sum;
}

Status grid_of(int64_t blocks, unsigned* grid) {
  if (blocks > INT32_MAX) return {"m, n, k: the sizes are too large"};
  *grid = static_cast<unsigned>(blocks);
  return kOk;
}

}  // namespace

Status copy_rows(const int8_t* from, int64_t rows, int64_t k, int64_t stride_row, int64_t stride_k, int8_t* to,
                 int64_t to_stride, void* stream) {
  unsigned grid = 0;
  if (stride_row == 1 && stride_k != 1) {
    PK_TRY(grid_of(ceil_div<int64_t>(rows, kTileRows) * ceil_div<int64_t>(to_stride, kTileK), &grid));
    return launch(transpose_kernel, {.grid = dim3(grid), .block = dim3(kThreads), .shared_bytes = kTileRows * kTileK},
                  stream, from, rows, static_cast<int>(k), stride_k, to, static_cast<int>(to_stride),
                  aligned(from, stride_k, 4));
  }
  PK_TRY(grid_of(ceil_div<int64_t>(rows * (to_stride / 16), kThreads), &grid));
  return launch(copy_kernel, {.grid = dim3(grid), .block = dim3(kThreads)}, stream, from, rows, static_cast<int>(k),
                stride_row, stride_k, to, static_cast<int>(to_stride), stride_k == 1 && aligned(from, stride_row, 4));
}

Status sum_rows(const int8_t* from, int64_t rows, int64_t k, int64_t stride, int32_t* sums, void* stream) {
  unsigned grid = 0;
  PK_TRY(grid_of(ceil_div<int64_t>(rows, kThreads / kWarp), &grid));
  return launch(sum_kernel, {.grid = dim3(grid), .block = dim3(kThreads)}, stream, from, rows, k, stride, sums);
}

}  // namespace pk::cuda::int8
