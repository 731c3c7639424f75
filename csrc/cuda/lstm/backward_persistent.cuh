// A layer's backward recurrence as one kernel: both directions and groups of sequences side by side, all blocks
// resident at once and exchanging d(gates) through L2.
//
//   every step, against the forward order:
//     dh (rows, units) = d_gates of the step before (rows, 4h) W_hh (4h, units) + grad_output
//     the cell's derivative -> d_gates, dc
//
// A block owns `kUnits` tiles of 8 hidden units and `kRows` tiles of 16 sequences. Its columns of W_hh stay in shared
// memory from the first step to the last, in the order in which the matrix unit's fragments want them; chunks that
// don't fit there are read from L2 each step, in the same order. dc stays in registers. The warps divide the 4h terms
// of the sum and add their parts through shared memory, always in the same order.
//
// Exchange: the data are their own flag. d_gates begin as words of all ones (a NaN that no kernel computes); a block
// stores its part of a step and at once polls for the others'. Every word is written once, so nothing has to be
// ordered with it and no counter, fence or barrier between blocks stands in the way: one write and one read of L2 a
// step. What is polled is what the product wants: 16 bytes a lane, straight to registers.
//
// The order of k within a chunk (32 units of one gate) is free as long as both operands agree: lane (g, t) of a quad
// holds units 8t .. 8t + 7 of its row, which are 16 (f32: 32) contiguous bytes.
#pragma once

#include "cuda/gemm/mainloop.cuh"
#include "cuda/lstm/backward_choose.h"
#include "cuda/lstm/backward_layer.cuh"
#include "cuda/ptx.cuh"

namespace pk::cuda::lstm::backward {

inline constexpr int kThreads = kBackwardThreads, kWarps = kBackwardWarps;
inline constexpr uint32_t kNotYet = 0xffffffffu;

// Vectors of 16 bytes that hold a lane's 8 units.
template <class T>
inline constexpr int kVectors = static_cast<int>(sizeof(T)) / 2;

struct Persistent {
  BackwardLayer layer;
  const uint4* streamed[2];  // fragments of all of W_hh of a direction, or nullptr: all is pinned
  int pinned;                // chunks of 32 rows of W_hh in shared memory
  int first_sequence;        // of this launch
};

// Where W_hh[row k of a chunk][unit `column` of a tile] lies among the fragments of (chunk, tile) number `block`.
template <class T>
PK_DEVICE int64_t fragment_offset(int64_t block, int k, int column) {
  constexpr int kEach = 16 / sizeof(T);
  const int lane = column * 4 + k / 8, vector = k % 8 / kEach;
  return ((block * kVectors<T> + vector) * kWarp + lane) * kEach + k % kEach;
}

// Fragments of `chunks` chunks and `tiles` tiles of W_hh from tile first_tile on; zeros beyond its edges. By `threads`
// threads, of which this is number `thread`.
template <class T>
PK_DEVICE void write_fragments(const BackwardLayer& l, const T* w_hh, int chunks, int first_tile, int tiles, T* to,
                               int64_t thread, int64_t threads) {
  const int columns = tiles * 8, per_gate = l.pitch / 32;
  const int64_t count = static_cast<int64_t>(chunks) * 32 * columns;
  for (int64_t i = thread; i < count; i += threads) {
    const int column = static_cast<int>(i % columns), k = static_cast<int>(i / columns % 32);
    const int chunk = static_cast<int>(i / columns / 32), gate = chunk / per_gate;
    const int unit = chunk % per_gate * 32 + k, out = first_tile * 8 + column;
    T value = from_float<T>(0.0f);
    if (unit < l.hidden && out < l.hidden)
      value = w_hh[(static_cast<int64_t>(gate) * l.hidden + unit) * l.hidden + out];
    to[fragment_offset<T>(static_cast<int64_t>(chunk) * tiles + column / 8, k, column % 8)] = value;
  }
}

// acc[m][n] += A B of one chunk; a[m][half]: rows g + 8 half of 16-row tile m.
template <class T, int kRows>
struct Product {
  using A = uint4[kRows][2][kVectors<T>];

  // One column tile.
  PK_DEVICE static void add(float (&acc)[kRows][4], const A& a, const uint4 (&b)[kVectors<T>]) {
    PK_UNROLL
    for (int v = 0; v < kVectors<T>; ++v) {
      const uint32_t low[2] = {b[v].x, b[v].y}, high[2] = {b[v].z, b[v].w};
      PK_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const uint4 top = a[m][0][v], bottom = a[m][1][v];
        const uint32_t first[4] = {top.x, bottom.x, top.y, bottom.y}, second[4] = {top.z, bottom.z, top.w, bottom.w};
        gemm::multiply_fragments<T>(acc[m], first, low);
        gemm::multiply_fragments<T>(acc[m], second, high);
      }
    }
  }
};

