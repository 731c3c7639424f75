// The tensor-core main loop of a block, for every GPU since Ampere: acc[kM x kN] += sum_k A[m, k] B[n, k].
//
// A and B are whatever two loaders say: a loader turns (row of the tile, index k) into a global address, or into "zero
// here". So a plain matrix, an implicit im2col and a gathered one are loaders, and tails need nothing else. The loop
// copies k tiles of kRowBytes bytes a row through kStages buffers of shared memory (cp.async), XOR-swizzled so that
// neither the copies nor ldmatrix have bank conflicts, and double-buffers the fragments, so that the matrix unit is
// fed while the next fragments and the next tiles arrive.
//
// A step of the matrix unit takes 32 bytes of K from each row, whatever the element: 16 f16, 32 int8 or 8 f32. Seen as
// bytes the fragments are alike, so the same ldmatrix (8 rows of 16 bytes) serves all of them.
//
// How a kernel uses it:
//
//   using T = gemm::Tile<f16, 128, 128, 2, 4, 4>;                  // __launch_bounds__(T::kThreads)
//   char* shared = dynamic_shared<char>();                         // T::kSharedBytes of them
//   gemm::RowsLoader<f16, 16> a{...}, b{...};                      // or your own
//   T::Accumulator acc;
//   gemm::clear<T>(acc);
//   gemm::mainloop<T>(a, b, 0, ceil_div(k, T::kK), acc, shared);   // uniform over the block
//   gemm::for_each_pair<T>(acc, [&](int row, int column, float v0, float v1) { ... });
//
// Elements: f16, bf16 (float sums), int8_t (exact int32 sums), tf32 (float operands, of which the matrix unit sees 10
// bits of fraction) and tf32x3 (float operands split in two: fp32-class results; an infinite operand gives NaN).
#pragma once

#include <type_traits>

#include "cuda/gemm/loaders.cuh"
#include "cuda/numeric.cuh"
#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"

namespace pk::cuda::gemm {

// Names of arithmetic on float operands.
struct tf32 {};
struct tf32x3 {};

template <class Element>
struct ElementTraits {
  using Storage = Element;
  using Sum = float;
};
template <>
struct ElementTraits<int8_t> {
  using Storage = int8_t;
  using Sum = int32_t;
};
template <>
struct ElementTraits<tf32> {
  using Storage = float;
  using Sum = float;
};
template <>
struct ElementTraits<tf32x3> {
  using Storage = float;
  using Sum = float;
};

// kM x kN outputs of a block, shared by kWarpsM x kWarpsN warps. A warp's part is a multiple of 16 rows and of 8
// columns (16 where it has more than 8). kRowBytes: bytes of K in a k tile, 64 or 128.
template <class Element_, int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kStages_ = 4, int kRowBytes_ = 64>
struct Tile {
  using Element = Element_;
  using Storage = typename ElementTraits<Element>::Storage;
  using Sum = typename ElementTraits<Element>::Sum;
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = kStages_, kRowBytes = kRowBytes_;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kK = kRowBytes / static_cast<int>(sizeof(Storage));  // elements of K in a k tile
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;        // a warp's part
  static constexpr int kBlocksM = kWarpM / 16, kBlocksN = kWarpN / 8;       // in products of the matrix unit
  static constexpr int kStageBytes = (kM + kN) * kRowBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;  // of mainloop
  static_assert(kRowBytes == 64 || kRowBytes == 128);
  static_assert(kM % (16 * kWarpsM) == 0 && kN % (8 * kWarpsN) == 0 && (kBlocksN == 1 || kBlocksN % 2 == 0));
  static_assert(kStages >= 2);

