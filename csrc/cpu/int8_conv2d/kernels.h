// The table of int8 convolution, one per ISA, and the packed form.
//
// A blob is the header; scale and bias of each column, with 1 and -0 where there are none, for x + -0 is x; the table;
// and what the algorithm packs. For each group that is what each sum starts from, and the panels of int8_matmul, each
// with the whole depth. The depth is cut into pieces, filled up to kPackedRows: the lines of the filter, or its taps
// where those are dilated, or where there are so many channels that taps beyond x may be left out one by one. Starts
// are those of the filter's first i pieces: -(offset + x_zero_point) * the sum of their weights; so some can be left
// out. Where byte_pairs.h may do it, the order of the panels' quads follows. For depthwise it is the starts and then
// the taps, a channel a 32-bit lane, or quads of them. The columns of a group are rounded up to kPackedColumns. Behind
// all that there may be what winograd.h packs: starts and filters.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/int8_matmul/kernels.h"
#include "pykernels/int8_conv2d.h"

namespace pk {

// What a blob has for winograd.h. Does not fit: sums of some filter might take more than 26 bits.
enum class WinogradForm : int32_t { none, packed, does_not_fit };

struct Int8ConvHeader {
  char magic[8];
  uint32_t version;
  uint32_t layout;   // Int8ConvKernels::layout
  int64_t products;  // of a pixel's sums, as `pykernels/ops/_flops.py` reads it
  ConvShape shape;   // n, h and w are 0; groups may have been merged
  Int8ConvOptions options;
  int32_t has_table;
  WinogradForm winograd;
  int32_t fits_int32;  // no t of an int8 output is NaN or leaves int32, whatever x and an int8 residual are
  char reserved[60];
};
static_assert(sizeof(Int8ConvHeader) == 256);

inline constexpr char kInt8ConvMagic[8] = {'P', 'K', 'I', '8', 'C', 'O', 'N', 'V'};
inline constexpr uint32_t kInt8ConvVersion = 4;

// May an algorithm go through the filter tap by tap?
static constexpr bool has_taps(const ConvShape& s) {
  const int64_t channels = s.c / s.groups;
  return channels >= 128 && channels % kPackedRows == 0;
}
static constexpr bool is_depthwise(const ConvShape& s) { return s.groups == s.c && s.k == s.c && s.c > 1; }
// May byte_pairs.h do it, on the ISAs that have it? Quads of channels then never lie in two pixels, and there are
// enough products for what a pixel costs.
static constexpr bool has_byte_pairs(const ConvShape& s) {
  const int64_t channels = s.c / s.groups;
  return !is_depthwise(s) && channels >= 64 && channels % 4 == 0 && channels * s.r * s.s >= 128 && s.k / s.groups >= 64;
}

namespace {  // what it has is compiled for each ISA

// Winograd's form is eight times the bytes of the direct one, too many to read from memory for small maps: 512 -> 512
// @7 takes as long with 19 MB as direct with 2.4, and less only where nothing else wants the cache.
constexpr int64_t kWinogradBytes = 6 << 20;

constexpr int64_t winograd_starts_bytes(const ConvShape& s) { return 4 * round_up(s.k, kPackedColumns); }
constexpr int64_t winograd_bytes(const ConvShape& s) {
  return winograd_starts_bytes(s) + 72 * s.c * round_up(s.k, kPackedColumns);
}
constexpr bool has_winograd(const ConvShape& s) {
  return s.r == 3 && s.s == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1 &&
         s.groups == 1 && s.c >= 32 && s.c % 32 == 0 && s.k >= 32 && s.c * s.k <= kWinogradBytes / 72;
}

// The 4x4 tiles of the output of all images.
struct WinogradTiles {
  int64_t across, down, images;

  explicit WinogradTiles(const ConvShape& s)
      : across(ceil_div(s.q(), int64_t{4})), down(ceil_div(s.p(), int64_t{4})), images(s.n) {}
  constexpr int64_t count() const { return across * down * images; }
  constexpr int64_t image(int64_t tile) const { return tile / (across * down); }
  constexpr int64_t row(int64_t tile) const { return tile / across % down * 4; }
  constexpr int64_t column(int64_t tile) const { return tile % across * 4; }
};

// Where the parts of a blob lie.
struct Int8ConvLayout {
  bool depthwise, byte_pairs;
  int64_t groups, taps, lines, pieces, piece, columns;  // pieces of a line, a piece's depth; of a group, rounded up

  constexpr explicit Int8ConvLayout(const ConvShape& s)
      : depthwise(is_depthwise(s)),
        byte_pairs(has_byte_pairs(s)),
        groups(depthwise ? 1 : s.groups),
        taps(s.r * s.s),
        lines(s.r),
        pieces(s.dilation_w != 1 || has_taps(s) ? s.s : 1),
        piece(round_up(s.c / s.groups * s.s / pieces, kPackedRows)),
        columns(round_up(depthwise ? s.c : s.k / s.groups, kPackedColumns)) {}

