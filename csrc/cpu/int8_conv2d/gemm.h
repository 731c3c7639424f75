// Convolution of any shape but depthwise as a product: pixels x depth by depth x output channels, group by group.
//
//   pixels in blocks of ~96, output channels in chunks of ~256; a task is a block x a chunk of a group. A thread takes
//   a run of tasks, block by block, and gathers the pixels of a block once: r * s copies of each byte of x, in L2. in a
//   task: for each block of the depth, for each panel of channels, for each tile of pixels: kMr x kNr sums in
//   registers, from what they start from to the epilogue.
//
// Gathering costs a load and a store for 64 bytes (pairs: 2 * kLanes), the products of these bytes k / kNr times as
// many tiles; so it disappears where there are many output channels.
#pragma once

#include "cpu/int8_conv2d/epilogue.h"
#include "cpu/int8_conv2d/gather.h"
#include "cpu/int8_matmul/microkernel.h"
#include "cpu/int8_matmul/pack_b.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

// From this many tiles a block on, a panel is widened to 16 bits beforehand.
constexpr int64_t kConvTilesToWiden = 3;

// c[r][0..kNr) = start + sum over groups of a[r] . b; `start` moves by `start_step` a row: 0, or kNr where it is c.
template <int kRows, class BValue>
inline void conv_tile(const AValue* a, const BValue* b, int64_t groups, const int32_t* start, int64_t start_step,
                      int32_t* c) {
  I32 sum[kRows][kNrVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kNrVectors; ++v) sum[r][v] = load<I32>(start + r * start_step + v * kLanes);
  }
  add_products<kRows>(sum, [&](int r) { return a + r * kARow; }, b, groups);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kNrVectors; ++v) store(c + r * kNr + v * kLanes, sum[r][v]);
  }
}

template <class BValue, int kRows = kMr>
inline void run_conv_tile(int64_t rows, const AValue* a, const BValue* b, int64_t groups, const int32_t* start,
                          int64_t start_step, int32_t* c) {
  if (rows == kRows) {
    conv_tile<kRows>(a, b, groups, start, start_step, c);
  } else if constexpr (kRows > 1) {
    run_conv_tile<BValue, kRows - 1>(rows, a, b, groups, start, start_step, c);
  }
}

struct ConvSlot {
  AValue* a;
  int32_t* sums;
  int16_t* wide;
  Pixel* pixels;
};

struct Product {
  const Int8ConvPlan& plan;
  const ConvShape& shape;
  const Int8ConvBlocking& cut;
  const int8_t* x;
  int64_t stride[4];  // of x, with adjacent channels
  const char* body;
  Finish epilogue;

  int64_t pixels() const { return shape.n * shape.p() * shape.q(); }
  int64_t tile_begin(int64_t tile) const { return share(pixels(), tile, cut.tiles); }

  const int8_t* x_end() const {
    return x + (shape.n - 1) * stride[0] + (shape.h - 1) * stride[2] + (shape.w - 1) * stride[3] + shape.c;
  }

  void gather(int64_t group, int64_t first, int64_t rows, const ConvSlot& slot) const {
    const int64_t channels = shape.c / shape.groups, p = shape.p(), q = shape.q();
    const Gatherer g{slot.a, rows, static_cast<AValue>(plan.options.x_zero_point + kAOffset), x_end(),
                     cut.depth_blocks == 1};
    // The last groups of a row may lie beyond the depth: the weight has zeros there.
    if (cut.depth % kPackedRows != 0) {
      const int64_t from = cut.depth / kPackedRows * kPackedRows;
      for (int64_t r = 0; r < rows; ++r) std::memset(g.at(r, from), 0, kPackedRows * sizeof(AValue));
    }
    int64_t column = first % q, row = first / q % p, n = first / q / p;
    for (int64_t i = 0; i < rows; ++i) {
      gather_pixel(g, shape, x + n * stride[0] + group * channels, stride, row, column, i);
      slot.pixels[i] = pixel_at(plan, n, row, column);
      if (++column == q) {
        column = 0;
        if (++row == p) row = 0, ++n;
      }
    }
  }

  template <Kind kind>
  void finish_tile(int64_t group, const int32_t* sums, const Pixel* pixels, int64_t rows, int64_t panel) const {
    const int64_t columns = shape.k / shape.groups;
    for (int v = 0; v < kNrVectors; ++v) {
      const int64_t j = panel * kNr + v * kLanes, count = smaller(kLanes, columns - j);
      if (count <= 0) return;
      const int64_t padded = group * round_up(columns, kPackedColumns) + j, channel = group * columns + j;
      const Channels<kind> channels(epilogue, padded, channel, count);
      for (int64_t r = 0; r < rows; ++r) channels.put(load<I32>(sums + r * kNr + v * kLanes), pixels[r]);
    }
  }

