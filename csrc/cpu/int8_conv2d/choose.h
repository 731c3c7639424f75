// How an int8 convolution is cut into blocks of pixels, chunks of output channels and the shares of threads: a pure
// function of its shape, the tiling of an ISA and the number of threads.
#pragma once

#include "cpu/int8_conv2d/kernels.h"

namespace pk {
namespace {

// Bytes that the x of a block takes at the most (in L2), its pixels, and columns that a chunk has about.
constexpr int64_t kConvXBytes = 256 << 10, kConvPixels = 1024, kConvNc = 256;
// So much of the weight stays in L1: a tile goes through these panels one after the other, and y is written line by
// line.
constexpr int64_t kConvL1Bytes = 16 << 10;
// A weight that each thread has in L2, beside all else.
constexpr int64_t kConvSharedBytes = 128 << 10;
// A panel that takes more is widened as it is read.
constexpr int64_t kConvWideBytes = 256 << 10;
// Cycles after which a thread was worth waking, 8 us.
constexpr int64_t kConvWorth = 30000;

// Of the kernels' own structures, for they are in the workspace: a pointer to a tap, Pixel, Spot, TapSpot.
constexpr int64_t kTapBytes = 8, kPixelBytes = 16, kSpotBytes = 24, kTapSpotBytes = 16;
constexpr int64_t kExcessBytes = 12, kRunBytes = 48, kItemBytes = 12;

// Pixels that byte_pairs.h has at once, in tiles of four, and of its quads those in 16 that may be beyond 7 bits: with
// more, words are as fast.
constexpr int64_t kByteRun = 32, kByteTile = 4, kExcessShare = 4;

constexpr int64_t conv_lines(int64_t bytes) { return round_up(bytes, 64); }

// Lines and pixels of a line that `rows` and `columns` of an output read; of 1x1 filters those between are left out.
inline int64_t block_lines(const ConvShape& s, int64_t rows) {
  return s.r == 1 ? rows : (rows - 1) * s.stride_h + (s.r - 1) * s.dilation_h + 1;
}
inline int64_t columns_read(const ConvShape& s, int64_t columns) {
  return (columns - 1) * s.stride_w + (s.s - 1) * s.dilation_w + 1;
}
inline int64_t line_pixels(const ConvShape& s, int64_t columns) {
  return s.s == 1 ? columns : columns_read(s, columns);
}

// Of the pairs of an output and a tap, the part along one axis that is within x.
inline double within(int64_t outputs, int64_t stride, int64_t pad, int64_t taps, int64_t dilation, int64_t size) {
  int64_t good = 0;
  for (int64_t i = 0; i < outputs * taps; ++i) {
    const int64_t at = i / taps * stride - pad + i % taps * dilation;
    good += at >= 0 && at < size;
  }
  return static_cast<double>(good) / static_cast<double>(outputs * taps);
}

// Going tap by tap costs a twentieth, for the sums are loaded and stored once a tap, and saves what is beyond x.
inline bool pays_by_taps(const ConvShape& s) {
  if (!has_taps(s) || s.r * s.s == 1 || s.p() > 16 || s.q() > 16 || s.r > 16 || s.s > 16) return false;
  const double lines = within(s.p(), s.stride_h, s.pad_top, s.r, s.dilation_h, s.h);
  return lines * within(s.q(), s.stride_w, s.pad_left, s.s, s.dilation_w, s.w) < 0.88;
}

inline int64_t most_threads(int64_t cycles, int threads) { return min(max(1, cycles / kConvWorth), threads); }

// Of depthwise_quads.h: what the interleaved lines of a block of channels take at the most (in L1); the values of x of
// a plane, of one phase; the pixels of a row of the output that it has at once.
constexpr int64_t kQuadBytes = 16 << 10;

inline int64_t quad_positions(const QuadShape& quads, int64_t columns) { return columns + quads.reach + 8; }
inline int64_t quad_columns(const ConvShape& s) {
  const QuadShape quads(s);
  const int64_t fit = kQuadBytes / (256 * quads.quads * quads.phases) - quads.reach;
  return min(s.q(), round_up(ceil_div(s.q(), ceil_div(s.q(), max(fit, 8))), 4));
}

inline void choose_quads(const ConvShape& s, int threads, Int8ConvBlocking* c) {
  const QuadShape quads(s);
  c->row_blocks = s.n * ceil_div(s.p(), quads.rows);
  // Of 64 channels: products, the epilogue, and to interleave the lines.
  const int64_t products = s.q() * quads.rows * (quads.quads * s.s + 4) * 4;
  const int64_t cycles = c->row_blocks * quads.blocks * (products + 12 * quads.quads * columns_read(s, s.q()));
  c->slots = min(most_threads(cycles, threads), c->row_blocks);
  c->columns = quad_columns(s);
  c->line = conv_lines(64 * quad_positions(quads, c->columns));  // of a plane
  c->x_bytes = 4 * quads.quads * quads.phases * c->line;
  c->sums_bytes = 512 * quads.blocks;  // scales and biases
  c->slot_bytes = c->x_bytes + c->sums_bytes;
}

inline void choose_depthwise(const ConvShape& s, int threads, Int8ConvBlocking* c) {
  const Int8ConvLayout l(s);
  c->row_blocks = s.n * s.p();
  // An output a lane: about two cycles a tap.
  const int64_t cycles = c->row_blocks * s.q() * l.columns * l.taps / 8;
  c->slots = min(most_threads(cycles, threads), c->row_blocks);
  c->spots_bytes = conv_lines(kTapBytes * s.q() * l.taps);
  c->x_bytes = conv_lines(l.columns);  // a pixel of padding
  c->slot_bytes = c->spots_bytes + c->x_bytes + conv_lines(kPixelBytes * s.q());
}

// Bytes that v and m of a block take at the most (in L2).
constexpr int64_t kWinogradBlockBytes = 512 << 10;

// Weights that threads read side by side as fast as their products take.
constexpr int64_t kWinogradSharedBytes = 5 << 18;

// 36 products a tile for 9 a pixel, each as dear as two or more where the ISA sums bytes in fours; and eight times the
// bytes of weights, which a few tiles don't repay.
inline bool pays_winograd(const ConvShape& s, int64_t word_cost) {
  const int64_t tiles = WinogradTiles(s).count(), products = 36 * tiles * word_cost;
  return tiles >= 4 && products + products / 10 <= 9 * s.n * s.p() * s.q();
}

inline void choose_winograd(const ConvShape& s, const Int8ConvTiling& t, int threads, Int8ConvBlocking* c) {
  const int64_t tiles = WinogradTiles(s).count(), panel_cycles = tiles * 36 * s.c;  // of kNr columns, in pairs
  c->winograd = true;
  c->panels = ceil_div(s.k, t.nr);
  const int64_t bytes = 72 * s.c + 144 * t.nr;  // of a tile
  c->row_blocks = ceil_div(tiles, max(t.mr, kWinogradBlockBytes / bytes));
  c->slots = most_threads(panel_cycles * c->panels, threads);
  c->chunks = 1;
  // Tiles are dealt where each thread has enough of them for what it reads of the weights.
  const int64_t enough = winograd_bytes(s) <= kWinogradSharedBytes ? 8 : 2 * t.mr;
  if (c->slots > 1 && tiles >= enough * c->slots) c->row_blocks = round_up(c->row_blocks, c->slots);
  while (c->row_blocks * c->chunks % c->slots != 0 && c->chunks < c->panels) ++c->chunks;
  c->slots = min(c->slots, c->row_blocks * c->chunks);
  const int64_t most = ceil_div(tiles, c->row_blocks);
  // A cache line more, so that the 36 don't meet in one set.
  c->line = most * s.c + 32, c->pixel = most * t.nr + 16;
  c->x_bytes = conv_lines(2 * 36 * c->line), c->sums_bytes = conv_lines(4 * 36 * c->pixel);
  c->slot_bytes = c->x_bytes + c->sums_bytes + conv_lines(s.c);
}

// `turn`: the channels of x are not adjacent; `winograd`: the blob has its form, which fits.
inline Int8ConvBlocking choose_conv(const ConvShape& s, bool turn, bool winograd, const Int8ConvTiling& t,
                                    int threads) {
  Int8ConvBlocking c{};
  const Int8ConvLayout l(s);
  c.depthwise = l.depthwise;
  c.turn = turn;
  c.turned_bytes = turn ? conv_lines(s.n * s.h * s.w * s.c) : 0;
  if (l.depthwise) {
    c.quads = t.quads && has_quads(s);
    if (c.quads) {
      choose_quads(s, threads, &c);
    } else {
      choose_depthwise(s, threads, &c);
    }
    return c;
  }
  if (winograd && pays_winograd(s, t.word_cost)) {
    choose_winograd(s, t, threads, &c);
    return c;
  }
  const int64_t p = s.n * s.p(), q = s.q(), channels = s.c / s.groups, line = 64 / t.value_bytes;
  // Pixels at a power of two apart would meet in one set of the cache.
  c.pixel = s.s == 1 && channels * t.value_bytes % 512 == 0 ? channels + line : channels;
  const int64_t pixel_bytes = max(1, c.pixel * t.value_bytes);
  const int64_t most = max(1, kConvXBytes / pixel_bytes);
  const int64_t read = max(1, most / block_lines(s, 1));  // of each of the lines of a row
  c.column_blocks = max(ceil_div(line_pixels(s, q), read), ceil_div(q, kConvPixels));
  c.columns = ceil_div(q, c.column_blocks);
  c.column_blocks = ceil_div(q, c.columns);
  c.rows = 1;
  const int64_t width = line_pixels(s, c.columns);
  if (c.column_blocks == 1) {
    const int64_t lines = max(1, most / width);
    const int64_t fit = s.r == 1 ? lines : (lines - block_lines(s, 1)) / s.stride_h + 1;
    c.rows = max(1, min(min(p, fit), kConvPixels / q));
  }
  c.panels = ceil_div(s.k / s.groups, t.nr);
  // A cycle takes two numbers of a panel's depth; the epilogue 16, of its two vectors.
  const int64_t products = min(s.groups * c.panels * (l.depth() / 2 + 16), int64_t{1} << 40);
  c.slots = most_threads(min(products * max(2, min(p * q, 1 << 20)), int64_t{1} << 60), threads);
  c.chunks = ceil_div(c.panels * t.nr, kConvNc);
  c.in_rows = s.pad_top + s.pad_bottom > 0 && c.columns / ceil_div(c.columns, t.mr) >= 6;
  c.row_blocks = ceil_div(p, c.rows);
  const auto uneven = [&] { return s.groups * c.row_blocks * c.column_blocks * c.chunks % c.slots != 0; };
  // What all threads do, with rows dealt and with panels. Rows save the others' copies of x, and a line of y that two
  // write to goes back and forth; but each thread reads the whole weight.
  const int64_t share = ceil_div(p, c.slots) * q;
  const int64_t rows = (c.in_rows ? share : round_up(share, t.mr)) * c.slots * c.panels;
  const int64_t panels = ceil_div(c.panels, c.slots) * c.slots * p * q;
  const int64_t blocks = round_up(c.row_blocks, c.slots);
  const int64_t saved = s.groups * c.panels * t.nr * l.depth() <= kConvSharedBytes ? panels / 16 : 0;
  if (uneven() && c.column_blocks == 1 && blocks <= p && rows <= panels + saved) c.row_blocks = blocks;
  while (uneven() && c.chunks < c.panels) ++c.chunks;
  c.slots = min(c.slots, s.groups * c.row_blocks * c.column_blocks * c.chunks);
  c.rows = ceil_div(p, c.row_blocks);
  c.by_taps = c.column_blocks == 1 && pays_by_taps(s);
  if (c.by_taps) c.in_rows = true;  // nobody reads lines of padding
  c.line = round_up(width * c.pixel, line);
  if (c.line * t.value_bytes % 2048 == 0) c.line += line;
  // The last segment is filled up, with what follows.
  const int64_t images = c.rows > 1 ? (c.rows - 2) / s.p() + 2 : 1;
  const int64_t apart = max(0, block_lines(s, 1) - s.stride_h);  // lines more from an image to the next
  const int64_t lines = block_lines(s, c.rows) + (images - 1) * apart;
  c.x_bytes = conv_lines(lines * c.line * t.value_bytes + 64);
  const int64_t pixels = c.rows * c.columns;
  c.byte_pairs = t.byte_pairs && l.byte_pairs;
  c.sums_bytes = conv_lines(4 * (c.by_taps ? round_up(pixels, kByteTile) : c.byte_pairs ? kByteRun : t.mr) * t.nr);
  c.spots_bytes = conv_lines(kSpotBytes * pixels);
  const int64_t panel_bytes = max(1, l.depth() * t.nr * t.value_bytes);
  c.together = max(1, kConvL1Bytes / panel_bytes);
  const int64_t wide = conv_lines(min(c.together, c.panels) * panel_bytes);
  c.wide_bytes = t.widens && (c.byte_pairs || wide <= kConvWideBytes) ? wide : 0;
  c.slot_bytes = c.x_bytes + c.sums_bytes + c.wide_bytes + c.spots_bytes;
  if (c.by_taps) c.slot_bytes += conv_lines(8 * l.taps) + conv_lines(kTapSpotBytes * l.taps * pixels);
  if (c.byte_pairs) {
    c.firsts = lines * (width + 1);
    // A pixel more, which is the last one to be looked at.
    c.excess = lines * width * channels / 4 * kExcessShare / 16 + channels / 2 + 8;
    c.runs = c.by_taps ? 1 : c.rows * ceil_div(c.columns, kByteRun);
    c.tiles = c.by_taps ? ceil_div(pixels, kByteTile) : c.runs * (kByteRun / kByteTile);
    c.items = pixels * l.depth() / 4 * kExcessShare / 16 + 64;
    c.slot_bytes += conv_lines(4 * c.firsts) + conv_lines(kExcessBytes * c.excess) + conv_lines(kRunBytes * c.runs) +
                    conv_lines(4 * c.tiles) + conv_lines(kItemBytes * c.items);
  }
  return c;
}

// Of a call, which aligns it to a line itself.
inline int64_t workspace_of(const Int8ConvBlocking& c) { return 64 + c.turned_bytes + c.slots * c.slot_bytes; }

}  // namespace
}  // namespace pk
