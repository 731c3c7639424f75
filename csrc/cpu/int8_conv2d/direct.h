// Convolution as a product whose rows are pixels, without copies of pixels for each tap: sums of kMr pixels x kNr
// channels stay in registers over the whole filter, and its lines read x where it lies.
//
//   a block is some rows of the output, or a part of one; a chunk is ~kConvNc of a group's output channels; a task is
//   one block x one chunk. Each thread takes a run of tasks, block by block, and copies the lines of x that a block
//   reads once (lines.h). In a task: for each panel of channels, for each tile of pixels: the sums from what they
//   start from to the epilogue. The panel stays in L1 or L2, the tile's x in L1.
//
// Lines of the filter that lie above or below x for all pixels of a tile are left out. On small maps with many channels
// the filter is done tap by tap instead, each for the pixels for which it lies in x, with the sums in L1.
#pragma once

#include "cpu/int8_conv2d/byte_panels.h"
#include "cpu/int8_conv2d/epilogue.h"
#include "cpu/int8_conv2d/lines.h"
#include "cpu/int8_matmul/microkernel.h"
#include "cpu/int8_matmul/pack_b.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

// From this many tiles a block on, a panel is widened to 16 bits beforehand.
constexpr int64_t kConvTilesToWiden = 3;

// One more pair of rows than a matmul has: 14 divides the widths of most networks.
inline constexpr int kConvMr = kDot4 && kRegisters == 32 ? 14 : kMr;

// ARM has no dot product of words: a product of pairs is four instructions, each for an eighth of what one has of
// fours.
constexpr int64_t kWordCost = kDot4 ? (kDot4Offset == 0 ? 8 : 2) : 1;

// depthwise_quads.h deals the bytes of vectors of this size.
constexpr bool kQuads = kDot4 && kVecBytes == 64;

inline constexpr Int8ConvTiling kConvTiling = {kConvMr, kNr, sizeof(AValue), !kDot4, kWordCost, kQuads, kBytePairs};

// A pixel that a tap reads: its values of x, and which of the block's it is.
template <class Value>
struct TapSpotOf {
  const Value* x;
  int64_t pixel;
};
using TapSpot = TapSpotOf<AValue>;

// A pixel of the output: its place, and the values that its first line reads.
template <class Value>
struct SpotOf {
  Pixel pixel;
  const Value* x;
};
using Spot = SpotOf<AValue>;

static_assert(sizeof(Spot) == kSpotBytes && sizeof(TapSpot) == kTapSpotBytes);

// A panel's part in every tile: its weights, and what its sums start from.
template <class BValue>
struct Panel {
  const BValue* weights;
  const int32_t* starts;     // of the filter's first i pieces
  int64_t columns, pieces;   // between starts; of a line
  int64_t segments, groups;  // of a line of the filter; of a segment
  int64_t line, tap;         // values of x between lines and between segments
  const Epilogue& epilogue;
  int64_t padded, channel;  // of its first column: where scale and bias are, and in y
  int64_t count;            // it and the columns that follow

  // To the one after it.
  void next(int64_t depth) {
    weights += depth * kNr;
    starts += kNr, padded += kNr, channel += kNr, count -= kNr;
  }

  template <Kind kind>
  Channels<kind> channels(int v) const {
    const int64_t at = v * kLanes;
    return {epilogue, padded + at, channel + at, min(kLanes, count - at)};
  }
};

// Column v of the sums of a tile, whole or not, to the epilogue.
template <bool whole, Kind kind, int kRows, int kVectors, class BValue, class PixelOf>
[[gnu::always_inline]] inline void put_tile(const I32 (&sum)[kRows][kVectors], int v, const Panel<BValue>& panel,
                                            const PixelOf& pixel) {
  const Channels<kind> channels = panel.template channels<kind>(v);
#pragma GCC unroll 4
  for (int r = 0; r + 4 <= kRows; r += 4) {
    channels.template put_four<whole>(sum[r][v], sum[r + 1][v], sum[r + 2][v], sum[r + 3][v],
                                      [&](int i) { return pixel(r + i); });
  }
#pragma GCC unroll 3
  for (int r = kRows / 4 * 4; r < kRows; ++r) {
    whole ? channels.put_whole(sum[r][v], pixel(r)) : channels.put(sum[r][v], pixel(r));
  }
}