  // Of a lane, of 16 x 8 block (i, j) of its warp's part: v[i][j][0..1] = (row g, columns 2t, 2t + 1), v[i][j][2..3] =
  // (row g + 8, the same columns); g = lane / 4, t = lane % 4.
  struct Accumulator {
    Sum v[kBlocksM][kBlocksN][4];
  };
};

// ---- The loop ----

template <class Tile>
PK_DEVICE void clear(typename Tile::Accumulator& acc) {
  PK_UNROLL
  for (int i = 0; i < Tile::kBlocksM; ++i) {
    PK_UNROLL
    for (int j = 0; j < Tile::kBlocksN; ++j) {
      PK_UNROLL
      for (int e = 0; e < 4; ++e) acc.v[i][j][e] = 0;
    }
  }
}

// Where chunk `chunk` (16 bytes) of line `line` lies in an operand's buffer of kChunks chunks a line. Eight
// neighbouring lines at one chunk, and eight neighbouring chunks of a line, fall into eight different 16-byte columns
// of the banks. kWords: lines are read word by word (float, transposed), four neighbouring lines of eight words each.
template <int kChunks, bool kWords = false>
PK_DEVICE int swizzled(int line, int chunk) {
  static_assert(kChunks % 8 == 0 || (!kWords && (kChunks == 2 || kChunks == 4)));
  constexpr int kMask = kChunks < 8 ? kChunks - 1 : 7;
  const int twist = kWords ? line << 1 : kChunks == 2 ? line >> 2 : kChunks == 4 ? line >> 1 : line;
  return (line * kChunks + (chunk ^ (twist & kMask))) * 16;
}

// Copies one operand's k tiles to shared memory: kRows rows, by all of the block's threads.
template <class Tile, class Loader, int kRows>
class Copier {
 public:
  using Storage = typename Tile::Storage;
  static constexpr bool kTransposed = Loader::kTransposed;
  static constexpr int kElement = sizeof(Storage);
  static constexpr int kUnit = Loader::kCopyBytes;
  static constexpr int kUnits = 16 / kUnit, kUnitElements = kUnit / kElement;
  // A line is what is contiguous in shared memory: K of a row, or, transposed, the rows at one k.
  static constexpr int kLines = kTransposed ? Tile::kK : kRows;
  static constexpr int kChunks = (kTransposed ? kRows * kElement : Tile::kRowBytes) / 16;
  static constexpr bool kWords = kTransposed && kElement == 4;
  static constexpr int kThreadsUsed = Tile::kThreads < kLines * kChunks ? Tile::kThreads : kLines * kChunks;
  static constexpr int kLinesAtOnce = kThreadsUsed / kChunks;
  static constexpr int kSlots = kLines / kLinesAtOnce;
  static_assert(kUnit % kElement == 0 && kUnit <= 16);
  static_assert(!kTransposed || kElement > 1, "int8: load by elements, not transposed");
  static_assert(kThreadsUsed % kChunks == 0 && kLines % kLinesAtOnce == 0);

  PK_DEVICE Copier(const Loader& loader, int first_k) : loader_(loader) {
    const int thread = static_cast<int>(threadIdx.x);
    idle_ = kThreadsUsed < Tile::kThreads && thread >= kThreadsUsed;
    if (idle_) return;
    chunk_ = thread % kChunks;
    line_ = thread / kChunks;
    PK_UNROLL
    for (int i = 0; i < kRowsHeld; ++i) {
      rows_[i] = loader.row(kTransposed ? chunk_ * kChunkElements + i * kUnitElements : line_ + i * kLinesAtOnce);
    }
    PK_UNROLL
    for (int i = 0; i < kPositionsHeld; ++i) {
      positions_[i] = loader.start(
          first_k + (kTransposed ? line_ + i * kLinesAtOnce : chunk_ * kChunkElements + i * kUnitElements));
    }
  }

  // Copies the next k tile to `to`.
  PK_DEVICE void copy(char* to) {
    if (idle_) return;
    PK_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      char* chunk = to + swizzled<kChunks, kWords>(line_ + slot * kLinesAtOnce, chunk_);
      if constexpr (kUnit >= 4) {
        PK_UNROLL
        for (int unit = 0; unit < kUnits; ++unit) {
          const Source from = kTransposed ? loader_.source(rows_[unit], positions_[slot])
                                          : loader_.source(rows_[slot], positions_[unit]);
          if constexpr (kUnit == 16) ptx::cp_async_16(chunk, from.address, from.valid);
          if constexpr (kUnit == 8) ptx::cp_async_8(chunk + 8 * unit, from.address, from.valid);
          if constexpr (kUnit == 4) ptx::cp_async_4(chunk + 4 * unit, from.address, from.valid);
        }
      } else {
        copy_elements(chunk, slot);
      }
    }
    PK_UNROLL
    for (int i = 0; i < kPositionsHeld; ++i) loader_.advance(positions_[i], Tile::kK);
  }

