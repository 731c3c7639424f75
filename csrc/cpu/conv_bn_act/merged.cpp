// Convolution of few channels in one group, as a network begins with: filter rows of s * c values that are adjacent.
//
// Rows of x go through a ring in L1, as float32 with adjacent channels and the padding's zeros beside them, whatever
// the layout of x. There a filter row is one tap of s * c channels (s taps of c where it is dilated), and the pixels of
// a tile lie a constant step apart.
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

template <int MR, int NV>
void run_merged(const MergedTile& t, const Epilogue& e) {
  constexpr int64_t kRow = NV * kLanes;
  F32 acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[i][v] = F32{};
  const float* w = t.weight;
  const int64_t step = t.step, run = t.run;
  for (int64_t tap = 0; tap < t.taps; ++tap) {
    const float* x = t.rows[tap] + t.at;
    for (int64_t c = 0; c < run; ++c, ++x, w += kRow) {
      F32 weight[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) weight[v] = load<F32>(w + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const F32 value = broadcast(x[i * step]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[i][v] = fma(value, weight[v], acc[i][v]);
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
template <int NV, int... i>
constexpr MergedTiles merged_tiles(std::integer_sequence<int, i...>) {
  return {{run_merged<i + 1, NV>...}};
}
constexpr MergedTiles kMerged[2] = {merged_tiles<1>(std::make_integer_sequence<int, kTilePixels>()),
                                    merged_tiles<2>(std::make_integer_sequence<int, kTilePixels>())};

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
    slot_bytes = ring_bytes + row_bytes + round_up(taps * 8, kConvAlign);
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

// Rows [begin, end) of one image's y.
struct Strip {
  const ConvArgs& args;
  const ConvShape& shape;
  const Plan& plan;
  const Epilogue& epilogue;
  const float* weight;
  char* slot;  // the ring, a row of zeros, the taps' pointers

  float* ring_row(int64_t h) const {
    return reinterpret_cast<float*>(slot + (h >= 0 && h < shape.h ? h % plan.ring * plan.row_bytes : plan.ring_bytes));
  }

  void fill(int64_t image, int64_t h) {
    const ConvTensor& x = args.x;
    float* row = ring_row(h);
    const int64_t from = image * x.stride[0] + h * x.stride[2], before = shape.pad_left * shape.c;
    if (args.dtype == DType::f32) {
      copy_row(row + before, shape.c, shape.w, shape.c, static_cast<const float*>(x.data) + from, x.stride[3],
               x.stride[1]);
    } else {
      copy_row(row + before, shape.c, shape.w, shape.c, static_cast<const bf16_t*>(x.data) + from, x.stride[3],
               x.stride[1]);
    }
  }

  void run(int64_t image, int64_t begin, int64_t end) {
    const int64_t q_size = shape.q(), step = shape.stride_w * shape.c;
    auto* rows = reinterpret_cast<const float**>(slot + plan.ring_bytes + plan.row_bytes);
    alignas(64) float sums[kPixels * kPanel];
    int64_t y_at[kPixels], residual_at[kPixels];
    int64_t filled = 0;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t h0 = p * shape.stride_h - shape.pad_top;
      const int64_t h1 = min(h0 + (shape.r - 1) * shape.dilation_h + 1, shape.h);
      for (filled = max(filled, h0); filled < h1; ++filled) fill(image, filled);
      for (int64_t tap = 0; tap < plan.taps; ++tap) {
        const int64_t r = tap * shape.r / plan.taps, s = tap % (plan.taps / shape.r);
        rows[tap] = ring_row(h0 + r * shape.dilation_h) + s * shape.dilation_w * shape.c;
      }
      for (int64_t q0 = 0; q0 < q_size; q0 += kPixels) {
        const int64_t pixels = min(kPixels, q_size - q0), tiles = ceil_div(pixels, kTilePixels);
        for (int64_t i = 0; i < pixels; ++i) {
          y_at[i] = image * args.y_stride[0] + p * args.y_stride[2] + (q0 + i) * args.y_stride[3];
          residual_at[i] =
              image * args.residual.stride[0] + p * args.residual.stride[2] + (q0 + i) * args.residual.stride[3];
        }
        for (int64_t k0 = 0; k0 < shape.k; k0 += kPanel) {
          const int64_t row = min(kPanel, round_up(shape.k - k0, kLanes)), count = min(row, shape.k - k0);
          const float* w = weight + k0 * shape.r * shape.s * shape.c;
          MergedTile t = {rows, plan.taps, plan.run, 0, step, w, sums, y_at, residual_at, k0, count};
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = tile * pixels / tiles, size = (tile + 1) * pixels / tiles - first;
            t.at = (q0 + first) * step;
            t.sums = sums + first * row;
            t.y_at = y_at + first;
            t.residual_at = residual_at + first;
            kMerged[row / kLanes - 1].of[size - 1](t, epilogue);
          }
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