// The sums of kRows pixels over some lines of the filter: to the epilogue while they are in registers, or to c, kNr
// columns a pixel. kVectors: as many of the panel's as have columns.
template <int kRows, int kVectors, Kind kind, class BValue>
inline void direct_tile(const Spot* spots, const Panel<BValue>& panel, const Taps& lines, int32_t* c) {
  I32 sum[kRows][kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const int32_t* const starts = panel.starts + v * kLanes;
    const U32 start = load<U32>(starts + lines.end * panel.pieces * panel.columns) -
                      load<U32>(starts + lines.begin * panel.pieces * panel.columns);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r][v] = bit_cast<I32>(start);
  }
  const int64_t depth = panel.groups * kNr * kGroup;
  const BValue* b = panel.weights + lines.begin * panel.segments * depth;
  for (int64_t line = lines.begin; line < lines.end; ++line) {
    for (int64_t segment = 0; segment < panel.segments; ++segment, b += depth) {
      const int64_t at = line * panel.line + segment * panel.tap;
      const AValue* x[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) x[r] = spots[r].x + at;
      add_products<kRows>(sum, [&](int r) { return x[r]; }, b, panel.groups);
    }
  }
  if constexpr (is_short(kind)) {
    if (c == nullptr) {
      const auto pixel = [&](int r) { return spots[r].pixel; };
      if constexpr (kVectors == 2) put_tile<true, kind>(sum, 0, panel, pixel);
      if (panel.count >= kVectors * kLanes) return put_tile<true, kind>(sum, kVectors - 1, panel, pixel);
      return put_tile<false, kind>(sum, kVectors - 1, panel, pixel);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + r * kNr + v * kLanes, sum[r][v]);
  }
}

template <Kind kind, class BValue, int kRows = kConvMr>
inline void run_direct_tile(int64_t rows, const Spot* spots, const Panel<BValue>& panel, const Taps& lines,
                            int32_t* c) {
  if (rows == kRows) {
    if (panel.count > kLanes) {
      direct_tile<kRows, 2, kind>(spots, panel, lines, c);
    } else {
      direct_tile<kRows, 1, kind>(spots, panel, lines, c);
    }
  } else if constexpr (kRows > 1) {
    run_direct_tile<kind, BValue, kRows - 1>(rows, spots, panel, lines, c);
  }
}

// Brings the lines of `count` values into L2: weights that one tile or a few read. The hardware's prefetcher begins
// anew with each page, and each time a tile would wait.
template <class T>
inline void fetch_ahead(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
}

// sums, kNr a pixel of the block, plus those of a tap, whose starts are the difference of two. Meanwhile brings the
// weights of the next tap into L2, where their bytes and not the products are what a tile waits for.
template <int kRows, class BValue>
inline void tap_tile(const TapSpot* spots, const BValue* b, int64_t groups, const int32_t* starts, int64_t columns,
                     int32_t* sums) {
  I32 sum[kRows][kNrVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kNrVectors; ++v) {
    const int32_t* const at = starts + v * kLanes;
    const U32 start = load<U32>(at + columns) - load<U32>(at);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sum[r][v] = bit_cast<I32>(load<U32>(sums + spots[r].pixel * kNr + v * kLanes) + start);
    }
  }
  const AValue* x[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) x[r] = spots[r].x;
  add_products<kRows>(
      sum, [&](int r) { return x[r]; }, b, groups,
      [&](int64_t g) {
        if constexpr (kDot4) fetch_ahead(b + (groups + g) * kNr * kGroup, kNr * kGroup);
      });
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kNrVectors; ++v) store(sums + spots[r].pixel * kNr + v * kLanes, sum[r][v]);
  }
}

template <class BValue, int kRows = kConvMr>
inline void run_tap_tile(int64_t rows, const TapSpot* spots, const BValue* b, int64_t groups, const int32_t* starts,
                         int64_t columns, int32_t* sums) {
  if (rows == kRows) {
    tap_tile<kRows>(spots, b, groups, starts, columns, sums);
  } else if constexpr (kRows > 1) {
    run_tap_tile<BValue, kRows - 1>(rows, spots, b, groups, starts, columns, sums);
  }
}

