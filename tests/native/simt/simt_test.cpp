// The harness itself: kernels that are right pass under every schedule, and faults planted in them are caught by one.
#include "simt/simt.h"

#include "cuda/launch.cuh"
#include "cuda/products.h"
#include "cuda/ptx.cuh"
#include "test.h"

using namespace pk::cuda;

namespace {

enum class Fault { none, no_syncthreads, no_wait, swapped_lane, no_second_barrier };

// y[j] = x[(j + 32) mod n] through shared memory, block by block of n threads.
template <Fault kFault>
__global__ void neighbour(const int* x, int* y, int n) {
  int* const s = dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 3; ++round) {
    s[i] = x[blockIdx.x * n + i] + round;
    if (kFault != Fault::no_syncthreads) __syncthreads();
    y[(blockIdx.x * 3 + round) * n + i] = s[(i + 32) % n];
    if (kFault != Fault::no_second_barrier) __syncthreads();
  }
}

// d (16 x 8 a block) = a (16 x k) b (8 x k)^T of f16, tiles of 16 k through cp.async in two stages, by one warp.
template <Fault kFault>
__global__ void product(const f16* a, const f16* b, float* d, int k) {
  f16* const shared = dynamic_shared<f16>();
  f16* const sa[2] = {shared, shared + 16 * 16};
  f16* const sb[2] = {shared + 2 * 16 * 16, shared + 2 * 16 * 16 + 8 * 16};
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  a += blockIdx.x * 16 * k;
  b += blockIdx.x * 8 * k;
  const auto fetch = [&](int tile, int stage) {
    ptx::cp_async_16(sa[stage] + lane * 8, a + (lane / 2) * k + tile * 16 + lane % 2 * 8);
    if (lane < 16) ptx::cp_async_16(sb[stage] + lane * 8, b + (lane / 2) * k + tile * 16 + lane % 2 * 8);
    ptx::cp_async_commit();
  };
  float sum[4] = {};
  fetch(0, 0);
  for (int tile = 0; tile < k / 16; ++tile) {
    const bool more = (tile + 1) * 16 < k;
    if (more) fetch(tile + 1, (tile + 1) % 2);
    if (kFault != Fault::no_wait) {
      if (more) {
        ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
    }
    if (kFault != Fault::no_syncthreads) __syncthreads();
    uint32_t fa[4], fb[2];
    ptx::ldmatrix_x4(fa, sa[tile % 2] + lane % 16 * 16 + lane / 16 * 8);
    ptx::ldmatrix_x2(fb, sb[tile % 2] + lane % 8 * 16 + lane / 8 % 2 * 8);
    if (kFault == Fault::swapped_lane) {
      // Lanes 6 and 7 hold each other's part of a.
      const int from = lane == 6 ? 7 : lane == 7 ? 6 : lane;
      fa[1] = __shfl_sync(0xffffffff, fa[1], from);
    }
    ptx::mma_m16n8k16_f16(sum, fa, fb);
    __syncthreads();
  }
  d += blockIdx.x * 16 * 8;
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

// Block 0 publishes numbers, the others wait for them and pass them on.
__global__ void hand_over(uint32_t* data, uint32_t* out) {
  if (blockIdx.x == 0) {
    ptx::store_relaxed(data + 4 * threadIdx.x, 100 + threadIdx.x);
  } else {
    uint32_t seen = 0;
    while ((seen = ptx::load_relaxed_16(data + 4 * threadIdx.x).x) == 0) ptx::backoff();
    out[(blockIdx.x - 1) * blockDim.x + threadIdx.x] = seen;
  }
}

__global__ void waits_for_nobody(const uint32_t* flag) {
  while (ptx::load_relaxed_16(flag).x == 0) ptx::backoff();
}

__global__ void half_a_barrier() {
  if (threadIdx.x < 32) ptx::barrier_sync(1, 64);
}

__global__ void diverges() {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    (void)__shfl_sync(0xffffffff, 1, 0);
  }
}

__global__ void sums(const int* x, int* y) {
  int v = x[threadIdx.x];
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
  y[threadIdx.x] = v;
}

template <Fault kFault>
bool neighbour_is_right() {
  const int n = 128, blocks = 3;
  std::vector<int> x(n * blocks), y(3 * n * blocks, -1);
  for (int i = 0; i < n * blocks; ++i) x[i] = i * 7 + 1;
  const pk::Status status = launch(neighbour<kFault>, {.grid = dim3(blocks), .block = dim3(n), .shared_bytes = n * 4},
                                   nullptr, x.data(), y.data(), n);
  bool right = bool(status) && simt::take_error().empty();
  for (int b = 0; b < blocks; ++b) {
    for (int round = 0; round < 3; ++round) {
      for (int i = 0; i < n; ++i) right = right && y[(b * 3 + round) * n + i] == x[b * n + (i + 32) % n] + round;
    }
  }
  return right;
}

template <Fault kFault>
bool product_is_right() {
  const int blocks = 2, k = 64;
  const auto a = operand<f16>(blocks * 16 * k, 1), b = operand<f16>(blocks * 8 * k, 2);
  std::vector<float> d(blocks * 16 * 8, NAN);
  const pk::Status status =
      launch(product<kFault>, {.grid = dim3(blocks), .block = dim3(32), .shared_bytes = 2 * 24 * 16 * 2}, nullptr,
             a.data(), b.data(), d.data(), k);
  bool right = bool(status) && simt::take_error().empty();
  const auto all = product_of(a, b, blocks * 16, blocks * 8, k, 0, k);
  for (int row = 0; row < blocks * 16; ++row) {
    for (int j = 0; j < 8; ++j) {
      // Four sums rounded to float.
      right = right && std::fabs(d[row * 8 + j] - all[row * blocks * 8 + row / 16 * 8 + j]) <= 1e-4;
    }
  }
  return right;
}

// How many schedules catch what `is_right` runs.
template <class F>
int catches(F is_right) {
  int caught = 0;
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    caught += !is_right();
  }
  return caught;
}