 private:
  static constexpr int kChunkElements = 16 / kElement;
  // Element by element, a chunk has too many positions to hold: one is walked along K instead.
  static constexpr bool kByElements = kUnit < 4;
  static constexpr int kRowsHeld = kTransposed ? kUnits : kSlots;
  static constexpr int kPositionsHeld = kTransposed ? kSlots : kByElements ? 1 : kUnits;

  PK_DEVICE void copy_elements(char* chunk, int slot) {
    uint32_t words[4] = {};
    typename Loader::Position walk = positions_[kTransposed ? slot : 0];
    PK_UNROLL
    for (int e = 0; e < kUnits; ++e) {
      const Source from = loader_.source(rows_[kTransposed ? e : slot], walk);
      uint32_t bits = 0;
      if (from.valid) {
        if constexpr (kElement == 1) bits = *static_cast<const uint8_t*>(from.address);
        if constexpr (kElement == 2) bits = *static_cast<const uint16_t*>(from.address);
      }
      words[e * kElement / 4] |= bits << (e * kElement % 4 * 8);
      if constexpr (!kTransposed) loader_.advance(walk, 1);
    }
    *reinterpret_cast<uint4*>(chunk) = make_uint4(words[0], words[1], words[2], words[3]);
  }

  const Loader& loader_;
  bool idle_;
  int chunk_ = 0, line_ = 0;
  typename Loader::Row rows_[kRowsHeld];
  typename Loader::Position positions_[kPositionsHeld];
};

// The fragments of one step of K (32 bytes) of a warp's part: kBlocks blocks of 16 rows (A) or of 8 (B).
template <class Tile, class Loader, int kRows, bool kIsA>
struct Fragments {
  static constexpr int kBlocks = kIsA ? Tile::kBlocksM : Tile::kBlocksN;
  static constexpr int kRegisters = kIsA ? 4 : 2;
  static constexpr int kElement = sizeof(typename Tile::Storage);
  static constexpr int kStepK = 32 / kElement;
  using Copy = Copier<Tile, Loader, kRows>;
  uint32_t v[kBlocks][kRegisters];

  // From an operand's buffer; `first` is the warp's first row.
  PK_DEVICE void load(const char* from, int first, int step) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if constexpr (Copy::kWords) {
      load_words(from, first, step, lane);
    } else {
      PK_UNROLL
      for (int block = 0; block < kBlocks; block += kAtOnce) {
        const char* row = from + matrix_row(first + block * (kIsA ? 16 : 8), step, lane);
        if constexpr (kAtOnce * kRegisters == 4) {
          uint32_t r[4];
          if constexpr (Loader::kTransposed) {
            ptx::ldmatrix_x4_trans(r, row);
          } else {
            ptx::ldmatrix_x4(r, row);
          }
          PK_UNROLL
          for (int i = 0; i < 4; ++i) v[block + i / kRegisters][i % kRegisters] = r[i];
        } else {
          if constexpr (Loader::kTransposed) {
            ptx::ldmatrix_x2_trans(v[block], row);
          } else {
            ptx::ldmatrix_x2(v[block], row);
          }
        }
      }
    }
  }

 private:
  static constexpr int kAtOnce = kIsA || kBlocks == 1 ? 1 : 2;  // blocks of one ldmatrix

  // The address that `lane` gives ldmatrix. Matrices of A: rows 0-7, rows 8-15, both at the second 16 bytes of the
  // step. Of B: the two halves of the step for rows 0-7, then for rows 8-15.
  PK_DEVICE static int matrix_row(int first, int step, int lane) {
    const int low = lane / 8 % 2, high = lane / 16;
    const int row_half = kIsA ? low : kAtOnce == 2 ? high : 0, k_half = kIsA ? high : low;
    if constexpr (Loader::kTransposed) {
      return swizzled<Copy::kChunks>(step * kStepK + k_half * 8 + lane % 8, first / 8 + row_half);
    } else {
      return swizzled<Copy::kChunks>(first + row_half * 8 + lane % 8, step * 2 + k_half);
    }
  }

  // float, K-strided in shared memory: no instruction transposes 32-bit matrices. The swizzle (see swizzled) moves
  // whole groups of eight rows within 32, by t; said so that the lane's few addresses are constants of the loop.
  PK_DEVICE void load_words(const char* from, int first, int step, int lane) {
    constexpr int kPitch = Copy::kChunks * 16;
    constexpr bool kWholeGroups = kBlocks * (kIsA ? 16 : 8) % 32 == 0;  // then first is a multiple of 32
    const int g = lane / 4, t = lane % 4;
    from += t * kPitch + g * 4 + (kWholeGroups ? first * 4 : 0);
    PK_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      PK_UNROLL
      for (int i = 0; i < kRegisters; ++i) {
        const int group = (kIsA ? block * 2 + i % 2 : block) + (kWholeGroups ? 0 : first / 8);
        const int k = step * kStepK + (kIsA ? i / 2 : i) * 4;  // and t
        v[block][i] = *reinterpret_cast<const uint32_t*>(from + k * kPitch + group / 4 * 128 + ((group % 4) ^ t) * 32);
      }
    }
  }
};

