// direct.h with vpmaddubsw, for AVX2: exact, twice as many products an instruction, and sums of words where they fit.
//
// vpmaddubsw saturates: two products of a byte up to 255 and one of [-128, 127] may leave 16 bits. With bytes up to 127
// they do not, and even four stay within them for most weights (byte_panels.h). So x is cut in two, exactly:
//
//   x + offset = low + excess, low = x + offset where that is in [0, 127], else the bound that is nearer
//
// The product of low and the weights is dense. Excess is rare: after a ReLU it is what is beyond half of the range, 0.4
// to 5 % of the values in ResNets. It is listed as x is copied, four channels an item, then for each pixel of the
// output that it belongs to, and its products are added after the dense ones. A block with excess in more than a
// quarter of its quads is done as direct.h does it, with words, which are faster then.
#pragma once

#include "cpu/int8_conv2d/direct.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kByteMr = kByteTile;  // its sums and two vectors of two quads fill the registers

using U8 = uint8_t __attribute__((vector_size(kVecBytes)));

// Excess of a quad of x that an output reads: which of the panel's.
struct ExcessItem {
  int32_t quad;
  uint32_t bytes;  // without its sign
  uint32_t sign;   // 1, 1 or -1, -1 as words
};
// Pixels of the output done together, and their first tile and item.
struct ByteRun {
  int64_t first, pixels;
  Taps lines;
  int64_t tile, item;
};
static_assert(sizeof(ExcessItem) == kItemBytes && sizeof(ByteRun) == kRunBytes);

// [mask]: the lanes whose bits are set, then others.
struct LaneLists {
  uint8_t lanes[256][8] = {};
  constexpr LaneLists() {
    for (int mask = 0; mask < 256; ++mask) {
      int n = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (mask >> lane & 1) lanes[mask][n++] = static_cast<uint8_t>(lane);
      }
    }
  }
};
inline constexpr LaneLists kLaneLists;

struct BytePanel : Panel<int8_t> {
  ReadByteOrder byte_order;
};

inline I32 broadcast_at(const void* four) {
  int32_t v;
  std::memcpy(&v, four, sizeof v);
  return broadcast(v);
}

// sum[r] += the products of a piece's quads: x[r] and b in its order.
template <int kRows>
[[gnu::always_inline]] inline void add_quads(I32 (&sum)[kRows][kNrVectors], const uint8_t* const (&x)[kRows],
                                             const int8_t* b, const uint16_t* order, int64_t chained, int64_t quads) {
  const I16 ones = I16{} + 1;
  for (int64_t i = 0; i < chained; ++i, order += 2, b += 4 * kVecBytes) {
    const I8 b0 = load<I8>(b), b1 = load<I8>(b + kVecBytes);
    const I8 c0 = load<I8>(b + 2 * kVecBytes), c1 = load<I8>(b + 3 * kVecBytes);
    const int64_t p = int64_t{4} * order[0], q = int64_t{4} * order[1];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const I8 xp = bit_cast<I8>(broadcast_at(x[r] + p)), xq = bit_cast<I8>(broadcast_at(x[r] + q));
      sum[r][0] = dot2(sum[r][0], multiply_pairs(xp, b0) + multiply_pairs(xq, c0), ones);
      sum[r][1] = dot2(sum[r][1], multiply_pairs(xp, b1) + multiply_pairs(xq, c1), ones);
    }
  }
  for (int64_t i = 2 * chained; i < quads; ++i, ++order, b += 2 * kVecBytes) {
    const I8 b0 = load<I8>(b), b1 = load<I8>(b + kVecBytes);
    const int64_t p = int64_t{4} * order[0];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const I8 xp = bit_cast<I8>(broadcast_at(x[r] + p));
      sum[r][0] = dot2(sum[r][0], multiply_pairs(xp, b0), ones);
      sum[r][1] = dot2(sum[r][1], multiply_pairs(xp, b1), ones);
    }
  }
}

using ByteSpot = SpotOf<uint8_t>;
using ByteTapSpot = TapSpotOf<uint8_t>;

