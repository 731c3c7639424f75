// How an int8 product is cut into blocks, chunks and the shares of threads: a pure function of its shape, the tiling of
// an ISA and the number of threads.
#pragma once

#include "cpu/int8_matmul/kernels.h"

namespace pk {
namespace {

// Of a row block, which stays in L2 together with some panels of b: the most rows, and the most bytes.
constexpr int64_t kMc = 384, kABytes = 384 << 10;
// Columns of b that a chunk has about, and bytes of sums where a chunk keeps them.
constexpr int64_t kNc = 256, kSumBytes = 64 << 10;
// Blocks of k whose sums stay in registers while the panel's bytes stay in L1 from one tile to the next.
constexpr int64_t kPass = 2;
// From this many tiles a block on, widening a panel beforehand wins over widening at each load.
constexpr int64_t kTilesToWiden = 4;
// Tiles for each thread, from which on threads share rows rather than columns.
constexpr int64_t kTilesToSplit = 4;
// Rows up to which b is packed block by block by the thread that is about to use it, not as a whole beforehand.
constexpr int64_t kMostOnTheWay = 96;

// Rows up to which a b that is not packed is read as it lies (gemv.h), and the shortest sums for which that pays: where
// its rows are contiguous, and where its columns are.
constexpr int kMostStreamed = 4;
constexpr int64_t kLeastOfRows = 128, kLeastOfColumns = 256;

constexpr int64_t lines(int64_t bytes) { return round_up(bytes, 64); }

// How b comes: packed; in long contiguous rows or columns, for sums without zero points; or in any other way.
enum class FormOfB { packed, contiguous, any };

// The blocking of an (m, k) x (k, n) product with m, n > 0.
constexpr Int8Blocking choose(int64_t m, int64_t n, int64_t k, FormOfB form, const Int8Tiling& t, int threads) {
  const bool packed = form == FormOfB::packed;
  const int64_t b_rows = round_up(k, kPackedRows), b_blocks = ceil_div(b_rows, t.kc), b_panels = ceil_div(n, t.nr);
  Int8Blocking c{};
  c.tiles = ceil_div(m, t.mr);
  // Cycles, roughly: a vector instruction a group, and b's bytes from memory. A thread is worth waking for 5 us.
  const int64_t tiles_of_b = b_panels * max(1, b_rows);
  const int64_t cycles = min(tiles_of_b, int64_t{1} << 40) * max(2, c.tiles * t.mr) / t.group;
  c.slots = min(max(1, cycles / 15000), threads);

  const int64_t row_bytes = max(1, b_blocks) * t.a_row_bytes;
  c.streams = form == FormOfB::contiguous && m <= kMostStreamed;
  if (c.streams) {
    // Wide runs of b, so that rows of it are read from end to end.
    c.blocks = 1, c.pass = 1;
    c.chunks = c.slots = min(c.slots, ceil_div(b_panels, 2));
    const int64_t columns = 2 * ceil_div(ceil_div(b_panels, 2), c.chunks) * t.nr;
    c.a_bytes = lines(m * row_bytes);
    c.sums_bytes = lines(4 * m * columns);
    c.panels_bytes = lines(m * round_up(k, 64) * (4 / t.group));
    c.scale_bytes = lines(4 * m);
    c.slot_bytes = c.a_bytes + c.sums_bytes + c.panels_bytes + c.scale_bytes;
    return c;
  }
  const int64_t most_tiles = max(1, min(kMc, kABytes / row_bytes) / t.mr);
  c.blocks = ceil_div(c.tiles, most_tiles);
  // Whole row blocks to each thread, where there are rows enough: a row that two threads need is packed twice.
  if (c.tiles >= kTilesToSplit * c.slots) {
    c.blocks = round_up(c.blocks, c.slots);
    c.tiles = min(m, round_up(c.tiles, c.blocks));
  }
  const int64_t block_tiles = ceil_div(c.tiles, c.blocks);
  const int64_t block_rows = min(m, block_tiles * t.mr);

  c.pack_first = !packed && m > kMostOnTheWay;
  const bool packs = !packed && !c.pack_first;
  c.by_depth = packs || c.tiles == 1;
  c.pass = c.by_depth || (t.wide_bytes > 0 && block_tiles >= kTilesToWiden) ? 1 : kPass;
  // The sums of a chunk stay in L1 or L2 where they are kept from one block of k to the next.
  const int64_t columns = c.by_depth && packed ? max(t.nr, kSumBytes / (4 * block_rows)) : kNc;
  c.chunks = ceil_div(b_panels * t.nr, columns);
  while (c.blocks * c.chunks % c.slots != 0 && c.chunks < b_panels) ++c.chunks;
  c.slots = min(c.slots, c.blocks * c.chunks);

  const int64_t chunk_panels = ceil_div(b_panels, c.chunks);
  c.a_bytes = lines(block_rows * row_bytes);
  c.sums_bytes = lines(4 * (b_blocks > c.pass ? block_rows * (c.by_depth ? chunk_panels : 1) : t.mr) * t.nr);
  c.panels_bytes = !packs ? 0 : chunk_panels * panel_stride(min(t.kc, b_rows), t.nr);
  c.wide_bytes = t.wide_bytes;
  c.scale_bytes = lines(4 * block_rows);
  const int64_t column_bytes = lines(4 * chunk_panels * t.nr);
  c.slot_bytes = c.a_bytes + c.sums_bytes + c.panels_bytes + c.wide_bytes + c.scale_bytes + column_bytes;
  c.packed_bytes = c.pack_first ? lines(packed_body_bytes(k, n)) : 0;
  return c;
}

constexpr FormOfB form_of_b(const Int8MatmulArgs& p) {
  if (p.packed != nullptr) return FormOfB::packed;
  const bool is_contiguous =
      (p.b_stride_k == 1 && p.k >= kLeastOfColumns) || (p.b_stride_n == 1 && p.k >= kLeastOfRows);
  return is_contiguous && p.a_zero_point == nullptr ? FormOfB::contiguous : FormOfB::any;
}

// The plan of a problem that has been checked, on these kernels.
inline void fill_plan(const Int8MatmulArgs& p, const Int8Kernels& kernels, int threads, Int8MatmulPlan* plan) {
  plan->args = p;
  plan->kernels = &kernels;
  plan->workspace_bytes = 0;
  if (p.m == 0 || p.n == 0) return;
  const Int8Blocking& cut = plan->blocking = choose(p.m, p.n, p.k, form_of_b(p), kernels.tiling, threads);
  plan->workspace_bytes = 64 + cut.packed_bytes + cut.slots * cut.slot_bytes;
}

}  // namespace
}  // namespace pk
