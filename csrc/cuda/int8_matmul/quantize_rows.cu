// Quantises rows, each by its own range, in one kernel: a row is read once, its first bytes kept in registers between
// the range and the rounding. A warp has a short row, a block a long one.
#include "cuda/int8_matmul/grid.cuh"
#include "cuda/int8_matmul/kernels.h"
#include "cuda/launch.cuh"

namespace pk::cuda::int8 {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kKept = 4;  // chunks of 16 bytes a thread

struct RowsProblem {
  const void* x;
  int64_t rows, k, stride;
  int8_t* to;
  int64_t to_stride;
  float* scale;
  int32_t* zero_point;  // or none
  bool symmetric;
  bool chunks;  // rows of x are aligned to 16 bytes, those of `to` to a chunk's bytes
};

// kGroup threads a row: kWarp or kThreads.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads) rows_kernel(RowsProblem p) {
  using Vector = Chunk<T>;
  Range* ranges = dynamic_shared<Range>();  // (kWarps)
  const int thread = static_cast<int>(threadIdx.x) % kGroup;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  if (row >= p.rows) return;  // whole groups
  const T* x = static_cast<const T*>(p.x) + row * p.stride;
  int8_t* to = p.to + row * p.to_stride;
  const int64_t chunks = p.chunks ? p.k / Vector::kCount : 0, singles = chunks * Vector::kCount;

  Vector kept[kKept];
  Range range;
  PK_UNROLL
  for (int i = 0; i < kKept; ++i) {
    if (thread + i * kGroup < chunks) kept[i].load(x + (thread + i * kGroup) * Vector::kCount);
  }
  PK_UNROLL
  for (int i = 0; i < kKept; ++i) {
    if (thread + i * kGroup < chunks) kept[i].add_to(range);
  }
  for (int64_t c = thread + kKept * kGroup; c < chunks; c += kGroup) {
    Vector v;
    v.load(x + c * Vector::kCount);
    v.add_to(range);
  }
  for (int64_t i = singles + thread; i < p.k; i += kGroup) range.add(to_float(x[i]));

  range = across_warp(range);
  if constexpr (kGroup > kWarp) {
    if (thread % kWarp == 0) ranges[thread / kWarp] = range;
    __syncthreads();
    PK_UNROLL
    for (int w = 0; w < kWarps; ++w) range.add(ranges[w]);
  }
  const Grid grid = grid_of(range, p.symmetric);
  if (thread == 0) {
    p.scale[row] = grid.scale;
    if (p.zero_point != nullptr) p.zero_point[row] = grid.zero_point;
  }

  PK_UNROLL
  for (int i = 0; i < kKept; ++i) {
    if (thread + i * kGroup < chunks) {
      kept[i].store(to + (thread + i * kGroup) * Vector::kCount, grid, p.symmetric);
    }
  }
  for (int64_t c = thread + kKept * kGroup; c < chunks; c += kGroup) {
    Vector v;
    v.load(x + c * Vector::kCount);
    v.store(to + c * Vector::kCount, grid, p.symmetric);
  }
  for (int64_t i = singles + thread; i < p.to_stride; i += kGroup) {
    to[i] = i < p.k ? on_grid(to_float(x[i]), grid, p.symmetric) : int8_t{0};
  }
}

template <class T>
Status launch_rows(RowsProblem p, void* stream) {
  const auto aligned = [](const void* at, int64_t stride_bytes, uintptr_t to) {
    return reinterpret_cast<uintptr_t>(at) % to == 0 && static_cast<uintptr_t>(stride_bytes) % to == 0;
  };
  p.chunks =
      aligned(p.x, p.stride * static_cast<int64_t>(sizeof(T)), 16) && aligned(p.to, p.to_stride, Chunk<T>::kCount);
  if (p.rows > INT32_MAX) return {"x: the sizes are too large"};
  const auto rows = static_cast<unsigned>(p.rows);
  if (p.k * static_cast<int64_t>(sizeof(T)) <= kWarp * kKept * 16) {
    return launch(rows_kernel<T, kWarp>, {.grid = dim3(ceil_div(rows, unsigned{kWarps})), .block = dim3(kThreads)},
                  stream, p);
  }
  return launch(rows_kernel<T, kThreads>,
                {.grid = dim3(rows), .block = dim3(kThreads), .shared_bytes = kWarps * static_cast<int>(sizeof(Range))},
                stream, p);
}

}  // namespace

Status quantize_rows(DType dtype, const void* x, int64_t rows, int64_t k, int64_t stride, bool symmetric, int8_t* to,
                     int64_t to_stride, float* scale, int32_t* zero_point, void* stream) {
  const RowsProblem p = {x, rows, k, stride, to, to_stride, scale, zero_point, symmetric, false};
  return with_type(dtype, [&](auto t) { return launch_rows<decltype(t)>(p, stream); });
}

}  // namespace pk::cuda::int8
