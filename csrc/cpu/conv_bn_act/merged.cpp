// Convolution of few channels in one group, as a network begins with: filter rows of s * c values that are adjacent.
//
// Rows of x go through a ring in L1, as float32 with adjacent channels and the padding's zeros beside them, whatever
// the layout of x. There a filter row is one tap of s * c channels (s taps of c where it is dilated), and the pixels of
// a tile lie a constant step apart. Rows of x that lie so themselves are read in place by tiles that meet no padding at
// their sides; then the ring gets only what the other tiles of a row read.
//
//   threads: images x strips of rows of y
//   row of y, in pieces of kChunk pixels     panel: kPanel output channels; tile: kTilePixels pixels in registers
//
// Weight: [panel][row][column][channel][output channel of the panel], the last panel one vector wide where that is
// enough.
#include "common/rounding.h"
#include "cpu/conv_bn_act/chain.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/nhwc.h"
#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kPixels = 96;             // of a row that are finished at a time
constexpr int64_t kThreadWork = 256 << 10;  // products that are worth waking a thread for

struct MergedTile {
  const float* const* rows;  // [taps]: under the tap, of pixel 0
  int64_t taps, run;
  int64_t at, step;  // the tile's first pixel, and from a pixel to the next, in floats
  const float* weight;
  float* sums;  // [pixels][NV * kLanes]
  const int64_t* y_at;
  const int64_t* residual_at;
  int64_t k0, count;
};

// kStep: of an image of three channels, whose columns are then adjacent to each other; 0: any. The compiler works out a
// number of addresses ahead where it does not know it.
template <int MR, int NV, int kStep>
void run_merged(const MergedTile& t, const Epilogue& e) {
  constexpr int64_t kRow = NV * kLanes;
  F32 acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[i][v] = F32{};
  const float* w = t.weight;
  const int64_t step = kStep > 0 ? kStep : t.step, run = t.run;
  constexpr int kUnrolled = kStep > 0 && kRegisters > 16 ? 3 : 1;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const float* x = t.rows[tap] + t.at;
    for (int64_t c = 0; c < run; c += kUnrolled, x += kUnrolled, w += kUnrolled * kRow) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnrolled; ++u) {
        F32 weight[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) weight[v] = load<F32>(w + u * kRow + v * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const F32 value = broadcast(x[u + i * step]);
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) acc[i][v] = fma(value, weight[v], acc[i][v]);
        }
      }
    }
  }
  if (e.in_registers && t.count == kRow) return finish_tile<MR, NV, true>(acc, e, t.y_at, t.residual_at, t.k0, kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(t.sums + i * kRow + v * kLanes, acc[i][v]);
}

using MergedFunction = void (*)(const MergedTile&, const Epilogue&);

struct MergedTiles {
  MergedFunction of[kTilePixels];  // [pixels - 1]
};
template <int NV, int kStep, int... i>
constexpr MergedTiles merged_tiles(std::integer_sequence<int, i...>) {
  return {{run_merged<i + 1, NV, kStep>...}};
}
template <int NV, int kStep>
constexpr MergedTiles kMerged = merged_tiles<NV, kStep>(std::make_integer_sequence<int, kTilePixels>());

// Of a panel of so many vectors.
const MergedTiles& merged_of(int64_t vectors, int64_t c, int64_t step) {
  if (c == 3 && step == 3) return vectors == 1 ? kMerged<1, 3> : kMerged<2, 3>;
  if (c == 3 && step == 6) return vectors == 1 ? kMerged<1, 6> : kMerged<2, 6>;
  return vectors == 1 ? kMerged<1, 0> : kMerged<2, 0>;
}

struct Plan {
  int64_t panels, width, ring;  // columns and rows of the ring
  int64_t taps, run;
  int64_t strips, threads;
  int64_t ring_bytes, row_bytes, slot_bytes;

  Plan(const ConvArgs& args, int most_threads) {
    const ConvShape& shape = args.shape;
    const int64_t p = shape.p(), q = shape.q();
    panels = ceil_div(shape.k, kPanel);
    width = max((q - 1) * shape.stride_w + (shape.s - 1) * shape.dilation_w + 1, shape.pad_left + shape.w);
    ring = min(shape.h, (shape.r - 1) * shape.dilation_h + 1);
    const bool joined = shape.dilation_w == 1;
    taps = joined ? shape.r : shape.r * shape.s;
    run = joined ? shape.s * shape.c : shape.c;
    const int64_t work = shape.n * p * q * shape.k * shape.c * shape.r * shape.s;
    threads = max(1, min(most_threads, work / kThreadWork));
    strips = shape.n % threads == 0 ? 1 : min(p, threads);
    row_bytes = round_up(width * shape.c * 4, kConvAlign);
    ring_bytes = ring * row_bytes;
    slot_bytes = ring_bytes + row_bytes + round_up(2 * taps * 8, kConvAlign);
  }
};
static_assert(sizeof(Plan) <= kConvBlockingBytes);

