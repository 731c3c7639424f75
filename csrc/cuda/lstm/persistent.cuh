// The recurrence of many time steps in one kernel, W_hh pinned:
//
//   sums_t (b, 4h) + h_{t-1} W_hh'  ->  h_t, c_t       for t = first_time, first_time +- 1, ...
//
// A worker (a layer and direction) is `blocks` blocks, one to a multiprocessor; several workers run side by side. A
// block makes kUnits units: its 4 * kUnits rows of W_hh are the left operand of the matrix unit (16 rows: four units'
// gates), eight sequences the right one. Its eight warps share K, in chunks of 64 bytes, so a warp needs only its own
// chunks of h and of W_hh, and reads h straight from where the exchange has it into the registers of its product: the
// order of k within a chunk is free as long as both operands agree, so a lane takes 16 neighbouring bytes of a row. The
// warps' sums meet in shared memory (one barrier), and a thread for each unit and sequence makes the cell step.
//
// c stays in shared memory, where only its own thread touches it.
//
// How h goes from block to block is the caller's: persistent.cu's through the L2 cache, over the whole grid;
// persistent_sm90.cu's through the shared memory of a cluster. An Exchange, made with `shared`, what lies behind c, has
//   begin(), end()   before the first step and after the last one
//   step(t)          what follows is of the launch's step t
//   wait()           called by each warp that reads h, before its first read of each group
//   read(h, row, word, there)    16 bytes of h a lane, in rows kTileRows and chunks kWarps apart, where there(j, n)
//   send(b, unit, word, wanted)  a word of h for the next step, called by whole warps
#pragma once

#include "cuda/gemm/mainloop.cuh"
#include "cuda/lstm/cell.cuh"