struct Direct : Int8Conv {
  struct Slot {
    AValue* x;
    int32_t* sums;
    int16_t* wide;
    Spot* spots;
    int64_t* tap_counts;  // by tap, of its spots
    TapSpot* tap_spots;   // by tap, as many as the block has pixels
  };

  Block block_of(int64_t task) const {
    const int64_t i = task / cut.chunks % (cut.row_blocks * cut.column_blocks);
    const int64_t row = i / cut.column_blocks, column = i % cut.column_blocks, rows = shape.n * shape.p();
    return {share(rows, row, cut.row_blocks), share(rows, row + 1, cut.row_blocks),
            share(shape.q(), column, cut.column_blocks), share(shape.q(), column + 1, cut.column_blocks)};
  }

  void gather(int64_t group, const Block& block, const Slot& slot) const {
    const int32_t offset = cut.byte_pairs ? byte_offset(plan.options.x_zero_point) : kAOffset;
    const auto padding = static_cast<AValue>(plan.options.x_zero_point + offset);
    Lines{shape, cut, x + group * (shape.c / shape.groups), stride, padding, offset}.copy(block, slot.x);
    point(block, slot.x, slot.spots);
    if (cut.by_taps) list_taps(block, slot.spots, slot.tap_counts, slot.tap_spots);
  }

  template <class Value>
  void point(const Block& block, const Value* from, SpotOf<Value>* spot) const {
    const int64_t step = (shape.s == 1 ? 1 : shape.stride_w) * cut.pixel, first = first_line(shape, block.row);
    for (int64_t row = block.row; row < block.row_end; ++row) {
      const Value* at = from + (first_line(shape, row) - first) * cut.line;
      const int64_t n = row / shape.p(), p = row % shape.p();
      Pixel pixel = pixel_at(plan, n, p, block.column);
      const int64_t y = plan.args.y_stride[3], residual = plan.args.residual.stride[3];
      for (int64_t q = block.column; q < block.column_end; ++q, at += step) {
        *spot++ = {pixel, at};
        pixel.y += y, pixel.residual += residual;
      }
    }
  }

  // The pixels for which each tap is within x.
  template <class Value>
  void list_taps(const Block& block, const SpotOf<Value>* spots, int64_t* counts, TapSpotOf<Value>* to) const {
    const int64_t p = shape.p(), pixels = block.pixels();
    for (int64_t tap = 0; tap < shape.r * shape.s; ++tap) {
      const int64_t r = tap / shape.s, s = tap % shape.s;
      TapSpotOf<Value>* const list = to + tap * pixels;
      int64_t count = 0;
      for (int64_t i = 0; i < pixels; ++i) {
        const int64_t y = (block.row + i / block.columns()) % p * shape.stride_h - shape.pad_top + r * shape.dilation_h;
        const int64_t z = i % block.columns() * shape.stride_w - shape.pad_left + s * shape.dilation_w;
        if (y < 0 || y >= shape.h || z < 0 || z >= shape.w) continue;
        list[count++] = {spots[i].x + r * line_distance() + s * tap_distance(), i};
      }
      counts[tap] = count;
    }
  }

  // Values of x from one line of the filter to the next, and from a tap to the next.
  int64_t line_distance() const { return shape.r == 1 ? 0 : shape.dilation_h * cut.line; }
  int64_t tap_distance() const { return shape.dilation_w * cut.pixel; }

  // A tile of `rows` pixels and the columns of panels[0..count).
  template <Kind kind, class BValue>
  void tile(const Panel<BValue>& first, int64_t count, const Spot* spots, int64_t rows, const Taps& lines,
            int32_t* sums) const {
    const int64_t depth = Int8ConvLayout(shape).depth();
    Panel<BValue> panel = first;
    for (int64_t i = 0; i < count; ++i) {
      run_direct_tile<is_short(kind) ? kind : Kind::any>(rows, spots, panel, lines, is_short(kind) ? nullptr : sums);
      if (!is_short(kind)) put_sums<kind>(panel, sums, spots, rows);
      panel.next(depth);
    }
  }

