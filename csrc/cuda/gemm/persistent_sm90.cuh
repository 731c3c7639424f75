// The persistent form of the Hopper main loop: a block stays on its multiprocessor and takes one tile after another, so
// that TMA already brings the next tile's stages while the last one's sums are stored, and nothing starts anew.
//
// Blocks (or clusters) take tiles in a fixed stride; tiles go in bands, so that what is computed at about the same time
// reads the same rows from L2. Long sums over few tiles are cut into slices of K.
//
//   using T = gemm::WgmmaTile<int8_t, 256, 4, 2>;     // __launch_bounds__(gemm::kPersistentThreads<T>, T::kBlocks)
//   gemm::wgmma_persistent<T>(tiles, shared,          // gemm::kPersistentBytes<T> bytes
//     [&](const gemm::Work& w) { return gemm::TmaRowsA<T>{&map_a, w.m * T::kM}; },
//     [&](const gemm::Work& w) { return gemm::TmaRowsB<T>{&map_b, w.n * T::kN}; },
//     [&](const gemm::Work& w, const typename T::Accumulator& acc, char* staging) {
//       gemm::for_each_wgmma_staged<T, 16>(acc, staging, [&](int row, int column, const int32_t (&v)[16]) { ... });
//     });
#pragma once

#include "cuda/gemm/mainloop_sm90.cuh"

namespace pk::cuda::gemm {

// One tile's slice: tile (m, n), k tiles first .. first + count - 1.
struct Work {
  int m, n, slice, first, count;
};

// All tiles of a product. Plain numbers, made on the host.
struct Tiles {
  int m, n;             // tiles along each side
  int k_tiles;          // in all
  int split, of_slice;  // slices of K, and k tiles of each but the last

  PK_HOST_DEVICE int64_t clusters(int cluster) const { return static_cast<int64_t>(ceil_div(m, cluster)) * n * split; }
  // The index-th of clusters(cluster), for the block of that rank, whose tile may lie behind the last row.
  PK_DEVICE Work work(int index, int cluster, int rank) const {
    const int groups = ceil_div(m, cluster);
    const int slice = index / (groups * n);
    int group, column;
    raster(index % (groups * n), groups, n, group, column);
    const int first = slice * of_slice;
    return {group * cluster + rank, column, slice, first, min(of_slice, k_tiles - first)};
  }
};

// A warp's part of the staging area: 16 rows of 64 columns. Groups of eight columns lie at group ^ row % 4, so that the
// pairs of four rows, which are stored at once, fill the banks.
inline constexpr int kWgmmaStagedColumns = 64, kWgmmaStagedPitch = kWgmmaStagedColumns * 4;
PK_DEVICE int wgmma_staged(int row, int column) { return row * kWgmmaStagedPitch + ((column ^ (row % 4 * 8)) * 4); }
template <class T>
inline constexpr int kWgmmaStagedBytes = T::kConsumers / kWarp * 16 * kWgmmaStagedPitch;
// A whole warpgroup asks, so that it can give its registers to the others: ptxas counts warpgroups, and allows a block
// of nine warps no more a thread than one of twelve, 168, which sums and epilogue do not fit.
template <class T>
inline constexpr int kPersistentThreads = T::kConsumers + 128;
template <class T>
inline constexpr int kPersistentBytes = T::kSharedBytes + kWgmmaStagedBytes<T>;

// f(row, column, v) for kColumns neighbouring sums of a row, v[i] that of column + i; the lanes of a warp are
// neighbours along the row, so that kColumns outputs of 16 bytes are whole lines of memory. kColumns: 4, 8 or 16. Each
// warp uses its own part of `staging`: no barrier is needed before or after.
template <class T, int kColumns, class F>
PK_DEVICE void for_each_wgmma_staged(const typename T::Accumulator& acc, char* staging, const F& f) {
  using Sum = typename T::Sum;
  constexpr int kLanes = kWgmmaStagedColumns / kColumns, kRowsAtOnce = kWarp / kLanes;
  static_assert(kColumns == 4 || kColumns == 8 || kColumns == 16);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  char* const mine = staging + warp * 16 * kWgmmaStagedPitch;
  PK_UNROLL
  for (int part = 0; part < T::kN / kWgmmaStagedColumns; ++part) {
    __syncwarp();  // the last part has been read
    PK_UNROLL
    for (int j = 0; j < kWgmmaStagedColumns / 8; ++j) {
      const Sum* const v = acc.v + (part * kWgmmaStagedColumns / 8 + j) * 4;
      PK_UNROLL
      for (int half = 0; half < 2; ++half) {
        auto* const pair = reinterpret_cast<Sum*>(mine + wgmma_staged(lane / 4 + half * 8, j * 8 + lane % 4 * 2));
        pair[0] = v[half * 2];
        pair[1] = v[half * 2 + 1];
      }
    }
    __syncwarp();
    PK_ROLLED
    for (int row = lane / kLanes; row < 16; row += kRowsAtOnce) {
      Sum v[kColumns];
      const int column = lane % kLanes * kColumns;
      PK_UNROLL
      for (int c = 0; c < kColumns; c += 4) {
        load_sums(mine + wgmma_staged(row, column + c), reinterpret_cast<Sum(&)[4]>(v[c]));
      }
      f(warp * 16 + row, part * kWgmmaStagedColumns + column, v);
    }
  }
}

// All threads of all blocks come, in a grid of min(tiles.clusters, what is resident) * T::kCluster blocks.
// loads_a(work) and loads_b(work) give loaders as wgmma_mainloop's; finish(work, acc, staging) runs in the consumers
// alone and must not wait for the other warpgroup (each is at its own pace); a tile may lie wholly behind the last row.
template <class T, class LoadsA, class LoadsB, class Finish>
PK_DEVICE void wgmma_persistent(const Tiles& tiles, char* shared, const LoadsA& loads_a, const LoadsB& loads_b,
                                const Finish& finish) {
  static_assert(T::kBlocks * (kPersistentBytes<T> + 1024) <= 228 * 1024, "fewer stages");
  auto* const full = reinterpret_cast<uint64_t*>(shared + T::kFreeBytes);
  uint64_t* const empty = full + T::kStages;
  char* const staging = shared + T::kSharedBytes;
  wgmma_begin<T>(full, empty);
  const int rank = static_cast<int>(T::kCluster > 1 ? ptx::cluster_rank() : 0);
  const int first_index = static_cast<int>(blockIdx.x) / T::kCluster;
  const int stride = static_cast<int>(gridDim.x) / T::kCluster;
  const int64_t end = tiles.clusters(T::kCluster);
  Stage<T> stage;
  if (threadIdx.x >= T::kConsumers) {
    ptx::registers_decrease<24>();
    if (threadIdx.x == T::kConsumers) {
      for (int64_t index = first_index; index < end; index += stride) {
        const Work work = tiles.work(static_cast<int>(index), T::kCluster, rank);
        wgmma_produce<T>(loads_a(work), loads_b(work), work.first, work.count, shared, full, empty, stage);
      }
    }
  } else {
    ptx::registers_increase<T::kBlocks == 1 ? 240 : 104>();
    for (int64_t index = first_index; index < end; index += stride) {
      const Work work = tiles.work(static_cast<int>(index), T::kCluster, rank);
      typename T::Accumulator acc;
      wgmma_consume<T>(work.count, shared, full, empty, stage, acc);
      finish(work, acc, staging);
    }
  }
  wgmma_end<T>();
}

}  // namespace pk::cuda::gemm
