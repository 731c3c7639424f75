// The persistent recurrence (persistent.cuh) with h exchanged through the L2 cache, over all blocks of a worker.
//
// Each step has its own slots for h, (b, chunks, 16 words), written with kUnwritten before the launch.
// The block that owns a unit stores its words, relaxed; the readers poll the data itself, relaxed, until no word is
// kUnwritten. That is right by each word's coherence alone: a word changes once, from kUnwritten to its value, and a
// reader uses nothing but what it has read. So no fence, counter or barrier over the grid is on the way, and the
// latency is that of one store and one load. (A counter a step costs a fence, an atomic and a second load after the
// poll; a ring of slots would need them too, to be cleared safely. Slots for each step of a span cost as many bytes as
// its output, in the L2 cache.) NaN is stored as a pattern that is not kUnwritten. All blocks are resident (cooperative
// launch, no more blocks than multiprocessors), so whoever is waited for runs.
#include "cuda/launch.cuh"
#include "cuda/lstm/persistent.cuh"

namespace pk::cuda::lstm {
namespace {

PK_DEVICE uint32_t largest(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)); }

template <class T>
class GridExchange {
 public:
  PK_DEVICE GridExchange(const Persistent& call, const Worker& w, void*)
      : row_words_(call.chunks * kChunkWords), hidden_(call.hidden), batch_(call.batch), slots_(w.slots) {}

  PK_DEVICE void begin() {}
  PK_DEVICE void step(int t) {
    read_from_ = slots_ + static_cast<int64_t>(t) * batch_ * row_words_;
    write_to_ = read_from_ + static_cast<int64_t>(batch_) * row_words_;
  }
  PK_DEVICE void wait() {}

  template <int kChunks, class There>
  PK_DEVICE void read(uint4 (&h)[kChunks][kTiles], int row, int word, const There& there) const {
    const uint32_t* const mine_from = read_from_ + row * row_words_ + word;
    const auto load = [&](int j, int n) {
      h[j][n] = ptx::load_relaxed_16(mine_from + n * kTileRows * row_words_ + j * kWarps * kChunkWords);
    };
    PK_UNROLL
    for (int j = 0; j < kChunks; ++j) {
      PK_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        h[j][n] = make_uint4(0, 0, 0, 0);
        if (there(j, n)) load(j, n);
      }
    }
    const auto unwritten = [&] {
      uint32_t most = 0;
      PK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        PK_UNROLL
        for (int n = 0; n < kTiles; ++n) most = max(most, largest(h[j][n]));
      }
      return most == kUnwritten;
    };
    while (unwritten()) {
      ptx::backoff();
      PK_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        PK_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          if (largest(h[j][n]) == kUnwritten) load(j, n);
        }
      }
    }
  }

  PK_DEVICE void send(int b, int unit, uint32_t word, bool wanted) const {
    constexpr int kWordElements = 4 / sizeof(T);
    if (wanted && unit < hidden_ && unit % kWordElements == 0) {
      ptx::store_relaxed(write_to_ + static_cast<int64_t>(b) * row_words_ + unit / kWordElements, word);
    }
  }
  PK_DEVICE void end() {}

 private:
  const int row_words_, hidden_, batch_;
  uint32_t* const slots_;
  uint32_t* read_from_ = nullptr;
  uint32_t* write_to_ = nullptr;
};

template <class T, int kMTiles>
__global__ void __launch_bounds__(kThreads, 1) persistent_kernel(const __grid_constant__ Persistent call) {
  persistent_steps<T, kMTiles, GridExchange<T>>(call);
}

template <class T>
Status run(const Choice& choice, const Persistent& call, void* stream) {
  const Launch how = {.grid = dim3(static_cast<unsigned>(call.count * call.blocks)),
                      .block = dim3(kThreads),
                      .shared_bytes = choice.shared_bytes,
                      .cooperative = true};
  return choice.m_tiles == 2 ? launch(&persistent_kernel<T, 2>, how, stream, call)
                             : launch(&persistent_kernel<T, 4>, how, stream, call);
}

}  // namespace

Status run_persistent(DType dtype, const Choice& choice, const Persistent& call, void* stream) {
  return with_type(dtype, [&](auto t) { return run<decltype(t)>(choice, call, stream); });
}

}  // namespace pk::cuda::lstm