  template <Kind kind, class BValue>
  void tiles_of_panel(int64_t group, int64_t block, const ConvSlot& slot, int64_t kb, const BValue* b, int64_t depth,
                      int64_t panel, const int32_t* start, int32_t* sums) const {
    const int64_t begin = share(cut.tiles, block, cut.blocks), end = share(cut.tiles, block + 1, cut.blocks);
    const int64_t first = tile_begin(begin), rows_of_block = tile_begin(end) - first;
    const AValue* const a = slot.a + kb * rows_of_block * kARow;
    const bool is_first = kb == 0, is_last = kb + 1 >= cut.depth_blocks;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t local = tile_begin(t) - first, rows = tile_begin(t + 1) - first - local;
      int32_t* const c = sums + (is_first && is_last ? 0 : local * kNr);
      run_conv_tile(rows, a + local * kARow, b, depth / kGroup, is_first ? start : c, is_first ? 0 : kNr, c);
      if (is_last) finish_tile<kind>(group, c, slot.pixels + local, rows, panel);
    }
  }

  template <Kind kind>
  void run_task(int64_t group, int64_t block, int64_t chunk, const ConvSlot& slot) const {
    const int64_t columns = shape.k / shape.groups;
    const Int8ConvLayout layout(shape);
    const PackedB b{cut.depth, columns};
    const char* const packed = body + group * layout.group_bytes();
    const auto* const starts = reinterpret_cast<const int32_t*>(packed);
    const auto* const panels = reinterpret_cast<const int8_t*>(packed + 4 * b.columns());
    const int64_t begin = share(cut.panels, chunk, cut.chunks),
                  end = share(cut.panels, chunk + 1, cut.chunks);
    const int64_t tiles = share(cut.tiles, block + 1, cut.blocks) - share(cut.tiles, block, cut.blocks);
    const int64_t rows =
        tile_begin(share(cut.tiles, block + 1, cut.blocks)) - tile_begin(share(cut.tiles, block, cut.blocks));
    for (int64_t kb = 0; kb < larger(1, cut.depth_blocks); ++kb) {
      const int64_t depth = cut.depth_blocks == 0 ? 0 : b.depth(kb);
      for (int64_t j = begin; j < end; ++j) {
        const int8_t* const panel = panels + b.offset(kb, j);
        int32_t* const sums = slot.sums + (cut.depth_blocks > 1 ? (j - begin) * rows * kNr : 0);
        if (!kDot4 && tiles >= kConvTilesToWiden) {
          widen_panel(panel, depth, slot.wide);
          tiles_of_panel<kind>(group, block, slot, kb, slot.wide, depth, j, starts + j * kNr, sums);
        } else {
          tiles_of_panel<kind>(group, block, slot, kb, panel, depth, j, starts + j * kNr, sums);
        }
      }
    }
  }

  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    ConvSlot slot;
    slot.a = reinterpret_cast<AValue*>(memory);
    slot.sums = reinterpret_cast<int32_t*>(memory += cut.a_bytes);
    slot.wide = reinterpret_cast<int16_t*>(memory += cut.sums_bytes);
    slot.pixels = reinterpret_cast<Pixel*>(memory += cut.wide_bytes);
    const int64_t tasks = shape.groups * cut.blocks * cut.chunks;
    int64_t gathered = -1;
    for (int64_t t = share(tasks, i, cut.slots); t < share(tasks, i + 1, cut.slots); ++t) {
      const int64_t block = t / cut.chunks % cut.blocks, group = t / cut.chunks / cut.blocks;
      if (gathered != t / cut.chunks) {
        const int64_t first = tile_begin(share(cut.tiles, block, cut.blocks));
        gather(group, first, tile_begin(share(cut.tiles, block + 1, cut.blocks)) - first, slot);
        gathered = t / cut.chunks;
      }
      run_task<kind>(group, block, t % cut.chunks, slot);
    }
  }
};

inline void pack_gemm(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body,
                      const Executor& executor) {
  const Int8ConvLayout layout(s);
  const int64_t columns = s.k / s.groups;
  for (int64_t g = 0; g < s.groups; ++g) {
    char* const to = body + g * layout.group_bytes();
    pack_all({weight + g * columns * layout.depth, 1, layout.depth, layout.depth, columns}, to, executor);
    auto* const starts = reinterpret_cast<int32_t*>(to);
    const auto offset = static_cast<uint32_t>(kAOffset + x_zero_point);  // modulo 2^32, as the sums are
    for (int64_t j = 0; j < layout.columns; ++j) {
      starts[j] = static_cast<int32_t>(0u - offset * static_cast<uint32_t>(starts[j]));
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
