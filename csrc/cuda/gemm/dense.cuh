// The dense product's kernel: out = A B^T + bias + bias2 (+ out), or one slice's sums of it into the workspace. A block
// computes one tile of one slice of K; operands lie as `Reading` says.
#pragma once

#include "cuda/gemm/choose.h"
#include "cuda/gemm/mainloop.cuh"
#include "cuda/launch.cuh"

namespace pk::cuda {

enum class Reading {
  rows,     // both contiguous along K, all rows aligned to 16 bytes
  mixed,    // a contiguous along K, b along n, likewise aligned
  columns,  // a contiguous along m, b along n, likewise aligned
  strided,  // any strides
};

// What becomes of the sums.
struct DenseOut {
  const void* bias;   // (n) of the operands' type, or null
  const void* bias2;  // (n), or null
  void* out;          // (m, n)
  int64_t stride;     // of rows
  int m, n;
  bool is_float;    // out is float, else of the operands' type
  bool accumulate;  // out += instead of =
  bool vectors;     // rows are aligned to 16 bytes
};

struct Dense {
  const void* a;
  const void* b;
  int64_t a_stride, a_stride_k, b_stride,
      b_stride_k;  // strided alone reads all; else the one that is not 1 is *_stride
  int m, n, k;
  int split, k_of_slice;  // slices of K; elements of each but the last, a multiple of every k tile
  float* partial;         // [split][m][columns of partial_columns], where split > 1
  DenseOut out;
};

inline constexpr int kDenseColumns = 8;  // that a thread stores at a time: 16 bytes of 16-bit outputs

PK_HOST_DEVICE int64_t partial_columns(int n) { return ceil_div<int64_t>(n, kDenseColumns) * kDenseColumns; }

template <class T>
PK_DEVICE void add_bias(float (&v)[kDenseColumns], const void* bias, int column, int n) {
  if (!bias) return;
  PK_UNROLL
  for (int i = 0; i < kDenseColumns; ++i) {
    if (column + i < n) v[i] += to_float(static_cast<const T*>(bias)[column + i]);
  }
}

template <class U>
PK_DEVICE void store_row(const DenseOut& to, int row, int column, float (&v)[kDenseColumns]) {
  U* const at = static_cast<U*>(to.out) + row * to.stride + column;
  constexpr int kVectors = kDenseColumns * sizeof(U) / 16, kEach = 16 / sizeof(U);
  union Vector {
    uint4 all;
    U each[kEach];
  };
  if (to.vectors && column + kDenseColumns <= to.n) {
    PK_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      Vector vector;
      if (to.accumulate) {
        vector.all = reinterpret_cast<const uint4*>(at)[i];
        PK_UNROLL
        for (int e = 0; e < kEach; ++e) v[i * kEach + e] += to_float(vector.each[e]);
      }
      PK_UNROLL
      for (int e = 0; e < kEach; ++e) vector.each[e] = from_float<U>(v[i * kEach + e]);
      reinterpret_cast<uint4*>(at)[i] = vector.all;
    }
  } else {
    PK_UNROLL
    for (int i = 0; i < kDenseColumns; ++i) {
      if (column + i < to.n) at[i] = from_float<U>(to.accumulate ? v[i] + to_float(at[i]) : v[i]);
    }
  }
}

template <class T>
PK_DEVICE void finish_row(const DenseOut& to, int row, int column, float (&v)[kDenseColumns]) {
  add_bias<T>(v, to.bias, column, to.n);
  add_bias<T>(v, to.bias2, column, to.n);
  if (to.is_float) {
    store_row<float>(to, row, column, v);
  } else {
    store_row<T>(to, row, column, v);
  }
}

