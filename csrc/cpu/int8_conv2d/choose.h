// How an int8 convolution is cut into blocks of pixels, chunks of output channels and the shares of threads: a pure
// function of its shape, the tiling of an ISA and the number of threads.
#pragma once

#include "cpu/int8_conv2d/kernels.h"

namespace pk {
namespace {

// Pixels that a block has at the most, bytes that their gathered x takes at the most (in L2), and columns that a chunk
// has about.
constexpr int64_t kConvMc = 96, kConvABytes = 384 << 10, kConvNc = 256;

constexpr int64_t conv_lines(int64_t bytes) { return round_up(bytes, 64); }

// `turn`: the channels of x are not adjacent.
inline Int8ConvBlocking choose_conv(const ConvShape& s, bool turn, const Int8Tiling& t, int threads) {
  Int8ConvBlocking c{};
  const Int8ConvLayout l(s);
  const int64_t pixels = s.n * s.p() * s.q();
  c.depthwise = l.depthwise;
  c.turn = turn;
  c.turned_bytes = turn ? conv_lines(s.n * s.h * s.w * s.c) : 0;
  c.depth = l.depth;
  if (l.depthwise) {
    c.blocks = s.n * s.p();
    // An output a lane: about a cycle a tap. A thread is worth waking for 5 us.
    c.slots = smaller(smaller(larger(1, pixels * l.columns * l.depth / (15000 * 16)), threads), c.blocks);
    c.a_bytes = conv_lines(8 * s.q() * l.depth) + conv_lines(l.columns);  // pointers to taps; a pixel of padding
    c.slot_bytes = c.a_bytes + conv_lines(16 * s.q());
    return c;
  }
  const int64_t rows = round_up(l.depth, kPackedRows);
  c.depth_blocks = ceil_div(rows, t.kc);
  c.panels = ceil_div(s.k / s.groups, t.nr);
  c.tiles = ceil_div(pixels, t.mr);
  const int64_t row_bytes = larger(1, c.depth_blocks) * t.a_row_bytes;
  const int64_t most_tiles = larger(1, smaller(kConvMc, kConvABytes / row_bytes) / t.mr);
  c.blocks = ceil_div(c.tiles, most_tiles);
  const int64_t cycles = s.groups * c.panels * larger(1, rows) / t.group * larger(2, c.tiles * t.mr);
  c.slots = smaller(larger(1, cycles / 15000), threads);
  c.chunks = ceil_div(c.panels * t.nr, kConvNc);
  while (s.groups * c.blocks * c.chunks % c.slots != 0 && c.chunks < c.panels) ++c.chunks;
  c.slots = smaller(c.slots, s.groups * c.blocks * c.chunks);
  const int64_t block_rows = smaller(pixels, ceil_div(c.tiles, c.blocks) * t.mr),
                chunk_panels = ceil_div(c.panels, c.chunks);
  c.a_bytes = conv_lines(block_rows * row_bytes);
  c.sums_bytes = conv_lines(4 * (c.depth_blocks > 1 ? block_rows * chunk_panels : t.mr) * t.nr);
  c.wide_bytes = t.wide_bytes;
  c.slot_bytes = c.a_bytes + c.sums_bytes + c.wide_bytes + conv_lines(16 * block_rows);
  return c;
}

}  // namespace
}  // namespace pk