  // A panel with all of the block's pixels, tap by tap.
  template <Kind kind, class BValue>
  void taps(const Panel<BValue>& panel, const Block& block, const Slot& slot) const {
    const int64_t pixels = block.pixels(), depth = Int8ConvLayout(shape).piece;
    std::memset(slot.sums, 0, static_cast<size_t>(pixels * kNr) * sizeof(int32_t));
    for (int64_t tap = 0; tap < shape.r * shape.s; ++tap) {
      const int64_t count = slot.tap_counts[tap], n = ceil_div(count, kConvMr);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t first = share(count, t, n), rows = share(count, t + 1, n) - first;
        run_tap_tile(rows, slot.tap_spots + tap * pixels + first, panel.weights + tap * depth * kNr, depth / kGroup,
                     panel.starts + tap * panel.columns, panel.columns, slot.sums);
      }
    }
    put_sums<kind>(panel, slot.sums, slot.spots, pixels);
  }

  template <Kind kind, class BValue, class Value>
  void put_sums(const Panel<BValue>& panel, const int32_t* sums, const SpotOf<Value>* spots, int64_t pixels) const {
    for (int v = 0; v < kNrVectors && v * kLanes < panel.count; ++v) {
      const Channels<kind> channels = panel.template channels<kind>(v);
      channels.put_all(sums + v * kLanes, kNr, pixels, [&](int64_t i) { return spots[i].pixel; });
    }
  }

  template <Kind kind, class BValue>
  void tiles(const Panel<BValue>& panels, int64_t count, const Block& block, const Slot& slot) const {
    if (cut.by_taps) {
      Panel<BValue> panel = panels;
      for (int64_t i = 0; i < count; ++i, panel.next(Int8ConvLayout(shape).depth())) taps<kind>(panel, block, slot);
      return;
    }
    if (!cut.in_rows) {
      const int64_t pixels = block.pixels(), n = ceil_div(pixels, kConvMr);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t first = share(pixels, t, n), rows = share(pixels, t + 1, n) - first;
        tile<kind>(panels, count, slot.spots + first, rows, {0, shape.r}, slot.sums);
      }
      return;
    }
    const int64_t width = block.columns(), n = ceil_div(width, kConvMr);
    const Spot* spots = slot.spots;
    for (int64_t row = block.row; row < block.row_end; ++row, spots += width) {
      const int64_t y = row % shape.p() * shape.stride_h - shape.pad_top;
      const Taps lines = taps_within(y, shape.dilation_h, shape.r, shape.h);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t first = share(width, t, n), rows = share(width, t + 1, n) - first;
        tile<kind>(panels, count, spots + first, rows, lines, slot.sums);
      }
    }
  }

  // Panels from the j-th on, whose weights are at `weights`.
  template <class BValue>
  Panel<BValue> panel_at(int64_t group, int64_t j, const BValue* weights) const {
    const Int8ConvLayout l(shape);
    const int64_t columns = shape.k / shape.groups, segments = shape.dilation_w == 1 ? 1 : shape.s;
    const auto* const starts = reinterpret_cast<const int32_t*>(body + group * l.group_bytes());
    return {weights,
            starts + j * kNr,
            l.columns,
            l.pieces,
            segments,
            l.line_depth() / segments / kGroup,
            line_distance(),
            tap_distance(),
            epilogue,
            group * l.columns + j * kNr,
            group * columns + j * kNr,
            columns - j * kNr};
  }

  template <Kind kind>
  void run_task(int64_t group, const Block& block, int64_t chunk, const Slot& slot) const {
    const Int8ConvLayout l(shape);
    const char* const packed = body + group * l.group_bytes();
    const auto* const weights = reinterpret_cast<const int8_t*>(packed + l.starts_bytes());
    const int64_t end = share(cut.panels, chunk + 1, cut.chunks);
    const bool widen = cut.wide_bytes > 0 && ceil_div(block.pixels(), kConvMr) >= kConvTilesToWiden;
    for (int64_t j = share(cut.panels, chunk, cut.chunks); j < end; j += cut.together) {
      const int64_t count = min(cut.together, end - j);
      const int8_t* const packed_panel = weights + j * kNr * l.depth();
      const auto run = [&](const auto* from) { tiles<kind>(panel_at(group, j, from), count, block, slot); };
      if (kBytePairs && cut.byte_pairs) {
        for (int64_t p = 0; p < count; ++p) {
          const int64_t at = p * kNr * l.depth();
          words_of_quads(l, ReadByteOrder(l, packed, j + p), packed_panel + at, slot.wide + at);
        }
        run(slot.wide);
        continue;
      }
      if (!kDot4 && widen) {
        widen_panel(packed_panel, count * l.depth(), slot.wide);
        run(slot.wide);
      } else {
        run(packed_panel);
      }
    }
  }

  // `memory` moves on.
  Slot slot_at(char*& memory) const {
    Slot slot;
    slot.x = reinterpret_cast<AValue*>(memory);
    slot.sums = reinterpret_cast<int32_t*>(memory += cut.x_bytes);
    slot.wide = reinterpret_cast<int16_t*>(memory += cut.sums_bytes);
    slot.spots = reinterpret_cast<Spot*>(memory += cut.wide_bytes);
    slot.tap_counts = reinterpret_cast<int64_t*>(memory += cut.spots_bytes);
    if (!cut.by_taps) return slot;
    slot.tap_spots = reinterpret_cast<TapSpot*>(memory += conv_lines(8 * shape.r * shape.s));
    memory += conv_lines(kTapSpotBytes * shape.r * shape.s * cut.rows * cut.columns);
    return slot;
  }

  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const Slot slot = slot_at(memory);
    const int64_t tasks = shape.groups * cut.row_blocks * cut.column_blocks * cut.chunks;
    int64_t gathered = -1;
    for (int64_t t = share(tasks, i, cut.slots); t < share(tasks, i + 1, cut.slots); ++t) {
      const int64_t group = t / cut.chunks / (cut.row_blocks * cut.column_blocks);
      const Block block = block_of(t);
      if (gathered != t / cut.chunks) {
        gather(group, block, slot);
        gathered = t / cut.chunks;
      }
      run_task<kind>(group, block, t % cut.chunks, slot);
    }
  }
};