// x = big + small + less than 2^-21 |x|: big is x cut to what the matrix unit sees, small the rest, rounded.
PK_DEVICE void split_tf32(uint32_t x, uint32_t& big, uint32_t& small) {
  big = x & 0xffffe000u;
  small = __float_as_uint(__uint_as_float(x) - __uint_as_float(big)) + 0x1000u;
}

// x rounded to what the matrix unit would cut it to, ties away from zero. NaN stays NaN: the bits of the one that
// GPUs compute, 0x7fffffff, would become those of -0.
PK_DEVICE uint32_t round_tf32(uint32_t x) { return (x & 0x7fffffffu) > 0x7f800000u ? x | 0x400000u : x + 0x1000u; }

// acc += a b of float operands that are split. The matrix unit cuts its sums instead of rounding them, which over a
// long K would show: so it only ever sums eight products, and the long sum is a rounded addition.
PK_DEVICE void multiply_split(float (&acc)[4], const uint32_t (&a_big)[4], const uint32_t (&a_small)[4],
                              const uint32_t (&b_big)[2], const uint32_t (&b_small)[2]) {
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  ptx::mma_m16n8k8_tf32(d, a_small, b_big);
  ptx::mma_m16n8k8_tf32(d, a_big, b_small);
  ptx::mma_m16n8k8_tf32(d, a_big, b_big);
  PK_UNROLL
  for (int e = 0; e < 4; ++e) acc[e] += d[e];
}

// acc += a b, 32 bytes of K of fragments that a kernel has loaded itself; float operands have float's own precision.
template <class T>
PK_DEVICE void multiply_fragments(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, f16>) {
    ptx::mma_m16n8k16_f16(acc, a, b);
  } else if constexpr (std::is_same_v<T, bf16>) {
    ptx::mma_m16n8k16_bf16(acc, a, b);
  } else {
    uint32_t a_big[4], a_small[4], b_big[2], b_small[2];
    PK_UNROLL
    for (int e = 0; e < 4; ++e) split_tf32(a[e], a_big[e], a_small[e]);
    PK_UNROLL
    for (int e = 0; e < 2; ++e) split_tf32(b[e], b_big[e], b_small[e]);
    multiply_split(acc, a_big, a_small, b_big, b_small);
  }
}

// acc += a b, one step of K.
template <class Tile, class A, class B>
PK_DEVICE void multiply(typename Tile::Accumulator& acc, const A& a, const B& b) {
  using Element = typename Tile::Element;
  if constexpr (std::is_same_v<Element, tf32x3>) {
    uint32_t b_big[Tile::kBlocksN][2], b_small[Tile::kBlocksN][2];
    PK_UNROLL
    for (int j = 0; j < Tile::kBlocksN; ++j) {
      PK_UNROLL
      for (int e = 0; e < 2; ++e) split_tf32(b.v[j][e], b_big[j][e], b_small[j][e]);
    }
    PK_UNROLL
    for (int i = 0; i < Tile::kBlocksM; ++i) {
      uint32_t a_big[4], a_small[4];
      PK_UNROLL
      for (int e = 0; e < 4; ++e) split_tf32(a.v[i][e], a_big[e], a_small[e]);
      PK_UNROLL
      for (int j = 0; j < Tile::kBlocksN; ++j) {
        multiply_split(acc.v[i][j], a_big, a_small, b_big[j], b_small[j]);
      }
    }
  } else {
    PK_UNROLL
    for (int i = 0; i < Tile::kBlocksM; ++i) {
      PK_UNROLL
      for (int j = 0; j < Tile::kBlocksN; ++j) {
        if constexpr (std::is_same_v<Element, f16>) ptx::mma_m16n8k16_f16(acc.v[i][j], a.v[i], b.v[j]);
        if constexpr (std::is_same_v<Element, bf16>) ptx::mma_m16n8k16_bf16(acc.v[i][j], a.v[i], b.v[j]);
        if constexpr (std::is_same_v<Element, int8_t>) ptx::mma_m16n8k32_s8(acc.v[i][j], a.v[i], b.v[j]);
        if constexpr (std::is_same_v<Element, tf32>) {
          uint32_t a_tf32[4], b_tf32[2];
          PK_UNROLL
          for (int e = 0; e < 4; ++e) a_tf32[e] = round_tf32(a.v[i][e]);
          PK_UNROLL
          for (int e = 0; e < 2; ++e) b_tf32[e] = round_tf32(b.v[j][e]);
          ptx::mma_m16n8k8_tf32(acc.v[i][j], a_tf32, b_tf32);
        }
      }
    }
  }
}

