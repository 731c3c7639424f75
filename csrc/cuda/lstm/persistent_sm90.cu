// The persistent recurrence (persistent.cuh) where a worker is one cluster of Hopper: a block writes its part of h
// straight into every block's shared memory, as stores that count on an mbarrier there. So nothing is polled through
// the L2 cache, a step's words are seen all at once, and no block of another worker is waited for.
//
// h of step s lies in buffer s % 2 of every block, and barrier s % 2 counts its bytes: phase (s - 1) / 2 of it, since
// step 0's h is fetched from global memory. Why no store comes too early: a block sends h of step s + 1 after it has
// all of h of step s, so after each block has sent its part of that, which is behind the block barrier of its step s
// - 1. By then
// - every warp there has read h of step s - 1, which lies where h of step s + 1 goes (and one step's sequences are one
//   group, so there is one such barrier a step), and so has seen the end of that barrier's phase;
// - thread 0 there has announced the bytes of step s + 1, which it does between the two.
// A block waits for all that is sent to it, and a cluster barrier comes last, so that no store meets a block that has
// ended.
#include "cuda/launch.cuh"
#include "cuda/lstm/persistent.cuh"

namespace pk::cuda::lstm {
namespace {

template <class T>
class ClusterExchange {
 public:
  PK_DEVICE ClusterExchange(const Persistent& call, const Worker& w, void* shared)
      : call_(call),
        w_(w),
        pitch_((call.chunks | 1) * kChunkWords),
        buffer_words_(call.tiles * kTileRows * pitch_),
        h_(static_cast<uint32_t*>(shared)),
        full_(reinterpret_cast<uint64_t*>(h_ + 2 * buffer_words_)) {}

  PK_DEVICE void begin() {
    // Step 0's h; zeros behind h, which nobody sends.
    const int row_words = call_.chunks * kChunkWords;
    for (int i = static_cast<int>(threadIdx.x); i < 2 * buffer_words_; i += kThreads) {
      const int b = i / pitch_, word = i % pitch_;
      h_[i] = b < call_.batch && word < row_words ? w_.slots[b * row_words + word] : 0;
    }
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(&full_[0], 1);
      ptx::mbarrier_init(&full_[1], 1);
      ptx::fence_mbarrier_init();
      if (w_.steps > 1) ptx::mbarrier_arrive_expect_tx(&full_[1], bytes_of(1));
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }

  PK_DEVICE void step(int t) {
    t_ = t;
    after_next_ = threadIdx.x == 0 && t + 2 < w_.steps ? bytes_of(t + 2) : 0;
  }

  PK_DEVICE void wait() {
    if (t_ > 0) ptx::mbarrier_wait_cluster(&full_[t_ % 2], static_cast<uint32_t>(t_ - 1) / 2 % 2);
    if (after_next_) ptx::mbarrier_arrive_expect_tx(&full_[t_ % 2], after_next_);
  }

  template <int kChunks, class There>
  PK_DEVICE void read(uint4 (&h)[kChunks][kTiles], int row, int word, const There& there) const {
    const uint32_t* const from = h_ + t_ % 2 * buffer_words_ + row * pitch_ + word;
    PK_UNROLL
    for (int j = 0; j < kChunks; ++j) {
      PK_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        h[j][n] = there(j, n)
                      ? *reinterpret_cast<const uint4*>(from + n * kTileRows * pitch_ + j * kWarps * kChunkWords)
                      : make_uint4(0, 0, 0, 0);
      }
    }
  }

  // The lanes of 16 bytes of h share out the blocks that get them.
  PK_DEVICE void send(int b, int unit, uint32_t word, bool wanted) const {
    constexpr int kWordElements = 4 / sizeof(T), kVector = 16 / sizeof(T);
    const int mine = unit % kVector, first_lane = static_cast<int>(threadIdx.x) % kWarp - mine;
    uint4 v;
    v.x = __shfl_sync(0xffffffffu, word, first_lane);
    v.y = __shfl_sync(0xffffffffu, word, first_lane + kWordElements);
    v.z = __shfl_sync(0xffffffffu, word, first_lane + 2 * kWordElements);
    v.w = __shfl_sync(0xffffffffu, word, first_lane + 3 * kWordElements);
    if (!wanted || unit - mine >= call_.hidden) return;
    const int next = (t_ + 1) % 2;
    const uint32_t* const to = h_ + next * buffer_words_ + b * pitch_ + (unit - mine) / kWordElements;
    for (int block = mine; block < call_.blocks; block += kVector) {
      const auto rank = static_cast<uint32_t>(block);
      ptx::st_async_16(ptx::cluster_address(to, rank), v, ptx::cluster_address(&full_[next], rank));
    }
  }

  PK_DEVICE void end() {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }

 private:
  // What all blocks together send to each for step t.
  PK_DEVICE uint32_t bytes_of(int t) const {
    const int64_t time = w_.reverse ? w_.first_time - t : w_.first_time + t;
    const int row_bytes = ceil_div(call_.hidden * static_cast<int>(sizeof(T)), 16) * 16;
    return static_cast<uint32_t>(step_at(call_, time).sequences * row_bytes);
  }

  const Persistent& call_;
  const Worker& w_;
  const int pitch_, buffer_words_;  // in words: cluster_pitch and a buffer of cluster_shared (choose.h)
  uint32_t* const h_;
  uint64_t* const full_;
  int t_ = 0;
  uint32_t after_next_ = 0;
};

template <class T, int kMTiles>
__global__ void __launch_bounds__(kThreads, 1) cluster_kernel(const __grid_constant__ Persistent call) {
#if PK_HAS_SM90A
  persistent_steps<T, kMTiles, ClusterExchange<T>>(call);
#endif
}

template <class T>
Status run(const Choice& choice, const Persistent& call, void* stream) {
  const Launch how = {.grid = dim3(static_cast<unsigned>(call.count * call.blocks)),
                      .block = dim3(kThreads),
                      .shared_bytes = choice.shared_bytes,
                      .cluster = call.blocks};
  return choice.m_tiles == 2 ? launch(&cluster_kernel<T, 2>, how, stream, call)
                             : launch(&cluster_kernel<T, 4>, how, stream, call);
}

}  // namespace

Status run_cluster(DType dtype, const Choice& choice, const Persistent& call, void* stream) {
  return with_type(dtype, [&](auto t) { return run<decltype(t)>(choice, call, stream); });
}

}  // namespace pk::cuda::lstm
