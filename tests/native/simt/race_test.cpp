// The race detector: every planted race is reported under every schedule, and ordered accesses never are.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "simt/simt.h"
#include "test.h"

using namespace pk::cuda;

namespace {

// Each thread reads what its neighbour in the next warp wrote.
template <bool kBarrier>
__global__ void across_warps(int* out) {
  int* const s = dynamic_shared<int>();
  const unsigned i = threadIdx.x;
  s[i] = static_cast<int>(i);
  if (kBarrier) __syncthreads();
  out[i] = s[(i + 32) % blockDim.x];
}

// Each lane reads what the next lane wrote, and a shuffle orders no memory.
template <bool kBarrier>
__global__ void across_lanes(int* out) {
  int* const s = dynamic_shared<int>();
  const unsigned i = threadIdx.x;
  s[i] = static_cast<int>(i);
  if (kBarrier) {
    __syncwarp();
  } else {
    (void)__shfl_sync(0xffffffff, 0, 0);
  }
  out[i] = s[i / 32 * 32 + (i + 1) % 32];
}

// The second round's writes meet the first round's reads.
template <bool kBarrier>
__global__ void reused(int* out) {
  int* const s = dynamic_shared<int>();
  const unsigned i = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    s[i] = round;
    __syncthreads();
    out[i] = s[(i + 32) % blockDim.x];
    if (kBarrier) __syncthreads();
  }
}

// Words of bytes: neighbours in one word are no race, the same byte is.
template <bool kSame>
__global__ void bytes(unsigned char* out) {
  out[kSame ? threadIdx.x / 2 : threadIdx.x] = 1;
}

// Data behind a flag: relaxed accesses don't order it.
__global__ void behind_a_flag(uint32_t* flag, int* data, int* out) {
  if (blockIdx.x == 0) {
    *data = 1;
    ptx::store_relaxed(flag, 1);
  } else {
    while (ptx::load_relaxed_16(flag).x == 0) ptx::backoff();
    *out = *data;
  }
}

// Words that are data and flag in one are no race.
__global__ void polled_data(uint32_t* data, uint32_t* out) {
  if (blockIdx.x == 0) {
    ptx::store_relaxed_16(data, make_uint4(1, 2, 3, 4));
  } else {
    uint4 v = ptx::load_relaxed_16(data);
    for (; !(v.x && v.y && v.z && v.w); v = ptx::load_relaxed_16(data)) ptx::backoff();
    *out = v.x + v.y + v.z + v.w;
  }
}

// A copy that only its own thread has waited for.
template <bool kBarrier>
__global__ void copied(const int* in, int* out) {
  int* const s = dynamic_shared<int>();
  const unsigned i = threadIdx.x;
  ptx::cp_async_16(s + 4 * i, in + 4 * i);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  if (kBarrier) __syncthreads();
  out[i] = s[i];
}

template <class... P, class... A>
std::string run(void (*kernel)(P...), unsigned blocks, unsigned threads, A... arguments) {
  const pk::Status status =
      launch(kernel, {.grid = dim3(blocks), .block = dim3(threads), .shared_bytes = 4096, .cooperative = true}, nullptr,
             arguments...);
  EXPECT(bool(status));
  return simt::take_error();
}

bool is_race(const std::string& error) { return error.find("race") != std::string::npos; }

}  // namespace

int main() {
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    std::vector<int> out(64), in(256, 3);
    std::vector<unsigned char> small(64);
    EXPECT(run(across_warps<true>, 1, 64, out.data()).empty());
    EXPECT(is_race(run(across_warps<false>, 1, 64, out.data())));
    EXPECT(run(across_lanes<true>, 1, 64, out.data()).empty());
    EXPECT(is_race(run(across_lanes<false>, 1, 64, out.data())));
    EXPECT(run(reused<true>, 1, 64, out.data()).empty());
    EXPECT(is_race(run(reused<false>, 1, 64, out.data())));
    EXPECT(run(bytes<false>, 1, 64, small.data()).empty());
    EXPECT(is_race(run(bytes<true>, 1, 64, small.data())));
    EXPECT(run(copied<true>, 1, 64, in.data(), out.data()).empty());
    EXPECT(is_race(run(copied<false>, 1, 64, in.data(), out.data())));

    std::vector<uint32_t> words(4);
    int data = 0;
    EXPECT(is_race(run(behind_a_flag, 2, 1, words.data(), &data, out.data())));
    words.assign(4, 0);
    uint32_t sum = 0;
    EXPECT(run(polled_data, 2, 1, words.data(), &sum).empty());
    EXPECT(sum == 10);
  }
  return pk::test::finish();
}