// acc += A B^T over the k tiles [first_k_tile, first_k_tile + k_tiles). Called by all threads of the block (blockDim.x
// == Tile::kThreads) with the same arguments. `shared`: Tile::kSharedBytes bytes, 16-byte aligned, which all threads
// have done with before and may use again after (a barrier ends the call).
template <class Tile, class LoaderA, class LoaderB>
PK_DEVICE void mainloop(const LoaderA& loader_a, const LoaderB& loader_b, int first_k_tile, int k_tiles,
                        typename Tile::Accumulator& acc, char* shared) {
  constexpr int kSteps = Tile::kRowBytes / 32, kABytes = Tile::kM * Tile::kRowBytes;
  if (k_tiles <= 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_m = warp / Tile::kWarpsN * Tile::kWarpM, first_n = warp % Tile::kWarpsN * Tile::kWarpN;

  Copier<Tile, LoaderA, Tile::kM> copy_a(loader_a, first_k_tile * Tile::kK);
  Copier<Tile, LoaderB, Tile::kN> copy_b(loader_b, first_k_tile * Tile::kK);
  int write = 0, to_copy = k_tiles;
  const auto copy_next = [&] {  // a group even where there is no tile left, so that the waits count alike
    if (to_copy > 0) {
      char* stage = shared + write * Tile::kStageBytes;
      copy_a.copy(stage);
      copy_b.copy(stage + kABytes);
      write = write + 1 == Tile::kStages ? 0 : write + 1;
      --to_copy;
    }
    ptx::cp_async_commit();
  };
  PK_UNROLL
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) copy_next();

  Fragments<Tile, LoaderA, Tile::kM, true> a[2];
  Fragments<Tile, LoaderB, Tile::kN, false> b[2];
  int read = 0;
  ptx::cp_async_wait<Tile::kStages - 2>();
  __syncthreads();
  a[0].load(shared, first_m, 0);
  b[0].load(shared + kABytes, first_n, 0);
  for (int tile = 0; tile < k_tiles; ++tile) {
    PK_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step == kSteps - 1) {
        // The next tile has arrived for all, and all have read the last fragments of this one.
        ptx::cp_async_wait<Tile::kStages - 2>();
        __syncthreads();
        read = read + 1 == Tile::kStages ? 0 : read + 1;
      }
      // After the last tile this reads a stage of older bytes, for nothing: cheaper than a branch.
      const char* stage = shared + read * Tile::kStageBytes;
      a[(step + 1) % 2].load(stage, first_m, (step + 1) % kSteps);
      b[(step + 1) % 2].load(stage + kABytes, first_n, (step + 1) % kSteps);
      if (step == 0) copy_next();
      multiply<Tile>(acc, a[step % 2], b[step % 2]);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
}

// Tile `index` of tiles_m x tiles_n: they go by bands of eight rows of tiles, column by column, so that what neighbours
// in time read stays in L2.
PK_DEVICE void raster(int index, int tiles_m, int tiles_n, int& m, int& n) {
  constexpr int kBand = 8;
  const int band = index / (kBand * tiles_n), in_band = index % (kBand * tiles_n);
  const int rows = min(kBand, tiles_m - band * kBand);
  m = band * kBand + in_band % rows;
  n = in_band / rows;
}

// ---- Epilogues ----