std::string error_of(void (*kernel)(), int threads) {
  (void)launch(kernel, {.block = dim3(threads)}, nullptr);
  return simt::take_error();
}

void test_numbers() {
  // Every half and bfloat survives the way to float and back.
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float h = to_float(f16{static_cast<uint16_t>(bits)}), b = to_float(bf16{static_cast<uint16_t>(bits)});
    if (h == h) wrong += from_float<f16>(h).bits != bits;
    if (b == b) wrong += from_float<bf16>(b).bits != bits;
  }
  EXPECT(wrong == 0, "%d", wrong);
  EXPECT(from_float<f16>(65519.0f).bits == 0x7bff);
  EXPECT(from_float<f16>(65520.0f).bits == 0x7c00);
  EXPECT(from_float<f16>(1.0f + 0x1p-11f).bits == 0x3c00);  // a tie, to even
  EXPECT(from_float<f16>(0x1p-25f).bits == 0);
  EXPECT(from_float<f16>(0x1.8p-25f).bits == 1);
}

}  // namespace

int main() {
  test_numbers();

  EXPECT(catches(neighbour_is_right<Fault::none>) == 0);
  EXPECT(catches(neighbour_is_right<Fault::no_syncthreads>) > 0);
  EXPECT(catches(neighbour_is_right<Fault::no_second_barrier>) > 0);
  EXPECT(catches(product_is_right<Fault::none>) == 0);
  EXPECT(catches(product_is_right<Fault::no_wait>) > 0);
  EXPECT(catches(product_is_right<Fault::swapped_lane>) == static_cast<int>(simt::schedules().size()));

  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    std::vector<uint32_t> data(4 * 32), out(96);
    EXPECT(bool(launch(hand_over, {.grid = dim3(4), .block = dim3(32), .cooperative = true}, nullptr, data.data(),
                       out.data())));
    EXPECT(simt::take_error().empty());
    for (int i = 0; i < 96; ++i) EXPECT(out[i] == 100u + i % 32);

    std::vector<int> x(32), y(32);
    for (int i = 0; i < 32; ++i) x[i] = i;
    EXPECT(bool(launch(sums, {.block = dim3(32)}, nullptr, x.data(), y.data())));
    for (int i = 0; i < 32; ++i) EXPECT(y[i] == 496);

    // A deadlock is reported, not waited for.
    const uint32_t flag[4] = {};
    EXPECT(bool(launch(waits_for_nobody, {.block = dim3(64)}, nullptr, static_cast<const uint32_t*>(flag))));
    EXPECT(simt::take_error().find("deadlock") != std::string::npos);
    EXPECT(error_of(half_a_barrier, 64).find("deadlock") != std::string::npos);
    EXPECT(error_of(diverges, 32).find("divergence") != std::string::npos);
  }
  return pk::test::finish();
}
