// The main loop of a block on Hopper: acc[128 x kN] = sum over k tiles of A B^T, by wgmma on what TMA brings.
//
// Two warpgroups multiply, each 64 rows by all kN columns, straight from shared memory; one thread of a ninth warp asks
// TMA for k tiles of 128 bytes of K a row, kStages ahead. Two mbarriers a stage: `full` counts the bytes that have
// come, `empty` the warps that are done with them. One product is in flight while the next tile is waited for.
//
// What hides the epilogue: up to kN = 128 two blocks share a multiprocessor, and one multiplies while the other stores.
// kN = 256 has the better ratio of products to bytes, and the whole multiprocessor to itself.
//
// kCluster = 2: two blocks, neighbours in M, load half of B each and multicast it to both.
//
// How a kernel uses it (capability 90 alone: body under #if PK_HAS_SM90A, file named *_sm90.cu):
//
//   using T = gemm::WgmmaTile<f16, 128, 3>;          // __launch_bounds__(T::kThreads, T::kBlocks), T::kSharedBytes
//   gemm::wgmma_mainloop<T>(load_a, load_b, first, count, dynamic_shared<char>(), [&](typename T::Accumulator& acc) {
//     // The T::kConsumers threads 0.. come here, and the first T::kFreeBytes of shared memory are theirs.
//     gemm::for_each_wgmma_pair<T>(acc, [&](int row, int column, Sum v0, Sum v1) { ... });
//   });
//
// load_a(shared, barrier, k_tile) asks for the tile's 128 rows x 128 bytes, load_b(shared, barrier, k_tile, row,
// blocks) for kN / kCluster rows from `row` of the tile on, for the blocks of the cluster whose bits are set (kCluster
// 1: for this one); both with the 128-byte swizzle, zeros where the matrices have ended, by one thread.
#pragma once

#include "cuda/gemm/mainloop.cuh"
#include "cuda/numeric.cuh"
#include "cuda/ptx.cuh"

namespace pk::cuda::gemm {

template <class Element_, int kN_, int kStages_, int kCluster_ = 1>
struct WgmmaTile {
  using Element = Element_;
  using Sum = typename ElementTraits<Element>::Sum;
  static constexpr int kM = 128, kN = kN_, kStages = kStages_, kCluster = kCluster_;
  static constexpr int kRowBytes = 128, kK = kRowBytes / static_cast<int>(sizeof(Element));
  // A lone warp that asks leaves 224 or 112 registers a thread, so nothing is gained by setmaxnreg.
  static constexpr int kConsumers = 256, kThreads = kConsumers + kWarp;
  static constexpr int kBlocks = kN <= 128 ? 2 : 1;  // on a multiprocessor
  static constexpr int kBytesA = kM * kRowBytes, kBytesB = kN * kRowBytes, kStageBytes = kBytesA + kBytesB;
  static constexpr int kFreeBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = kFreeBytes + kStages * 16;
  static_assert(kN == 64 || kN == 128 || kN == 256);
  static_assert(kCluster == 1 || kCluster == 2);
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 * 1024);

  // Of a consumer: row 16 warp + lane / 4 (+ 8), columns 2 (lane % 4), + 1 of each eight: see for_each_wgmma_pair.
  struct Accumulator {
    Sum v[kN / 2];
  };
};

// Loaders of row-major matrices, by maps of matrix_view with boxes of 128 (a) or kN / kCluster (b) rows and T::kK
// columns; `row`: the tile's first.
template <class T>
struct TmaRowsA {
  const TensorMap* map;
  int row;
  PK_DEVICE void operator()(void* shared, uint64_t* barrier, int k_tile) const {
    ptx::tma_load_2d(shared, map, barrier, k_tile * T::kK, row);
  }
};
template <class T>
struct TmaRowsB {
  const TensorMap* map;
  int row;
  PK_DEVICE void operator()(void* shared, uint64_t* barrier, int k_tile, int part, uint16_t blocks) const {
    if constexpr (T::kCluster > 1) {
      ptx::tma_load_2d_multicast(shared, map, barrier, k_tile * T::kK, row + part, blocks);
    } else {
      ptx::tma_load_2d(shared, map, barrier, k_tile * T::kK, row + part);
    }
  }
};