int64_t make_plan(const ConvArgs& args, int threads, void* blocking) {
  const Plan plan(args, threads);
  std::memcpy(blocking, &plan, sizeof plan);
  return plan.threads * plan.slot_bytes;
}

int64_t packed_floats(const ConvShape& shape) { return round_up(shape.k, kLanes) * shape.r * shape.s * shape.c; }

template <class T>
void pack_as(const ConvShape& shape, const T* from, const ConvTensor& weight, float* packed) {
  for (int64_t k0 = 0; k0 < shape.k; k0 += kPanel) {
    const int64_t row = min(kPanel, round_up(shape.k - k0, kLanes));
    for (int64_t r = 0; r < shape.r; ++r) {
      for (int64_t s = 0; s < shape.s; ++s) {
        for (int64_t c = 0; c < shape.c; ++c) {
          const int64_t at = c * weight.stride[1] + r * weight.stride[2] + s * weight.stride[3];
          for (int64_t k = k0; k < k0 + row; ++k) {
            *packed++ = k < shape.k ? widen(from[k * weight.stride[0] + at]) : 0.0f;
          }
        }
      }
    }
  }
}

void pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor&) {
  if (dtype == DType::f32) {
    pack_as(shape, static_cast<const float*>(weight.data), weight, packed);
  } else {
    pack_as(shape, static_cast<const bf16_t*>(weight.data), weight, packed);
  }
}

// Where pixels [q, q + pixels) of row p begin.
inline void step_along(const int64_t (&stride)[4], int64_t image, int64_t p, int64_t q, int64_t pixels, int64_t* at) {
  const int64_t step = stride[3];
  int64_t next = image * stride[0] + p * stride[2] + q * step;
  for (int64_t i = 0; i < pixels; ++i, next += step) at[i] = next;
}

// Rows [begin, end) of one image's y.
struct Strip {
  const ConvArgs& args;
  const ConvShape& shape;
  const Plan& plan;
  const Epilogue& epilogue;
  const float* weight;
  char* slot;  // the ring, a row of zeros, the taps' pointers into the ring and into x

  float* ring_row(int64_t h) const {
    return reinterpret_cast<float*>(slot + (h >= 0 && h < shape.h ? h % plan.ring * plan.row_bytes : plan.ring_bytes));
  }

  // Columns [begin, end).
  void fill(int64_t image, int64_t h, int64_t begin, int64_t end) {
    const ConvTensor& x = args.x;
    float* row = ring_row(h) + (shape.pad_left + begin) * shape.c;
    const int64_t from = image * x.stride[0] + h * x.stride[2] + begin * x.stride[3], columns = end - begin;
    if (args.dtype == DType::f32) {
      copy_row(row, shape.c, columns, shape.c, static_cast<const float*>(x.data) + from, x.stride[3], x.stride[1]);
    } else {
      copy_row(row, shape.c, columns, shape.c, static_cast<const bf16_t*>(x.data) + from, x.stride[3], x.stride[1]);
    }
  }

  // Of the tiles of a row: the one that begins with pixel `first`.
  bool is_inside(int64_t first, int64_t size) const {
    const int64_t begin = first * shape.stride_w - shape.pad_left;
    return begin >= 0 && begin + (size - 1) * shape.stride_w + (shape.s - 1) * shape.dilation_w < shape.w;
  }

  // The columns that tiles read through the ring: [0, left) and [right, w).
  void outside(int64_t* left, int64_t* right) const {
    *left = 0, *right = shape.w;
    for (int64_t q0 = 0; q0 < shape.q(); q0 += kPixels) {
      each_tile(min(kPixels, shape.q() - q0), [&](int64_t first, int64_t size) {
        if (is_inside(q0 + first, size)) return;
        const int64_t begin = (q0 + first) * shape.stride_w - shape.pad_left;
        const int64_t end = begin + (size - 1) * shape.stride_w + (shape.s - 1) * shape.dilation_w + 1;
        if (begin < 0) *left = max(*left, min(end, shape.w));
        if (end > shape.w) *right = min(*right, max(begin, 0));
      });
    }
    if (*left > *right) *left = *right = shape.w;
  }