// weight: (groups, columns, r, s, channels).
inline void pack_direct(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body,
                        const Executor& executor) {
  const Int8ConvLayout l(s);
  const int64_t columns = s.k / s.groups, dense = s.c / s.groups * s.s / l.pieces;  // of a piece
  const int64_t panels = l.columns / kNr, pieces = l.lines * l.pieces;
  const auto offset = static_cast<uint32_t>(kAOffset + x_zero_point);   // modulo 2^32, as the sums are
  for (int64_t group = 0; l.byte_pairs && group < s.groups; ++group) {  // what byte_pairs.h would have there
    std::memset(body + group * l.group_bytes() + l.orders_at(), 0,
                static_cast<size_t>(l.group_bytes() - l.orders_at()));
  }
  parallel_for(executor, 0, s.groups * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / panels, j = i % panels;
      char* const to = body + group * l.group_bytes();
      auto* const starts = reinterpret_cast<int32_t*>(to) + j * kNr;
      auto* const panel = reinterpret_cast<int8_t*>(to + l.starts_bytes()) + j * kNr * l.depth();
      int32_t sums[kNr] = {};
      std::memset(starts, 0, sizeof sums);
      if (j * kNr >= columns) {  // no column's: zeros, so that the same weight gives the same bytes
        std::memset(panel, 0, static_cast<size_t>(kNr * l.depth()));
      }
      for (int64_t piece = 0; piece < pieces; ++piece) {
        if (j * kNr < columns) {
          const SourceB source{weight + (group * columns * pieces + piece) * dense, 1, pieces * dense, dense, columns};
          pack_panels(source, 0, j, 1, l.piece, panel + piece * l.piece * kNr, 0, sums);
        }
        int32_t* const next = starts + (piece + 1) * l.columns;
        for (int v = 0; v < kNr; ++v) next[v] = static_cast<int32_t>(0u - offset * static_cast<uint32_t>(sums[v]));
      }
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