// The sums of kRows pixels over some lines of the filter, from `start`, to c.
template <int kRows = kByteMr>
inline void run_byte_tile(int64_t rows, const ByteSpot* spots, const BytePanel& panel, const Taps& lines,
                          const I32 (&start)[kNrVectors], int32_t* c) {
  if (rows != kRows) {
    if constexpr (kRows > 1) run_byte_tile<kRows - 1>(rows, spots, panel, lines, start, c);
    return;
  }
  I32 sum[kRows][kNrVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sum[r][0] = start[0], sum[r][1] = start[1];
  const int64_t quads = panel.groups, line_quads = panel.segments * quads;
  const int8_t* b = panel.weights + lines.begin * line_quads * 4 * kNr;
  const uint16_t* order = panel.byte_order.order + lines.begin * line_quads;
  const int32_t* chained = panel.byte_order.chained + lines.begin * panel.segments;
  for (int64_t line = lines.begin; line < lines.end; ++line) {
    for (int64_t s = 0; s < panel.segments; ++s, b += quads * 4 * kNr, order += quads, ++chained) {
      const int64_t at = line * panel.line + s * panel.tap;
      const uint8_t* x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = spots[r].x + at;
      add_quads<kRows>(sum, x, b, order, *chained, quads);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) store(c + r * kNr, sum[r][0]), store(c + r * kNr + kLanes, sum[r][1]);
}

// sums, kNr a pixel of the block, plus those of a tap, which start from `start`.
template <int kRows = kByteMr>
inline void run_byte_tap(int64_t rows, const ByteTapSpot* spots, const int8_t* b, const uint16_t* order,
                         int64_t chained, int64_t quads, const I32 (&start)[kNrVectors], int32_t* sums) {
  if (rows == kRows) {
    I32 sum[kRows][kNrVectors];
    const uint8_t* x[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int32_t* const at = sums + spots[r].pixel * kNr;
      sum[r][0] = load<I32>(at) + start[0], sum[r][1] = load<I32>(at + kLanes) + start[1];
      x[r] = spots[r].x;
    }
    add_quads<kRows>(sum, x, b, order, chained, quads);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      int32_t* const at = sums + spots[r].pixel * kNr;
      store(at, sum[r][0]), store(at + kLanes, sum[r][1]);
    }
  } else if constexpr (kRows > 1) {
    run_byte_tap<kRows - 1>(rows, spots, b, order, chained, quads, start, sums);
  }
}

struct DirectBytes : Direct {
  struct ByteSlot {
    uint8_t* x;
    int32_t* sums;
    ByteSpot* spots;
    int64_t* tap_counts;
    ByteTapSpot* tap_spots;
    // Of each pixel of x's lines the first entry, and of a line the end; the entries: quad of the line, bytes, sign.
    int32_t *firsts, *quads;
    uint32_t *bytes, *signs;
    ByteRun* runs;
    int32_t* counts;    // of each tile of kByteMr pixels
    ExcessItem* items;  // so many for each of the tile's pixels in turn
  };

  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const Slot slot = slot_at(memory);
    ByteSlot s;
    s.x = reinterpret_cast<uint8_t*>(slot.x), s.sums = slot.sums;
    s.spots = reinterpret_cast<ByteSpot*>(slot.spots), s.tap_counts = slot.tap_counts;
    s.tap_spots = reinterpret_cast<ByteTapSpot*>(slot.tap_spots);
    s.firsts = reinterpret_cast<int32_t*>(memory);
    s.quads = reinterpret_cast<int32_t*>(memory += conv_lines(4 * cut.firsts));
    s.bytes = reinterpret_cast<uint32_t*>(s.quads + cut.excess);
    s.signs = s.bytes + cut.excess;
    s.runs = reinterpret_cast<ByteRun*>(memory += conv_lines(kExcessBytes * cut.excess));
    s.counts = reinterpret_cast<int32_t*>(memory += conv_lines(kRunBytes * cut.runs));
    s.items = reinterpret_cast<ExcessItem*>(memory + conv_lines(4 * cut.tiles));
    const int64_t tasks = shape.groups * cut.row_blocks * cut.column_blocks * cut.chunks;
    int64_t gathered = -1, runs = -1;  // -1: the block is in words
    for (int64_t t = share(tasks, i, cut.slots); t < share(tasks, i + 1, cut.slots); ++t) {
      const int64_t group = t / cut.chunks / (cut.row_blocks * cut.column_blocks);
      const Block block = block_of(t);
      if (gathered != t / cut.chunks) {
        runs = gather_bytes(group, block, s) ? deal(block, s) : -1;
        if (runs < 0) gather(group, block, slot);
        gathered = t / cut.chunks;
      }
      if (runs < 0) {
        run_task<kind>(group, block, t % cut.chunks, slot);
      } else {
        run_bytes<kind>(group, runs, t % cut.chunks, s);
      }
    }
  }

 private:
  int64_t channels() const { return shape.c / shape.groups; }
  int64_t firsts_of_line(const Block& block) const { return line_pixels(shape, block.columns()) + 1; }

  // Low parts of a block's lines, and entries for the excess. False: there are too many.
  [[gnu::noinline]] bool gather_bytes(int64_t group, const Block& block, const ByteSlot& slot) const {
    const int32_t zero = plan.options.x_zero_point, padding = zero + byte_offset(zero);  // within [0, 127]
    const Lines lines{shape, cut, x + group * channels(), stride, 0};
    // Entries that the pixels so far may have: their share, and an eighth of all. A block with too many is left early.
    int64_t allowed = cut.excess / 8;
    int32_t count = 0;
    bool fit = true;
    lines.each(block, [&](int64_t line, const int8_t* from) {
      if (!fit) return;
      uint8_t* const to = slot.x + line * cut.line;
      int32_t* const first = slot.firsts + line * firsts_of_line(block);
      const auto pad = [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) first[j] = count;
        std::memset(to + begin * cut.pixel, padding, static_cast<size_t>((end - begin) * cut.pixel));
      };
      const int64_t width = firsts_of_line(block) - 1;
      if (from == nullptr) {
        pad(0, width);
      } else {
        Lines::Span span = lines.span(from, block);
        pad(0, span.begin);
        for (int64_t j = span.begin; j < span.end && fit; ++j, span.from += span.step) {
          first[j] = count;
          fit = count <= allowed && count + channels() / 2 + 8 <= cut.excess;
          allowed += channels() * kExcessShare / 64;
          if (fit) count = split(span.from, to + j * cut.pixel, static_cast<int32_t>(j * channels() / 4), count, slot);
        }
        pad(span.end, width);
      }
      first[width] = count;
    });
    if (fit) point(block, slot.x, slot.spots);
    if (fit && cut.by_taps) list_taps(block, slot.spots, slot.tap_counts, slot.tap_spots);
    return fit;
  }

  // A pixel, whose first quad is `quad` of its line, to its low part, and maybe bytes behind that; entries from `count`
  // on, and their new number.
  int32_t split(const int8_t* from, uint8_t* to, int32_t quad, int32_t count, const ByteSlot& slot) const {
    const int32_t zero = plan.options.x_zero_point, below = 128 - byte_offset(zero);
    const U8 down = U8{} + static_cast<uint8_t>(below), most = U8{} + 127;
    const auto above = [](U8 a, U8 b) { return (a > b ? a : b) - b; };  // or 0
    const auto note = [&](U8 bytes, int sign) {
      const unsigned some = lanes_set(bit_cast<I32>(bytes));
      const I32 lanes = to_i32(load<I8Quarter>(kLaneLists.lanes[some & 255]));
      store(slot.bytes + count, __builtin_shuffle(bit_cast<I32>(bytes), lanes));
      store(slot.quads + count, lanes + quad);
      store(slot.signs + count, I16{} + static_cast<int16_t>(sign));
      count += __builtin_popcount(some);
    };
    for (int64_t c = 0; c < channels(); c += kVecBytes, quad += kLanes) {
      I8 bytes;
      if (channels() - c >= kVecBytes) {
        bytes = load<I8>(from + c);
      } else {
        int8_t some[kVecBytes];
        std::memset(some, zero, sizeof some);
        for (int64_t j = 0; j < channels() - c; j += 4) std::memcpy(some + j, from + c + j, 4);
        bytes = load<I8>(some);
      }
      const auto high = bit_cast<U8>(bytes ^ static_cast<int8_t>(-128));  // x + 128
      const U8 least = above(high, down);
      store(to + c, least < most ? least : most);
      note(above(least, most), 1);
      if (below != 0) note(above(down, high), -1);
    }
    return count;
  }

  // The block's runs and their items. Returns the runs' number, or -1 if there are too many items.
  [[gnu::noinline]] int64_t deal(const Block& block, const ByteSlot& slot) const {
    const int64_t width = block.columns(), pixels = block.pixels();
    int64_t runs = 0;
    const auto add_runs = [&](int64_t first, int64_t count, int64_t most, const Taps& lines) {
      for (int64_t j = 0; j < count; j += most) slot.runs[runs++] = {first + j, min(most, count - j), lines, 0, 0};
    };
    if (cut.by_taps || !cut.in_rows) {
      add_runs(0, pixels, cut.by_taps ? pixels : kByteRun, {0, shape.r});
    } else {
      for (int64_t row = block.row; row < block.row_end; ++row) {
        const int64_t y = row % shape.p() * shape.stride_h - shape.pad_top;
        add_runs((row - block.row) * width, width, kByteRun, taps_within(y, shape.dilation_h, shape.r, shape.h));
      }
    }
    int64_t tiles = 0, items = 0;
    for (int64_t i = 0; i < runs; ++i) {
      ByteRun& run = slot.runs[i];
      run.tile = tiles, run.item = items;
      for (int64_t j = 0; j < run.pixels; j += kByteMr) {
        const int64_t count = deal_tile(block, run.first + j, min(kByteMr, run.pixels - j), slot.items + items,
                                        (cut.items - items) / kByteMr, slot);
        if (count < 0) return -1;
        slot.counts[tiles++] = static_cast<int32_t>(count);
        items += count * kByteMr;
      }
    }
    return runs;
  }

  // The items of `rows` pixels of the block, kByteMr side by side: how many for each, or -1 if that is more than
  // `most`.
  int64_t deal_tile(const Block& block, int64_t pixel, int64_t rows, ExcessItem* items, int64_t most,
                    const ByteSlot& slot) const {
    int64_t counts[kByteMr] = {}, count = 0;
    for (int64_t r = 0; r < rows; ++r) {
      counts[r] = deal_pixel(block, pixel + r, items + r, most, slot);
      if (counts[r] < 0) return -1;
      count = max(count, counts[r]);
    }
    for (int64_t r = 0; r < kByteMr; ++r) {
      for (int64_t i = counts[r]; i < count; ++i) items[i * kByteMr + r] = {};
    }
    return count;
  }

  int64_t deal_pixel(const Block& block, int64_t pixel, ExcessItem* items, int64_t most, const ByteSlot& slot) const {
    const int64_t row = block.row + pixel / block.columns(), column = pixel % block.columns();
    const int64_t line = first_line(shape, row) - first_line(shape, block.row);
    const int64_t x_pixel = shape.s == 1 ? column : column * shape.stride_w;
    const int64_t quads = channels() / 4, together = shape.dilation_w == 1 ? shape.s : 1;  // taps side by side
    int64_t count = 0;
    for (int64_t r = 0; r < shape.r; ++r) {
      const int32_t* const firsts = slot.firsts + (line + r * shape.dilation_h) * firsts_of_line(block);
      for (int64_t s = 0; s < shape.s; s += together) {
        const int64_t at = x_pixel + s * shape.dilation_w;
        const int32_t begin = firsts[at], end = firsts[at + together];
        if (count + end - begin > most) return -1;
        const auto move = static_cast<int32_t>((r * shape.s + s) * quads - at * quads);
        for (int32_t i = begin; i < end; ++i) {
          items[count++ * kByteMr] = {slot.quads[i] + move, slot.bytes[i], slot.signs[i]};
        }
      }
    }
    return count;
  }

  // What the sums of pieces [begin, end) of the filter start from.
  static void starts_of(const BytePanel& panel, int64_t begin, int64_t end, I32 (&start)[kNrVectors]) {
    for (int v = 0; v < kNrVectors; ++v) {
      const int32_t* const starts = panel.starts + v * kLanes;
      start[v] = bit_cast<I32>(load<U32>(starts + end * panel.columns) - load<U32>(starts + begin * panel.columns));
    }
  }

  // The products of excess. They come last, when the panel is near: they read it here and there.
  [[gnu::noinline]] void add_excess(const BytePanel& panel, const ByteRun& run, const ByteSlot& slot) const {
    const ExcessItem* item = slot.items + run.item;
    const int32_t* count = slot.counts + run.tile;
    for (int64_t j = 0; j < run.pixels; j += kByteMr, ++count) {
      if (*count == 0) continue;
      I32 sum[kByteMr][kNrVectors];
#pragma GCC unroll 4
      for (int r = 0; r < kByteMr; ++r) {
        const int32_t* const at = slot.sums + (j + r) * kNr;
        sum[r][0] = load<I32>(at), sum[r][1] = load<I32>(at + kLanes);
      }
      for (int32_t i = 0; i < *count; ++i, item += kByteMr) {
#pragma GCC unroll 4
        for (int r = 0; r < kByteMr; ++r) {
          const int8_t* const b = panel.weights + panel.byte_order.position[item[r].quad] * int64_t{4 * kNr};
          const auto bytes = bit_cast<I8>(broadcast_at(&item[r].bytes));
          const auto sign = bit_cast<I16>(broadcast_at(&item[r].sign));
          sum[r][0] = dot2(sum[r][0], multiply_pairs(bytes, load<I8>(b)), sign);
          sum[r][1] = dot2(sum[r][1], multiply_pairs(bytes, load<I8>(b + kVecBytes)), sign);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kByteMr; ++r) {
        store(slot.sums + (j + r) * kNr, sum[r][0]), store(slot.sums + (j + r) * kNr + kLanes, sum[r][1]);
      }
    }
  }

  template <Kind kind>
  void run_bytes(int64_t group, int64_t runs, int64_t chunk, const ByteSlot& slot) const {
    const Int8ConvLayout l(shape);
    const char* const packed = body + group * l.group_bytes();
    const auto* const weights = reinterpret_cast<const int8_t*>(packed + l.starts_bytes());
    const int64_t end = share(cut.panels, chunk + 1, cut.chunks);
    const auto panel_of = [&](int64_t j) {
      BytePanel panel{panel_at(group, j, weights + j * kNr * l.depth()), ReadByteOrder(l, packed, j)};
      panel.segments = l.pieces, panel.groups = l.piece / 4;
      return panel;
    };
    for (int64_t j = share(cut.panels, chunk, cut.chunks); j < end; j += cut.together) {
      const int64_t last = min(end, j + cut.together);
      for (int64_t i = 0; i < runs; ++i) {
        const ByteRun& run = slot.runs[i];
        for (int64_t p = j; p < last; ++p) {
          const BytePanel panel = panel_of(p);
          cut.by_taps ? run_taps<kind>(panel, run, slot) : run_tiles<kind>(panel, run, slot);
        }
      }
    }
  }

  template <Kind kind>
  [[gnu::noinline]] void run_tiles(const BytePanel& panel, const ByteRun& run, const ByteSlot& slot) const {
    const ByteSpot* const spots = slot.spots + run.first;
    I32 start[kNrVectors];
    starts_of(panel, run.lines.begin * panel.pieces, run.lines.end * panel.pieces, start);
    for (int64_t j = 0; j < run.pixels; j += kByteMr) {
      run_byte_tile(min(kByteMr, run.pixels - j), spots + j, panel, run.lines, start, slot.sums + j * kNr);
    }
    add_excess(panel, run, slot);
    put_sums<kind>(panel, slot.sums, spots, run.pixels);
  }

  template <Kind kind>
  [[gnu::noinline]] void run_taps(const BytePanel& panel, const ByteRun& run, const ByteSlot& slot) const {
    const int64_t quads = panel.groups;
    std::memset(slot.sums, 0, static_cast<size_t>(round_up(run.pixels, kByteMr) * kNr) * sizeof(int32_t));
    for (int64_t tap = 0; tap < shape.r * shape.s; ++tap) {
      const ByteTapSpot* const spots = slot.tap_spots + tap * run.pixels;
      I32 start[kNrVectors];
      starts_of(panel, tap, tap + 1, start);
      for (int64_t j = 0; j < slot.tap_counts[tap]; j += kByteMr) {
        run_byte_tap(min(kByteMr, slot.tap_counts[tap] - j), spots + j, panel.weights + tap * quads * 4 * kNr,
                     panel.byte_order.order + tap * quads, panel.byte_order.chained[tap], quads, start, slot.sums);
      }
    }
    add_excess(panel, run, slot);
    put_sums<kind>(panel, slot.sums, slot.spots, run.pixels);
  }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