  // body(first pixel, pixels) for the tiles of pixels [0, pixels), the larger ones first.
  template <class Body>
  static void each_tile(int64_t pixels, const Body& body) {
    const int64_t tiles = ceil_div(pixels, kTilePixels), small = pixels / tiles, larger = pixels % tiles;
    for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
      const int64_t size = small + (tile < larger);
      body(first, size);
      first += size;
    }
  }

  void run(int64_t image, int64_t begin, int64_t end) {
    const int64_t q_size = shape.q(), step = shape.stride_w * shape.c;
    auto* rows = reinterpret_cast<const float**>(slot + plan.ring_bytes + plan.row_bytes);
    const float** const rows_inside = rows + plan.taps;
    const bool lies_well = args.dtype == DType::f32 && args.x.stride[1] == 1 && args.x.stride[3] == shape.c;
    int64_t left = shape.w, right = shape.w;
    if (lies_well) outside(&left, &right);
    alignas(64) float sums[kPixels * kPanel];
    int64_t y_at[kPixels], residual_at[kPixels];
    int64_t filled = 0;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t h0 = p * shape.stride_h - shape.pad_top;
      const int64_t h1 = min(h0 + (shape.r - 1) * shape.dilation_h + 1, shape.h);
      for (filled = max(filled, h0); filled < h1; ++filled) {
        fill(image, filled, 0, left);
        fill(image, filled, right, shape.w);
      }
      for (int64_t tap = 0; tap < plan.taps; ++tap) {
        const int64_t r = tap * shape.r / plan.taps, s = tap % (plan.taps / shape.r);
        const int64_t h = h0 + r * shape.dilation_h, column = s * shape.dilation_w;
        rows[tap] = ring_row(h) + column * shape.c;
        // From the ring where it holds zeros alone.
        const bool in_place = lies_well && h >= 0 && h < shape.h;
        const auto* x = static_cast<const float*>(args.x.data) + image * args.x.stride[0] + h * args.x.stride[2];
        rows_inside[tap] = in_place ? x + (column - shape.pad_left) * shape.c : rows[tap];
      }
      for (int64_t q0 = 0; q0 < q_size; q0 += kPixels) {
        const int64_t pixels = min(kPixels, q_size - q0);
        step_along(args.y_stride, image, p, q0, pixels, y_at);
        if (epilogue.residual) step_along(args.residual.stride, image, p, q0, pixels, residual_at);
        for (int64_t k0 = 0; k0 < shape.k; k0 += kPanel) {
          const int64_t row = min(kPanel, round_up(shape.k - k0, kLanes)), count = min(row, shape.k - k0);
          const MergedTiles& table = merged_of(row / kLanes, shape.c, step);
          const float* w = weight + k0 * shape.r * shape.s * shape.c;
          MergedTile t = {rows, plan.taps, plan.run, 0, step, w, sums, y_at, residual_at, k0, count};
          each_tile(pixels, [&](int64_t first, int64_t size) {
            t.at = (q0 + first) * step;
            t.rows = lies_well && is_inside(q0 + first, size) ? rows_inside : rows;
            t.sums = sums + first * row;
            t.y_at = y_at + first;
            t.residual_at = residual_at + first;
            table.of[size - 1](t, epilogue);
          });
          if (epilogue.in_registers && count == row) continue;
          finish(epilogue, {sums, row, pixels, y_at, residual_at, k0, count});
        }
      }
    }
  }
};

void run(const void* blocking, const ConvArgs& args, const float* weight, char* workspace, const Executor& executor) {
  const ConvShape& shape = args.shape;
  const Plan& plan = *static_cast<const Plan*>(blocking);
  const Epilogue epilogue = make_epilogue(args);
  const int64_t units = shape.n * plan.strips, parts = min(plan.threads, units);
  parallel_for(executor, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Strip strip = {args, shape, plan, epilogue, weight, workspace + i * plan.slot_bytes};
      std::memset(strip.slot, 0, static_cast<size_t>(plan.ring_bytes + plan.row_bytes));
      for (int64_t unit = i * units / parts; unit < (i + 1) * units / parts; ++unit) {
        const int64_t at = unit % plan.strips;
        strip.run(unit / plan.strips, at * shape.p() / plan.strips, (at + 1) * shape.p() / plan.strips);
      }
    }
  });
}

}  // namespace

extern const ConvMethod conv_merged;
const ConvMethod conv_merged = {packed_floats, pack, make_plan, run, run_conv_chain};

}  // namespace PK_ISA
}  // namespace pk