// Lane t of a quad gives w[j] and receives w[t] of lane j as w[j].
PK_DEVICE void transpose_quad(uint32_t (&w)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  PK_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
    w[i] = odd ? other : w[i];
    w[i + 1] = odd ? w[i + 1] : other;
  }
  PK_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
    w[i] = high ? other : w[i];
    w[i + 2] = high ? w[i + 2] : other;
  }
}

// What may be published: any value but the one that means "not yet".
PK_DEVICE float publishable(float x) { return x != x ? __uint_as_float(0x7fc00000u) : x; }

// Publishes d(gates) of a row's tile of 8 units, of which each lane of the quad holds units 2t, 2t + 1 (d[e][gate]):
// lane t stores gate t's. `to`: where the tile begins in gate 0. All lanes of the warp take part.
template <class T>
PK_DEVICE void publish(const float (&d)[2][4], T* to, int pitch, bool there) {
  const int gate = threadIdx.x % 4;
  to += static_cast<int64_t>(gate) * pitch;
  if constexpr (sizeof(T) == 2) {
    uint32_t w[4];
    PK_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = pack2<T>(publishable(d[0][i]), publishable(d[1][i]));
    transpose_quad(w);
    if (there) ptx::store_relaxed_16(to, make_uint4(w[0], w[1], w[2], w[3]));
  } else {
    uint32_t even[4], odd[4];
    PK_UNROLL
    for (int i = 0; i < 4; ++i) {
      even[i] = __float_as_uint(publishable(d[0][i]));
      odd[i] = __float_as_uint(publishable(d[1][i]));
    }
    transpose_quad(even);
    transpose_quad(odd);
    if (there) {
      ptx::store_relaxed_16(to, make_uint4(even[0], odd[0], even[1], odd[1]));
      ptx::store_relaxed_16(to + 4, make_uint4(even[2], odd[2], even[3], odd[3]));
    }
  }
}

PK_DEVICE bool arrived(uint4 v) { return v.x != kNotYet && v.y != kNotYet && v.z != kNotYet && v.w != kNotYet; }

