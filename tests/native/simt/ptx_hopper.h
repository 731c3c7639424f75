// The Hopper half of csrc/cuda/ptx.cuh on a CPU. What is asynchronous there happens here at the latest legal point, at
// once or at random, as the schedule says. The bodies are in ptx_hopper.cpp; what they check and keep:
//
//   mbarriers   the state is in the barrier's own 8 bytes. Uninitialised barriers and arrivals beyond the count are
//               errors.
//   proxies     wgmma reads a second image of shared memory, which TMA writes and ordinary stores don't reach: no
//               kernel has the fence that would let them.
//   wgmma       reads its operands and writes d when it is performed: at the wait, if copies are
//               late. The first one of a warpgroup needs a wgmma_fence.
//   bulk copies may land when nothing else can run; one that would touch the shared memory of a block that has ended is
//               an error.
#pragma once

#include <initializer_list>

#include "cuda/tensor_map.h"
#include "simt/cuda.h"

namespace pk::cuda::ptx {

void mbarrier_init(uint64_t* barrier, uint32_t count);
inline void fence_mbarrier_init() {}
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes);
void mbarrier_wait(uint64_t* barrier, uint32_t parity);
inline void mbarrier_wait_cluster(uint64_t* barrier, uint32_t parity) { mbarrier_wait(barrier, parity); }

void tma_load_tile(void* shared, const TensorMap* map, uint64_t* barrier, std::initializer_list<int> at,
                   uint16_t blocks);
void tma_load_im2col(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n,
                     uint16_t offset_w, uint16_t offset_h, uint16_t blocks);
inline uint16_t this_block() { return static_cast<uint16_t>(1u << simt::current->block->cluster_rank); }
inline void tma_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1) {
  tma_load_tile(shared, map, barrier, {x0, x1}, this_block());
}
inline void tma_load_3d(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1, int x2) {
  tma_load_tile(shared, map, barrier, {x0, x1, x2}, this_block());
}
inline void tma_load_2d_multicast(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1,
                                  uint16_t blocks) {
  tma_load_tile(shared, map, barrier, {x0, x1}, blocks);
}
inline void tma_load_3d_multicast(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1, int x2,
                                  uint16_t blocks) {
  tma_load_tile(shared, map, barrier, {x0, x1, x2}, blocks);
}
inline void tma_load_im2col_4d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n,
                               uint16_t offset_w, uint16_t offset_h) {
  tma_load_im2col(shared, map, barrier, c, w, h, n, offset_w, offset_h, this_block());
}

// ---- wgmma ----
enum class WgmmaElement { f16, bf16, s8 };

// What one thread brings to a product of its warpgroup.
struct WgmmaPart {
  WgmmaElement element;
  int n;
  void* d;  // n / 2 sums
  uint64_t a, b;
  bool accumulate;
};
void wgmma(WgmmaPart part);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(size_t pending);
template <int registers>
void touch(float (&)[registers]) {}
template <int registers>
void touch(int32_t (&)[registers]) {}
template <int kPending, class... D>
void wgmma_wait(D&... d) {
  wgmma_wait(size_t{kPending});
  (touch(d), ...);
}
uint64_t wgmma_descriptor(const void* tile);

template <int registers>
constexpr int wgmma_n() {
  constexpr int n = 2 * registers;
  static_assert(n == 8 || n == 16 || n == 32 || n == 64 || n == 128 || n == 256);
  return n;
}
template <int registers>
void wgmma_f16(float (&d)[registers], uint64_t a, uint64_t b, bool accumulate) {
  wgmma({WgmmaElement::f16, wgmma_n<registers>(), d, a, b, accumulate});
}
template <int registers>
void wgmma_bf16(float (&d)[registers], uint64_t a, uint64_t b, bool accumulate) {
  wgmma({WgmmaElement::bf16, wgmma_n<registers>(), d, a, b, accumulate});
}
template <int registers>
void wgmma_s8(int32_t (&d)[registers], uint64_t a, uint64_t b, bool accumulate) {
  wgmma({WgmmaElement::s8, wgmma_n<registers>(), d, a, b, accumulate});
}
template <int registers>
void registers_increase() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
}
template <int registers>
void registers_decrease() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
}

// ---- Clusters ----
inline uint32_t cluster_rank() { return simt::current->block->cluster_rank; }
inline void cluster_arrive() { simt::cluster_arrive(); }
inline void cluster_wait() { simt::cluster_wait(); }
// Rank in the highest 8 bits, offset into the block's shared memory in the others.
uint32_t cluster_address(const void* shared, uint32_t rank);
void mbarrier_arrive_cluster_read(uint32_t barrier);
void st_async_16(uint32_t address, uint4 v, uint32_t barrier);

}  // namespace pk::cuda::ptx