template <int kRegisters>
PK_DEVICE void wgmma_step(f16, float (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate) {
  ptx::wgmma_f16(d, a, b, accumulate);
}
template <int kRegisters>
PK_DEVICE void wgmma_step(bf16, float (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate) {
  ptx::wgmma_bf16(d, a, b, accumulate);
}
template <int kRegisters>
PK_DEVICE void wgmma_step(int8_t, int32_t (&d)[kRegisters], uint64_t a, uint64_t b, bool accumulate) {
  ptx::wgmma_s8(d, a, b, accumulate);
}

// A position in the ring of stages, which goes on from one tile's sum to the next's. `parity` is that of the phase to
// wait for, of a full stage.
template <class T>
struct Stage {
  int index = 0;
  uint32_t parity = 0;
  PK_DEVICE void advance() {
    if (++index == T::kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

// The barriers of the stages, made ready; and the end, before which no block of a cluster may leave, since the other
// one still counts on its barriers. Both by all threads.
template <class T>
PK_DEVICE void wgmma_begin(uint64_t* full, uint64_t* empty) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::kStages; ++i) {
      ptx::mbarrier_init(full + i, 1);
      ptx::mbarrier_init(empty + i, T::kCluster * T::kConsumers / kWarp);
    }
    ptx::fence_mbarrier_init();
  }
  if constexpr (T::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
}
template <class T>
PK_DEVICE void wgmma_end() {
  if constexpr (T::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

template <class T, class LoadA, class LoadB>
PK_DEVICE void wgmma_produce(const LoadA& load_a, const LoadB& load_b, int first, int count, char* shared,
                             uint64_t* full, uint64_t* empty, Stage<T>& stage) {
  const auto rank = static_cast<int>(T::kCluster > 1 ? ptx::cluster_rank() : 0);
  constexpr int kRows = T::kN / T::kCluster;
  constexpr auto kAll = static_cast<uint16_t>((1 << T::kCluster) - 1);
  PK_ROLLED
  for (int tile = first; tile < first + count; ++tile, stage.advance()) {
    uint64_t* const barrier = full + stage.index;
    ptx::mbarrier_wait(empty + stage.index, stage.parity ^ 1);
    // The other block's half may come before this; the phase cannot end before the arrival.
    ptx::mbarrier_arrive_expect_tx(barrier, T::kStageBytes);
    char* const a = shared + stage.index * T::kStageBytes;
    load_a(a, barrier, tile);
    load_b(a + T::kBytesA + rank * kRows * T::kRowBytes, barrier, tile, rank * kRows, kAll);
  }
}

// A warp is done with a stage, in all blocks that loaded it. It has written nothing there, and what it read is in its
// products, so nothing has to be made visible: neither this nor the waits are at cluster scope, whose fences would wait
// for the epilogue's stores to global memory.
template <class T>
PK_DEVICE void wgmma_release(uint64_t* empty) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (T::kCluster > 1) {
    if (lane < T::kCluster) ptx::mbarrier_arrive_cluster_read(ptx::cluster_address(empty, static_cast<uint32_t>(lane)));
  } else {
    if (lane == 0) ptx::mbarrier_arrive(empty);
  }
}

template <class T>
PK_DEVICE void wgmma_consume(int count, const char* shared, uint64_t* full, uint64_t* empty, Stage<T>& stage,
                             typename T::Accumulator& acc) {
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  int previous = 0;
  PK_ROLLED
  for (int i = 0; i < count; ++i, stage.advance()) {
    ptx::mbarrier_wait(full + stage.index, stage.parity);
    const char* const base = shared + stage.index * T::kStageBytes;
    const uint64_t a = ptx::wgmma_descriptor(base + warpgroup * 64 * T::kRowBytes);
    const uint64_t b = ptx::wgmma_descriptor(base + T::kBytesA);
    ptx::wgmma_fence();
    PK_UNROLL
    for (int j = 0; j < 4; ++j) {
      // 32 bytes of K further are 2 in units of 16.
      wgmma_step(typename T::Element{}, acc.v, a + 2 * j, b + 2 * j, j > 0 || i > 0);
    }
    ptx::wgmma_commit();
    if (i > 0) {
      ptx::wgmma_wait<1>(acc.v);
      wgmma_release<T>(empty + previous);
    }
    previous = stage.index;
  }
  ptx::wgmma_wait<0>(acc.v);
  wgmma_release<T>(empty + previous);
}

// Of the k tiles first .. first + count - 1, count at least 1. All threads of the block come, and all return, at the
// end of the kernel's work: finish(acc) runs in the consumers alone.
template <class T, class LoadA, class LoadB, class Finish>
PK_DEVICE void wgmma_mainloop(const LoadA& load_a, const LoadB& load_b, int first, int count, char* shared,
                              const Finish& finish) {
  auto* const full = reinterpret_cast<uint64_t*>(shared + T::kFreeBytes);
  uint64_t* const empty = full + T::kStages;
  wgmma_begin<T>(full, empty);
  Stage<T> stage;
  if (threadIdx.x >= T::kConsumers) {
    if (threadIdx.x == T::kConsumers) wgmma_produce<T>(load_a, load_b, first, count, shared, full, empty, stage);
  } else {
    typename T::Accumulator acc;
    wgmma_consume<T>(count, shared, full, empty, stage, acc);
    // Every stage that was asked for has come and been read by both warpgroups.
    ptx::barrier_sync(1, T::kConsumers);
    finish(acc);
  }
  wgmma_end<T>();
}

// Calls f(row, column, v0, v1) for the pairs of neighbours (row, column), (row, column + 1) that a consumer holds.
template <class T, class F>
PK_DEVICE void for_each_wgmma_pair(const typename T::Accumulator& acc, const F& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = 16 * warp + lane / 4, column = 2 * (lane % 4);
  PK_UNROLL
  for (int j = 0; j < T::kN / 8; ++j) {
    f(row, 8 * j + column, acc.v[4 * j], acc.v[4 * j + 1]);
    f(row + 8, 8 * j + column, acc.v[4 * j + 2], acc.v[4 * j + 3]);
  }
}

}  // namespace pk::cuda::gemm