// f(row, column, v0, v1) for each two neighbouring sums (row, column) and (row, column + 1) that the thread holds; row
// and column count within the tile, column is even. Nobody waits for anybody.
template <class Tile, class F>
PK_DEVICE void for_each_pair(const typename Tile::Accumulator& acc, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / Tile::kWarpsN * Tile::kWarpM + lane / 4;
  const int column = warp % Tile::kWarpsN * Tile::kWarpN + lane % 4 * 2;
  PK_UNROLL
  for (int j = 0; j < Tile::kBlocksN; ++j) {  // columns outermost: what f reads of a column serves all its rows
    PK_UNROLL
    for (int i = 0; i < Tile::kBlocksM; ++i) {
      f(row + i * 16, column + j * 8, acc.v[i][j][0], acc.v[i][j][1]);
      f(row + i * 16 + 8, column + j * 8, acc.v[i][j][2], acc.v[i][j][3]);
    }
  }
}

// kCount neighbouring sums from shared memory, 16-byte aligned.
template <class Sum, int kCount>
PK_DEVICE void load_sums(const char* from, Sum (&v)[kCount]) {
  PK_UNROLL
  for (int c = 0; c < kCount; c += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(from + c * 4);
    if constexpr (std::is_same_v<Sum, float>) {
      v[c] = __uint_as_float(four.x), v[c + 1] = __uint_as_float(four.y);
      v[c + 2] = __uint_as_float(four.z), v[c + 3] = __uint_as_float(four.w);
    } else {
      v[c] = static_cast<Sum>(four.x), v[c + 1] = static_cast<Sum>(four.y);
      v[c + 2] = static_cast<Sum>(four.z), v[c + 3] = static_cast<Sum>(four.w);
    }
  }
}

// The same through shared memory, for wide stores: f(row, column, v) with kColumns sums of one row, v[i] of column
// + i, such that the lanes of a warp are neighbours along the row. kColumns: 4 to 16, a power of two, no more than the
// warp's columns; so that kColumns outputs are 16 bytes. A thread's column is always staged_column(). Each warp uses
// its own bytes of `shared` (kStagedBytes<Tile> in all, at most kSharedBytes of any sensible tile): after mainloop no
// barrier is needed, but one before `shared` is used otherwise.
template <class Tile>
inline constexpr int kStagedPitch = Tile::kWarpN * 4 + 32;  // of a row, in bytes: four rows of pairs fill the banks
template <class Tile>
inline constexpr int kStagedBytes = Tile::kWarpsM * Tile::kWarpsN * 16 * kStagedPitch<Tile>;

template <class Tile, int kColumns>
PK_DEVICE int staged_column() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  return warp % Tile::kWarpsN * Tile::kWarpN + lane % (Tile::kWarpN / kColumns) * kColumns;
}

template <class Tile, int kColumns, class F>
PK_DEVICE void for_each_staged(const typename Tile::Accumulator& acc, char* shared, F&& f) {
  using Sum = typename Tile::Sum;
  constexpr int kLanes = Tile::kWarpN / kColumns, kRowsAtOnce = kWarp / kLanes < 16 ? kWarp / kLanes : 16;
  constexpr int kPitch = kStagedPitch<Tile>;
  static_assert(kColumns % 4 == 0 && kColumns <= 16 && kLanes >= 1 && kWarp % kLanes == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  char* mine = shared + warp * 16 * kPitch;
  const int first_row = warp / Tile::kWarpsN * Tile::kWarpM, column = staged_column<Tile, kColumns>();
  PK_UNROLL
  for (int i = 0; i < Tile::kBlocksM; ++i) {
    __syncwarp();  // the last 16 rows have been read
    PK_UNROLL
    for (int j = 0; j < Tile::kBlocksN; ++j) {
      char* at = mine + lane / 4 * kPitch + (j * 8 + lane % 4 * 2) * 4;
      PK_UNROLL
      for (int half = 0; half < 2; ++half) {
        Sum* pair = reinterpret_cast<Sum*>(at + half * 8 * kPitch);
        pair[0] = acc.v[i][j][half * 2];
        pair[1] = acc.v[i][j][half * 2 + 1];
      }
    }
    __syncwarp();
    PK_ROLLED
    for (int first = 0; first < 16; first += kRowsAtOnce) {
      const int row = first + lane / kLanes;
      if (row < 16) {
        Sum v[kColumns];
        load_sums(mine + row * kPitch + lane % kLanes * kColumns * 4, v);
        f(first_row + i * 16 + row, column, v);
      }
    }
  }
}

}  // namespace pk::cuda::gemm