// The sums of one slice: the output's, or a part of them.
template <class T>
PK_DEVICE void finish_slice(const Dense& p, int slice, int row, int column, float (&v)[kDenseColumns]) {
  if (row >= p.m || column >= p.n) return;
  if (p.split == 1) return finish_row<T>(p.out, row, column, v);
  float* const to = p.partial + (static_cast<int64_t>(slice) * p.m + row) * partial_columns(p.n) + column;
  PK_UNROLL
  for (int i = 0; i < kDenseColumns; i += 4) {
    *reinterpret_cast<float4*>(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
  }
}

template <class Tile, class LoaderA, class LoaderB>
__global__ void __launch_bounds__(Tile::kThreads, 1) dense_kernel(const Dense p) {
  using T = typename Tile::Storage;
  char* const shared = dynamic_shared<char>();
  const int slice = static_cast<int>(blockIdx.y);
  int first_m, first_n;
  gemm::raster(static_cast<int>(blockIdx.x), ceil_div(p.m, Tile::kM), ceil_div(p.n, Tile::kN), first_m, first_n);
  first_m *= Tile::kM, first_n *= Tile::kN;

  const auto loader = [&](auto* which, const void* data, int64_t stride, int64_t stride_k, int first, int rows) {
    using Loader = std::remove_pointer_t<decltype(which)>;
    if constexpr (std::is_same_v<Loader, gemm::StridedLoader<T>>) {
      return Loader{static_cast<const T*>(data), stride, stride_k, first, rows, p.k};
    } else {
      return Loader{static_cast<const T*>(data), stride, first, rows, p.k};
    }
  };
  const LoaderA a = loader(static_cast<LoaderA*>(nullptr), p.a, p.a_stride, p.a_stride_k, first_m, p.m);
  const LoaderB b = loader(static_cast<LoaderB*>(nullptr), p.b, p.b_stride, p.b_stride_k, first_n, p.n);
  const int k_tiles = ceil_div(p.k, Tile::kK), of_slice = p.k_of_slice / Tile::kK, first_k_tile = slice * of_slice;

  typename Tile::Accumulator acc;
  gemm::clear<Tile>(acc);
  gemm::mainloop<Tile>(a, b, first_k_tile, min(of_slice, k_tiles - first_k_tile), acc, shared);

  gemm::for_each_staged<Tile, kDenseColumns>(acc, shared, [&](int row, int column, float (&v)[kDenseColumns]) {
    finish_slice<T>(p, slice, first_m + row, first_n + column, v);
  });
}

template <class Tile, class LoaderA, class LoaderB>
Status launch_dense(const Dense& p, void* stream) {
  const int64_t tiles = ceil_div<int64_t>(p.m, Tile::kM) * ceil_div<int64_t>(p.n, Tile::kN);
  if (tiles > 0x7fffffff) return {"gemm: m * n is too large"};
  return launch(dense_kernel<Tile, LoaderA, LoaderB>,
                {.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.split)),
                 .block = dim3(Tile::kThreads),
                 .shared_bytes = std::max(Tile::kSharedBytes, gemm::kStagedBytes<Tile>)},
                stream, p);
}

// The kernels of one element: tiles Large (128 x 128; also where 3 was chosen and does not serve) and Small (64 x 64)
// with wide copies, and Small for any strides.
template <class Large, class Small>
Status launch_dense(const Dense& p, Reading reading, int tile, void* stream) {
  using T = typename Small::Storage;
  using Rows = gemm::RowsLoader<T, 16>;
  using Columns = gemm::ColumnsLoader<T, 16>;
  using Strided = gemm::StridedLoader<T>;
  switch (reading) {
    case Reading::rows:
      return tile >= 2 ? launch_dense<Large, Rows, Rows>(p, stream) : launch_dense<Small, Rows, Rows>(p, stream);
    case Reading::mixed:
      return tile >= 2 ? launch_dense<Large, Rows, Columns>(p, stream) : launch_dense<Small, Rows, Columns>(p, stream);
    case Reading::columns:
      return tile >= 2 ? launch_dense<Large, Columns, Columns>(p, stream)
                       : launch_dense<Small, Columns, Columns>(p, stream);
    case Reading::strided:
      return launch_dense<Small, Strided, Strided>(p, stream);
  }
  return {"gemm: unknown reading"};
}

// One file each: dense_<element>.cu.
Status dense_f16(const Dense& p, Reading reading, int tile, void* stream);
Status dense_bf16(const Dense& p, Reading reading, int tile, void* stream);
Status dense_f32(const Dense& p, Reading reading, int tile, void* stream);
Status dense_tf32(const Dense& p, Reading reading, int tile, void* stream);
// Hopper's, for f16 and bf16: a and b contiguous along K, rows aligned to 16 bytes, K of any length.
Status dense_sm90(const Dense& p, DType dtype, int multiprocessors, void* stream);

}  // namespace pk::cuda