template <class T, int kRows, int kUnits>
__global__ void __launch_bounds__(kThreads, 1) backward_steps(Persistent p) {
  constexpr int kPairs = kRows * kUnits * 64;                        // of neighbouring units
  constexpr int kItems = kPairs < kThreads ? 1 : kPairs / kThreads;  // of a thread
  constexpr int kAtOnce = 8 / (kRows * kVectors<T>);                 // chunks in flight
  const BackwardLayer& l = p.layer;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int g = lane / 4, t = lane % 4;
  const int d = static_cast<int>(blockIdx.z), first_tile = static_cast<int>(blockIdx.x) * kUnits;
  const int first_sequence = p.first_sequence + static_cast<int>(blockIdx.y) * kRows * 16;
  const int sequences = min(kRows * 16, l.batch - first_sequence);
  if (sequences <= 0) return;
  const int tiles = l.pitch / 8, per_gate = l.pitch / 32;  // `tiles` chunks of K too
  const BackwardDirection& own = l.direction[d];
  T* const d_gates = static_cast<T*>(l.d_gates) + static_cast<int64_t>(d) * 4 * l.pitch;
  const int64_t row_stride = static_cast<int64_t>(l.directions) * 4 * l.pitch;
  const FirstRow first{l.starts, l.batch};

  uint4* const pinned = dynamic_shared<uint4>();
  float2* const partial = reinterpret_cast<float2*>(pinned + p.pinned * kUnits * kVectors<T> * kWarp);
  write_fragments(l, static_cast<const T*>(own.w_hh), p.pinned, first_tile, kUnits, reinterpret_cast<T*>(pinned),
                  thread, kThreads);

  // An item is two units, 2 (i % 4) and the next of a tile, of one sequence, i / 4 % 16 of a tile.
  const auto sequence_of = [&](int i) { return i / 64 / kUnits * 16 + i / 4 % 16; };
  const auto tile_of = [&](int i) { return first_tile + i / 64 % kUnits; };
  float dc[kItems][2] = {};
  PK_UNROLL
  for (int item = 0; item < kItems; ++item) {
    const int i = thread + item * kThreads, b = sequence_of(i), u = tile_of(i) * 8 + i % 4 * 2;
    if (i < kPairs && b < sequences) {
      PK_UNROLL
      for (int e = 0; e < 2; ++e) dc[item][e] = load_state<T>(own.grad_c_n, l.hidden, first_sequence + b, u + e);
    }
  }
  __syncthreads();

  for (int s = 0; s <= l.steps; ++s) {
    const StepRows rows = step_rows(first, l.steps, d == 1, s);
    const int active = min(rows.active - first_sequence, sequences),
              known = min(rows.known - first_sequence, sequences);

    // What others don't have to say: on its way from memory while they are waited for.
    SavedCell saved[kItems][2] = {};
    PK_UNROLL
    for (int item = 0; item < kItems; ++item) {
      const int i = thread + item * kThreads, b = sequence_of(i), u = tile_of(i) * 8 + i % 4 * 2;
      if (i < kPairs && b < active) {
        PK_UNROLL
        for (int e = 0; e < 2; ++e) {
          if (u + e < l.hidden) saved[item][e] = load_cell<T>(l, d, rows, first_sequence + b, u + e);
        }
      }
    }

    if (known > 0) {
      float acc[kUnits][kRows][4] = {};
      const T* from = d_gates + (rows.before_first + first_sequence) * row_stride + t * 8;
      const int end = tiles * (warp + 1) / kWarps;
      for (int chunk = tiles * warp / kWarps; chunk < end; chunk += kAtOnce) {
        typename Product<T, kRows>::A a[kAtOnce];
        while (true) {
          bool all = true;
          PK_UNROLL
          for (int j = 0; j < kAtOnce; ++j) {
            // Beyond the edges the last chunk and row there are: what comes of them is not used.
            const int k = min(chunk + j, end - 1), at = k / per_gate * l.pitch + k % per_gate * 32;
            PK_UNROLL
            for (int m = 0; m < kRows * 2; ++m) {
              const T* const row = from + min(m * 8 + g, known - 1) * row_stride + at;
              PK_UNROLL
              for (int v = 0; v < kVectors<T>; ++v) {
                a[j][m / 2][m % 2][v] = ptx::load_relaxed_16(row + v * (16 / sizeof(T)));
                all = all && arrived(a[j][m / 2][m % 2][v]);
              }
            }
          }
          if (all) break;
          ptx::backoff();
        }
        __syncwarp();  // each lane polls for its own
        PK_UNROLL
        for (int j = 0; j < kAtOnce; ++j) {
          if (chunk + j >= end) break;
          PK_UNROLL
          for (int n = 0; n < kUnits; ++n) {
            uint4 b[kVectors<T>];
            const int64_t block = static_cast<int64_t>(chunk + j) * (chunk + j < p.pinned ? kUnits : tiles) + n;
            const uint4* const w = chunk + j < p.pinned ? pinned : p.streamed[d] + first_tile * kVectors<T> * kWarp;
            if (first_tile + n >= tiles) break;
            PK_UNROLL
            for (int v = 0; v < kVectors<T>; ++v) b[v] = w[(block * kVectors<T> + v) * kWarp + lane];
            Product<T, kRows>::add(acc[n], a[j], b);
          }
        }
      }
      float2* const mine = partial + warp * kPairs;
      PK_UNROLL
      for (int m = 0; m < kRows; ++m) {
        PK_UNROLL
        for (int n = 0; n < kUnits; ++n) {
          mine[(m * kUnits + n) * 64 + lane] = make_float2(acc[n][m][0], acc[n][m][1]);
          mine[(m * kUnits + n) * 64 + 32 + lane] = make_float2(acc[n][m][2], acc[n][m][3]);
        }
      }
      __syncthreads();
    }

    PK_UNROLL
    for (int item = 0; item < kItems; ++item) {
      const int i = thread + item * kThreads;
      if (i >= kPairs) break;  // whole warps
      const int b = sequence_of(i), tile = tile_of(i), u = tile * 8 + i % 4 * 2;
      float dh[2] = {}, d_cell[2][4] = {};
      if (b < known) {
        PK_UNROLL
        for (int w = 0; w < kWarps; ++w) {
          const float2 part = partial[w * kPairs + i];
          dh[0] += part.x, dh[1] += part.y;
        }
      }
      const bool here = b < active && tile < tiles;
      PK_UNROLL
      for (int e = 0; e < 2; ++e) {
        if (b < active && b >= known) dh[e] = load_state<T>(own.grad_h_n, l.hidden, first_sequence + b, u + e);
        if (b < active && u + e < l.hidden) differentiate(saved[item][e], dh[e], dc[item][e], d_cell[e]);
        if (b >= active && b < known) store_state<T>(own.grad_h0, l.hidden, first_sequence + b, u + e, dh[e]);
      }
      T* const to = d_gates + static_cast<int64_t>(first_sequence + b) * row_stride + tile * 8;
      publish(d_cell, to + rows.first * row_stride, l.pitch, here);
      // The lines of the next step's part, still "not yet", are fetched to L2, so that no poll has to wait for memory.
      if (tile < tiles && first_sequence + b < rows.next_active) {
        (void)ptx::load_relaxed_16(to + rows.next_first * row_stride + t * static_cast<int64_t>(l.pitch));
      }
    }
    __syncthreads();
  }

  PK_UNROLL
  for (int item = 0; item < kItems; ++item) {
    const int i = thread + item * kThreads, b = sequence_of(i), u = tile_of(i) * 8 + i % 4 * 2;
    if (i < kPairs && b < sequences) {
      PK_UNROLL
      for (int e = 0; e < 2; ++e) store_state<T>(own.grad_c0, l.hidden, first_sequence + b, u + e, dc[item][e]);
    }
  }
}

}  // namespace pk::cuda::lstm::backward