  constexpr int64_t scale_at() const { return sizeof(Int8ConvHeader); }
  constexpr int64_t bias_at() const { return scale_at() + 4 * groups * columns; }
  constexpr int64_t table_at() const { return bias_at() + 4 * groups * columns; }
  constexpr int64_t body_at() const { return table_at() + 256; }
  constexpr int64_t line_depth() const { return pieces * piece; }
  constexpr int64_t depth() const { return lines * line_depth(); }
  constexpr int64_t starts_bytes() const { return 4 * columns * (lines * pieces + 1); }
  constexpr int64_t group_bytes() const {
    // depthwise_quads.h has two blocks of 64 numbers for fewer than 64 channels.
    return depthwise ? 4 * (columns <= 64 ? 128 : round_up(columns, 64)) * (1 + taps)
                     : orders_at() + (byte_pairs ? round_up(columns / 16 * order_bytes(), 64) : 0);
  }
  // Of a group: how byte_pairs.h orders the quads of each panel of 16 columns.
  constexpr int64_t orders_at() const { return starts_bytes() + columns * depth(); }
  constexpr int64_t order_bytes() const { return 4 * (lines * pieces + depth() / 4); }
  constexpr int64_t winograd_at() const { return body_at() + groups * group_bytes(); }
};

// How depthwise_quads.h cuts a depthwise filter: into quads of lines, for some rows of the output that share them; and
// its channels, into blocks. `phases`: which columns of x, modulo the stride, it reads; `reach`: how many strides the
// last tap is behind the first one.
struct QuadShape {
  int64_t quads, rows, s, blocks, phases, reach;

  constexpr explicit QuadShape(const ConvShape& shape)
      : quads(ceil_div(shape.r, 4)),
        rows(1),
        s(shape.s),
        blocks(shape.c >= 64  ? ceil_div(shape.c, 64)
               : shape.c > 32 ? 2
                              : ceil_div(shape.c, shape.c == 32 ? 32 : 16)),
        phases((s - 1) * shape.dilation_w + 1),
        reach((s - 1) * shape.dilation_w / shape.stride_w) {
    if (shape.dilation_h == 1 && 4 * quads - shape.r >= shape.stride_h) rows = 2;
    if (phases > shape.stride_w) phases = shape.stride_w;
  }
  constexpr int64_t bytes() const { return 256 * (1 + rows * quads * s); }  // of a block, whose starts come first
};
// Channels that a block has: 64 of a pixel, or 32 or 16 of each of two or four pixels. The last block of a line begins
// earlier, and writes some channels twice.
struct QuadBlock {
  int64_t channel, unit;
};
constexpr QuadBlock quad_block(int64_t c, int64_t block) {
  if (64 * (block + 1) <= c) return {64 * block, 64};
  if (c < 64) {
    const int64_t unit = c >= 32 ? 32 : 16;
    return {block == 0 ? 0 : c - unit, unit};
  }
  const int64_t left = c % 64, unit = left <= 16 ? 16 : left <= 32 ? 32 : 64;
  return {c - unit, unit};
}
static constexpr bool has_quads(const ConvShape& s) { return is_depthwise(s) && s.r >= 3 && s.c >= 16; }

constexpr int64_t packed_bytes(const ConvShape& s, WinogradForm winograd) {
  return Int8ConvLayout(s).winograd_at() + (winograd == WinogradForm::none ? 0 : winograd_bytes(s));
}

}  // namespace

// What choose.h must know of an ISA.
struct Int8ConvTiling {
  int64_t mr, nr, value_bytes;  // of a value of x, as the product reads it
  bool widens;                  // a panel to 16 bits before many tiles read it
  int64_t word_cost;            // of a product of 16-bit words, in products of what direct.h multiplies
  bool quads, byte_pairs;       // has depthwise_quads.h, byte_pairs.h
};

struct Int8ConvKernels {
  uint32_t layout;
  Int8ConvTiling tiling;
  void (*run)(const Int8ConvPlan&, char* workspace, const Executor&);  // of an output that is not empty
  // weight: (groups, columns, depth), dense, for depthwise (c, r * s); `body` is the blob from body_at on.
  void (*pack)(const ConvShape&, int32_t x_zero_point, const int8_t* weight, char* body, const Executor&);
  // Of filters that has_winograd, to winograd_bytes.
  void (*pack_winograd)(const ConvShape&, int32_t x_zero_point, const int8_t* weight, char* to, const Executor&);
};

PK_DECLARE_TABLES(Int8ConvKernels, int8_conv_kernels)
PK_DECLARE_DOT4_TABLE(Int8ConvKernels, int8_conv_kernels)

}  // namespace pk
