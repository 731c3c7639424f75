// How an int8 product is cut into blocks, chunks and the shares of threads: a pure function of its shape, the tiling of
// an ISA and the number of threads.
#pragma once

#include "cpu/int8_matmul/kernels.h"

namespace pk {
namespace {

// Rows of a that a block has at the most, where it stays in L2; columns of b that a chunk has about.
constexpr int64_t kMc = 96, kNc = 256;
// The packed rows of a that one thread holds take at most this.
constexpr int64_t kABytes = 2 << 20;

constexpr int64_t lines(int64_t bytes) { return round_up(bytes, 64); }

// The blocking of an (m, k) x (k, n) product with m, n > 0. `packed`: b comes packed.
constexpr Int8Blocking choose(int64_t m, int64_t n, int64_t k, bool packed, const Int8Tiling& t, int threads) {
  const int64_t b_rows = round_up(k, kPackedRows), b_blocks = ceil_div(b_rows, t.kc), b_panels = ceil_div(n, t.nr);
  Int8Blocking c{};
  c.tiles = ceil_div(m, t.mr);
  const int64_t row_bytes = larger(1, b_blocks) * t.a_row_bytes;
  const int64_t most_tiles = larger(1, smaller(kMc, kABytes / row_bytes) / t.mr);
  c.blocks = ceil_div(c.tiles, most_tiles);
  const int64_t block_rows = smaller(m, ceil_div(c.tiles, c.blocks) * t.mr);
  c.pack_first = !packed && c.blocks > 1;

  // Cycles, roughly: a vector instruction a group, and b's bytes from memory. A thread is worth waking for 5 us.
  const int64_t tiles_of_b = b_panels * larger(1, b_rows);
  const int64_t cycles = smaller(tiles_of_b, int64_t{1} << 40) * larger(2, c.tiles * t.mr) / t.group;
  c.slots = smaller(larger(1, cycles / 15000), threads);
  c.chunks = ceil_div(b_panels * t.nr, kNc);
  while (c.blocks * c.chunks % c.slots != 0 && c.chunks < b_panels) ++c.chunks;
  c.slots = smaller(c.slots, c.blocks * c.chunks);

  const int64_t chunk_panels = ceil_div(b_panels, c.chunks);
  c.a_bytes = lines(block_rows * row_bytes);
  c.sums_bytes = lines(4 * (b_blocks > 1 ? block_rows * chunk_panels : t.mr) * t.nr);
  c.panels_bytes = packed || c.pack_first ? 0 : chunk_panels * panel_stride(smaller(t.kc, b_rows), t.nr);
  c.wide_bytes = t.wide_bytes;
  c.scale_bytes = lines(4 * block_rows);
  const int64_t column_bytes = lines(4 * chunk_panels * t.nr);
  c.slot_bytes = c.a_bytes + c.sums_bytes + c.panels_bytes + c.wide_bytes + c.scale_bytes + column_bytes;
  c.packed_bytes = c.pack_first ? lines(packed_body_bytes(k, n)) : 0;
  return c;
}

// The plan of a problem that has been checked, on these kernels.
inline void fill_plan(const Int8MatmulArgs& p, const Int8Kernels& kernels, int threads, Int8MatmulPlan* plan) {
  plan->args = p;
  plan->kernels = &kernels;
  plan->workspace_bytes = 0;
  if (p.m == 0 || p.n == 0) return;
  const Int8Blocking& cut = plan->blocking = choose(p.m, p.n, p.k, p.packed != nullptr, kernels.tiling, threads);
  plan->workspace_bytes = 64 + cut.packed_bytes + cut.slots * cut.slot_bytes;
}

}  // namespace
}  // namespace pk
