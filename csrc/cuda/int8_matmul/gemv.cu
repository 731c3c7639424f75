// One row times b: out[j] = sum_k a[k] b[j, k], bound by reading b once.
//
// A warp takes four rows of b at a time, 512 bytes of each with one load, and two such steps in flight: 128 bytes a
// lane. a's bytes serve four rows and come from L1. Where b has too few rows to give every multiprocessor enough warps,
// the warps of a block share K, and their sums are added in order.
#include "cuda/int8_matmul/epilogue.cuh"
#include "cuda/launch.cuh"

namespace pk::cuda::int8 {
namespace {

constexpr int kRows = 4, kWarps = 8, kStep = kWarp * 16, kAhead = 2;

PK_DEVICE int32_t dot16(uint4 a, uint4 b, int32_t sum) {
  sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), sum);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}

__global__ void __launch_bounds__(kWarps* kWarp, 3) gemv_kernel(Product p, Epilogue e, int warps_along_k) {
  int32_t* sums = dynamic_shared<int32_t>();  // (row groups, warps along k, kRows)
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int groups = kWarps / warps_along_k, group = warp / warps_along_k, part = warp % warps_along_k;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * groups + group) * kRows;
  const int8_t* rows[kRows];
  int32_t acc[kRows];
  PK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    rows[r] = p.b + (first + r < p.n ? first + r : p.n - 1) * p.b_stride;  // read, and not stored
    acc[r] = 0;
  }
  const int64_t k = first < p.n ? p.k : 0;
  for (int64_t at = part * kStep + lane * 16; at < k; at += warps_along_k * kAhead * kStep) {
    uint4 a[kAhead], b[kAhead][kRows];
    PK_UNROLL
    for (int s = 0; s < kAhead; ++s) {
      const int64_t here = at + s * warps_along_k * kStep;
      a[s] = make_uint4(0, 0, 0, 0);
      if (here < k) a[s] = *reinterpret_cast<const uint4*>(p.a + here);
      PK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        b[s][r] = make_uint4(0, 0, 0, 0);
        if (here < k) b[s][r] = *reinterpret_cast<const uint4*>(rows[r] + here);
      }
    }
    PK_UNROLL
    for (int s = 0; s < kAhead; ++s) {
      PK_UNROLL
      for (int r = 0; r < kRows; ++r) acc[r] = dot16(a[s], b[s][r], acc[r]);
    }
  }
  PK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PK_UNROLL
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) acc[r] += __shfl_xor_sync(0xffffffffu, acc[r], lanes);
    if (lane == 0) sums[warp * kRows + r] = acc[r];
  }
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.x);  // thread g finishes group g
  if (mine >= groups) return;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * groups + mine) * kRows;
  if (column >= p.n) return;
  int32_t total[kRows] = {};
  for (int w = 0; w < warps_along_k; ++w) {
    PK_UNROLL
    for (int r = 0; r < kRows; ++r) total[r] += sums[(mine * warps_along_k + w) * kRows + r];
  }
  store_row(e, load_columns<kRows>(e, column), 0, total);
}

}  // namespace

Status gemv(const Product& p, const Epilogue& e, int multiprocessors, void* stream) {
  const int along_k = gemv_warps_along_k(p.n, p.k, multiprocessors);
  return launch(gemv_kernel,
                {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kRows * kWarps / along_k))),
                 .block = dim3(kWarps * kWarp),
                 .shared_bytes = kWarps * kRows * 4},
                stream, p, e, along_k);
}

}  // namespace pk::cuda::int8