namespace pk::cuda::lstm {

constexpr int kChunkWords = kChunkBytes / 4;

// 16 bytes of a row of W_hh from element k on; zeros beyond `hidden`, in k and in units.
template <class T>
PK_DEVICE uint4 load_weights(const Worker& w, int hidden, int unit, int gate, int k) {
  constexpr int kElements = 16 / sizeof(T);
  uint4 v = make_uint4(0, 0, 0, 0);
  if (unit >= hidden) return v;
  const T* row = static_cast<const T*>(w.w_hh.data) + (unit * w.w_hh.unit + gate * w.w_hh.gate) * w.w_hh.pitch;
  if (w.w_aligned && k + kElements <= hidden) return *reinterpret_cast<const uint4*>(row + k);
  uint32_t words[4] = {0, 0, 0, 0};
  PK_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (k + e >= hidden) continue;
    if constexpr (sizeof(T) == 4) {
      words[e] = __float_as_uint(row[k + e]);
    } else {
      words[e / 2] |= static_cast<uint32_t>(row[k + e].bits) << (e % 2 * 16);
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// The sequences that a step has, and the first of its rows.
struct Step {
  int sequences;
  int64_t first_row;
};
PK_DEVICE Step step_at(const Persistent& call, int64_t time) {
  if (!call.starts) return {call.batch, time * call.batch};
  const int64_t first = call.starts[time];
  return {static_cast<int>(call.starts[time + 1] - first), first};
}

template <class T>
PK_DEVICE uint32_t word_of(float h, bool odd_lane) {
  h = h == h ? h : __uint_as_float(0x7fc00000u);  // never kUnwritten, nor half of it
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(h);
  } else {
    const uint32_t mine = from_float<T>(h).bits, other = __shfl_xor_sync(0xffffffffu, mine, 1);
    return odd_lane ? other | mine << 16 : mine | other << 16;
  }
}

// choose.h's numbers, where device code may read them.
template <int kMTiles, int kElement>
struct Tiling {
  static constexpr int kUnits = units_of(kMTiles), kHeld = held_chunks(kMTiles, kElement),
                       kPitch = partial_pitch(kMTiles);
};

template <class T, int kMTiles, class Exchange>
PK_DEVICE void persistent_steps(const Persistent& call) {
  using Tiles = Tiling<kMTiles, sizeof(T)>;
  constexpr int kUnits = Tiles::kUnits, kHeld = Tiles::kHeld, kPitch = Tiles::kPitch;
  constexpr int kPairs = kTiles * kTileRows * kUnits / kThreads;  // units and sequences of a thread, in a group
  constexpr int kWordElements = 4 / sizeof(T), kChunkElements = kChunkBytes / sizeof(T);
  const Worker& w = call.of[static_cast<int>(blockIdx.x) / call.blocks];
  const int first_unit = static_cast<int>(blockIdx.x) % call.blocks * kUnits;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t4 = lane % 4;
  const int group_rows = call.tiles * kTileRows, groups = ceil_div(call.batch, group_rows);
  const int chunks = call.chunks, warps = min(chunks, kWarps);
  const int my_chunks = (chunks - warp + kWarps - 1) / kWarps;  // chunk warp + 8 j
  const int row_words = chunks * kChunkWords;

  // Shared memory: what is pinned of W_hh beyond the registers, lane by lane; partial sums, twice; c.
  uint4* const pinned = dynamic_shared<uint4>();
  const int spilled = max(ceil_div(chunks, kWarps) - kHeld, 0);
  float* const partial = reinterpret_cast<float*>(pinned + spilled * kWarps * kMTiles * 2 * kWarp);
  const int partial_floats = warps * group_rows * kPitch;
  float* const c_shared = partial + 2 * partial_floats;
  Exchange exchange(call, w, c_shared + groups * group_rows * kUnits);

  uint4 held[kHeld][kMTiles][2];
  const auto weights = [&](int j, int i, int half) {
    const int row = 16 * i + 8 * half + g;
    return load_weights<T>(w, call.hidden, first_unit + row / 4, row % 4,
                           (warp + kWarps * j) * kChunkElements + t4 * (16 / static_cast<int>(sizeof(T))));
  };
  const auto pinned_at = [&](int j, int i, int half) -> uint4& {
    return pinned[((((j - kHeld) * kWarps + warp) * kMTiles + i) * 2 + half) * kWarp + lane];
  };
  PK_UNROLL
  for (int j = 0; j < kHeld; ++j) {
    PK_UNROLL
    for (int i = 0; i < kMTiles; ++i) {
      PK_UNROLL
      for (int half = 0; half < 2; ++half) {
        held[j][i][half] = j < my_chunks ? weights(j, i, half) : make_uint4(0, 0, 0, 0);
      }
    }
  }
  for (int j = kHeld; j < my_chunks; ++j) {
    PK_UNROLL
    for (int i = 0; i < kMTiles; ++i) {
      PK_UNROLL
      for (int half = 0; half < 2; ++half) pinned_at(j, i, half) = weights(j, i, half);
    }
  }
  // Of the thread's pair i in a group: unit (of the block) pair % kUnits, sequence pair / kUnits.
  for (int group = 0; group < groups; ++group) {
    for (int pair = thread; pair < group_rows * kUnits; pair += kThreads) {
      const int b = group * group_rows + pair / kUnits, unit = first_unit + pair % kUnits;
      const bool there = b < call.batch && unit < call.hidden;
      c_shared[group * group_rows * kUnits + pair] =
          there ? w.cell.c[static_cast<int64_t>(b) * call.hidden + unit] : 0.0f;
    }
  }

  exchange.begin();

  int64_t time = w.first_time;
  const int64_t forward = w.reverse ? -1 : 1;
  Step now = step_at(call, time);
  int turn = 0;
  for (int t = 0; t < w.steps; ++t, time += forward) {
    const Step next = t + 1 < w.steps ? step_at(call, time + forward) : Step{0, 0};
    const int busy = max(now.sequences, next.sequences);
    exchange.step(t);
    for (int first = 0; first < busy; first += group_rows, turn ^= 1) {
      // The input's share: asked for now, needed after the product.
      float4 sums[kPairs] = {};
      PK_UNROLL
      for (int i = 0; i < kPairs; ++i) {
        const int pair = thread + i * kThreads, b = first + pair / kUnits, unit = first_unit + pair % kUnits;
        if (pair < group_rows * kUnits && b < now.sequences && unit < call.hidden) {
          const int64_t row = now.first_row - w.sums_row + b;
          sums[i] = reinterpret_cast<const float4*>(w.sums)[row * call.hidden + unit];
        }
      }

      float acc[kMTiles][kTiles][4] = {};
      const int tiles = max(min(ceil_div(now.sequences - first, kTileRows), call.tiles), 0);
      // The product of the warp's chunks j0 ... j0 + kHeld - 1; a(j, i, half): its weights.
      const auto product = [&](int j0, const auto& a) {
        uint4 h[kHeld][kTiles];
        exchange.read(h, first + g, (warp + kWarps * j0) * kChunkWords + t4 * 4, [&](int j, int n) {
          return j0 + j < my_chunks && n < tiles && first + n * kTileRows + g < now.sequences;
        });
        __syncwarp();
        PK_UNROLL
        for (int j = 0; j < kHeld; ++j) {
          if (j0 + j >= my_chunks) break;
          PK_UNROLL
          for (int i = 0; i < kMTiles; ++i) {
            const uint4 low = a(j, i, 0), high = a(j, i, 1);
            const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
            // Neighbouring products belong to different sums, so that none waits for the one before.
            PK_UNROLL
            for (int n = 0; n < kTiles; ++n) {
              if (n >= tiles) break;
              const uint32_t b0[2] = {h[j][n].x, h[j][n].y};
              gemm::multiply_fragments<T>(acc[i][n], a0, b0);
            }
            PK_UNROLL
            for (int n = 0; n < kTiles; ++n) {
              if (n >= tiles) break;
              const uint32_t b1[2] = {h[j][n].z, h[j][n].w};
              gemm::multiply_fragments<T>(acc[i][n], a1, b1);
            }
          }
        }
      };
      if (my_chunks > 0) {
        exchange.wait();
        product(0, [&](int j, int i, int half) { return held[j][i][half]; });
      }
      for (int j0 = kHeld; j0 < my_chunks; j0 += kHeld) {
        product(j0, [&](int j, int i, int half) { return pinned_at(j0 + j, i, half); });
      }

      float* const mine = partial + turn * partial_floats;
      if (warp < warps) {
        float* const to = mine + (warp * group_rows + 2 * t4) * kPitch + g;
        PK_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          if (n >= tiles) break;
          PK_UNROLL
          for (int i = 0; i < kMTiles; ++i) {
            PK_UNROLL
            for (int e = 0; e < 4; ++e) {
              to[(n * kTileRows + e % 2) * kPitch + i * 16 + e / 2 * 8] = acc[i][n][e];
            }
          }
        }
      }
      // One barrier a group: whoever writes this buffer again has met the next barrier, and so have its readers.
      __syncthreads();

      PK_UNROLL
      for (int i = 0; i < kPairs; ++i) {
        const int pair = thread + i * kThreads;
        if (pair >= group_rows * kUnits) break;  // whole warps
        const int local = pair / kUnits, b = first + local, unit = first_unit + pair % kUnits;
        const bool alive = b < now.sequences && unit < call.hidden;
        // A sequence that the next step is the first of enters with the h that the launch began with.
        const bool enters = !alive && b < next.sequences && unit < call.hidden;
        CellResult r = {make_float4(0.0f, 0.0f, 0.0f, 0.0f), 0.0f, 0.0f};
        float* const c = c_shared + first * kUnits + pair;
        if (alive) {
          float4 s = sums[i];
          for (int from = 0; from < warps; ++from) {
            const float4 part =
                *reinterpret_cast<const float4*>(mine + (from * group_rows + local) * kPitch + pair % kUnits * 4);
            s = make_float4(s.x + part.x, s.y + part.y, s.z + part.z, s.w + part.w);
          }
          r = cell_step<T>(s, *c);
          *c = r.c;
        } else if (enters) {
          const int64_t word = static_cast<int64_t>(b) * row_words + unit / kWordElements;
          r.h = to_float(reinterpret_cast<const T*>(w.slots + word)[unit % kWordElements]);
        }
        exchange.send(b, unit, word_of<T>(r.h, lane % 2 == 1), b < next.sequences);
        if (alive) {
          const bool last = b >= next.sequences;
          write_cell<T>(w.cell, call.hidden, time, now.first_row + b, b, unit, r, last);
          if (last) w.cell.c[static_cast<int64_t>(b) * call.hidden + unit] = r.c;
        }
      }
    }
    now = next;
  }
  exchange.end();
}

}  // namespace pk::cuda::lstm
