// Winograd convolution F(m x m, 3 x 3), m = 4 or 2: 3 x 3 filters, stride 1, dilation 1, any groups.
//
//   y = A^T [ (G g G^T) * (B^T d B) ] A     d: (m+2) x (m+2) inputs, g: the filter, y: m x m outputs, * by element
//
// Summed over input channels, the product at each of the (m+2)^2 positions is a matrix product, tiles x channels times
// channels x output channels: 4 (m = 4) or 2.25 (m = 2) times fewer multiplications than direct convolution. The
// interpolation points are 0, +-sqrt(1/2), +-sqrt(2), infinity, and 0, +-1, infinity (Lavin & Gray 2016; for the
// points, Barabasz et al. 2020). Sums are cut into slices of channels, which keeps the error of F(4, 3) at 7e-7 of the
// result in L2, whatever the number of channels.
//
// Nothing but y leaves the cache. Blocking, from the outside in:
//
//   threads: tiles x panels   panel: kPanel output channels of one group
//   block of tiles, group     transformed once, u: [position][tile][channel], about half of L2
//   group of panels           their products, m: [panel][position][tile][output channel], a quarter of L2
//   position, panel           weight: a contiguous [channel][output channel], in L1 while all tiles of the block use it
//   tiles                     kTilePixels of them in registers
//
// and then, for each tile and panel, the inverse transform and the epilogue in registers.
//
// A non-finite input, or an overflow in the transforms, would spread to all outputs of a tile. Such tiles are done
// again directly, from the plain weight that lies behind the transformed one, so that NaN and infinity reach the same
// outputs as in direct convolution.
//
// Weight: [group][panel][position][channel][output channel of the panel], then [group][panel][tap][channel][output
// channel], the last panel of a group one vector wide where that is enough.
#include "common/rounding.h"
#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/nhwc.h"
#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kBlockBytes = 256 << 10;   // u
constexpr int64_t kProductBytes = 96 << 10;  // m
constexpr int64_t kLeastTiles = 16;          // of a block, or the weight is read too often
constexpr int64_t kMostTiles = 48;
constexpr int64_t kSlice = 32;           // channels of a partial sum
constexpr int64_t kAhead = 1024;         // floats, at least, from a weight in use to what is fetched, of one panel
constexpr int64_t kCopyBytes = 4 << 20;  // copied images that are worked on at a time, if that is more than one
constexpr int kTaps = 9;
constexpr int64_t kLineFloats = 16;  // of a cache line

// The transforms of one dimension, on vectors: B^T d, G g and A^T m.
struct F4 {
  static constexpr int kOut = 4, kIn = 6;
  static constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;  // the points are 0, +-kA, +-kB

  static inline void input(const F32* d, F32* u) {
    const F32 even_a = d[4] - 2.0f * d[2], odd_a = d[3] - 2.0f * d[1];
    const F32 even_b = d[4] - 0.5f * d[2], odd_b = d[3] - 0.5f * d[1];
    u[0] = d[0] + (d[4] - 2.5f * d[2]);
    u[1] = even_a + kA * odd_a;
    u[2] = even_a - kA * odd_a;
    u[3] = even_b + kB * odd_b;
    u[4] = even_b - kB * odd_b;
    u[5] = d[1] + (d[5] - 2.5f * d[3]);
  }
  static inline void weight(const F32* g, F32* w) {
    const F32 even_a = g[0] + 0.5f * g[2], even_b = g[0] + 2.0f * g[2];
    w[0] = g[0];
    w[1] = (even_a + kA * g[1]) * (-2.0f / 3.0f);
    w[2] = (even_a - kA * g[1]) * (-2.0f / 3.0f);
    w[3] = (even_b + kB * g[1]) * (1.0f / 6.0f);
    w[4] = (even_b - kB * g[1]) * (1.0f / 6.0f);
    w[5] = g[2];
  }
  // No product that an addition may follow is left to the compiler: which of them it would fuse depends on the caller,
  // and so would the bits.
  static inline void output(const F32* m, F32* y) {
    const F32 even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const F32 even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = fma(broadcast(kA), fma(broadcast(2.0f), odd_b, odd_a), F32{});
    y[2] = fma(broadcast(0.5f), even_a, even_b + even_b);
    y[3] = fma(broadcast(0.5f * kA), fma(broadcast(8.0f), odd_b, odd_a), m[5]);
  }
};

struct F2 {
  static constexpr int kOut = 2, kIn = 4;

  static inline void input(const F32* d, F32* u) {
    u[0] = d[0] - d[2];
    u[1] = d[1] + d[2];
    u[2] = d[2] - d[1];
    u[3] = d[3] - d[1];
  }
  static inline void weight(const F32* g, F32* w) {
    const F32 even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    w[0] = g[0];
    w[1] = even + odd;
    w[2] = even - odd;
    w[3] = g[2];
  }
  static inline void output(const F32* m, F32* y) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[1] - m[2] + m[3];
  }
};

template <class F>
inline constexpr int kPositions = F::kIn * F::kIn;

// What shape and ISA alone decide. Panels are counted through all groups.
struct Form {
  int64_t groups;
  int64_t c, k;    // of one group
  int64_t row;     // of u: channels of a tile at one position, whole vectors
  int64_t panels;  // of one group
  int64_t k_padded;

  explicit Form(const ConvShape& shape)
      : groups(shape.groups),
        c(shape.c / groups),
        k(shape.k / groups),
        row(round_up(c, kLanes)),
        panels(ceil_div(k, kPanel)),
        k_padded(round_up(k, kLanes)) {}

  int64_t padded_channel(int64_t panel) const { return panel / panels * k_padded + panel % panels * kPanel; }
  int64_t first_channel(int64_t panel) const { return panel / panels * k + panel % panels * kPanel; }
  int64_t panel_width(int64_t panel) const { return min(kPanel, k_padded - panel % panels * kPanel); }
  int64_t channels(int64_t panel) const { return min(kPanel, k - panel % panels * kPanel); }
};

// One tile: the pixels of x that it needs, or zeros; the outputs that exist, and where they are.
template <class F>
struct Window {
  const float* x[kPositions<F>];
  int64_t rows, columns;
  int64_t y_at, residual_at;  // of its first output's channel 0, in elements
};

template <class F>
struct Plan : Form {
  bool copied;               // x goes through a float32 channels-last copy
  int64_t images;            // worked on at a time
  int64_t tiles_h, tiles_w;  // of an image
  int64_t block;             // most tiles of a block
  int64_t panel_group;
  int64_t threads;
  int64_t u_plane, m_plane;  // floats of one position. Not multiples of a page, for that is few sets of L1.
  int64_t copy_bytes, zero_bytes, u_bytes, window_bytes, slot_bytes;

  Plan(const ConvArgs& args, int most_threads) : Form(args.shape) {
    const ConvShape& shape = args.shape;
    copied = args.dtype != DType::f32 || (args.x.stride[1] != 1 && shape.c > 1);
    const int64_t image_bytes = shape.h * shape.w * shape.c * 4;
    images = copied ? min(max(kCopyBytes / max(image_bytes, 1), 1), shape.n) : shape.n;
    tiles_h = ceil_div(shape.p(), F::kOut);
    tiles_w = ceil_div(shape.q(), F::kOut);
    const int64_t tiles = images * tiles_h * tiles_w;
    const int64_t fitting = kBlockBytes / (kPositions<F> * row * 4) / kTilePixels * kTilePixels;
    block = max(min(min(max(fitting, kLeastTiles), kMostTiles), tiles), 1);
    panel_group = min(max(kProductBytes / (kPositions<F> * block * kPanel * 4), 1), panels);
    const int64_t work = tiles * kPositions<F> * c * k_padded * groups;
    threads = max(1, min(most_threads, work / (32768 * kLanes)));
    u_plane = block * row + 16;
    m_plane = block * min(kPanel, k_padded) + 16;
    copy_bytes = copied ? round_up(images * image_bytes, kConvAlign) : 0;
    zero_bytes = round_up(shape.c * 4, kConvAlign);
    u_bytes = round_up(kPositions<F> * u_plane * 4, kConvAlign);
    window_bytes = round_up(block * static_cast<int64_t>(sizeof(Window<F>)), kConvAlign);
    slot_bytes = u_bytes + window_bytes + round_up(panel_group * kPositions<F> * m_plane * 4, kConvAlign);
  }
};

template <class F>
int64_t packed_floats(const ConvShape& shape) {
  const Form form(shape);
  return form.groups * form.k_padded * form.c * (kPositions<F> + kTaps);
}

template <class F, class Load>
void pack_as(const ConvShape& shape, const ConvTensor& weight, float* packed, const Executor& executor, Load value) {
  const Form form(shape);
  float* plain = packed + form.groups * form.k_padded * form.c * kPositions<F>;
  parallel_for(executor, 0, form.groups * form.panels * form.c, 1 + 16384 / (kPositions<F> * kPanel),
               [&](int64_t begin, int64_t end) {
                 for (int64_t job = begin; job < end; ++job) {
                   const int64_t panel = job / form.c, c = job % form.c, row = form.panel_width(panel);
                   const int64_t k0 = form.first_channel(panel), channels = form.channels(panel);
                   const int64_t at_panel = form.padded_channel(panel) * form.c;
                   float taps[kTaps * kPanel];
                   for (int64_t lane = 0; lane < row; ++lane) {
                     const int64_t from = (k0 + lane) * weight.stride[0] + c * weight.stride[1];
                     for (int tap = 0; tap < kTaps; ++tap) {
                       const int64_t at = from + tap / 3 * weight.stride[2] + tap % 3 * weight.stride[3];
                       taps[tap * kPanel + lane] = lane < channels ? value(at) : 0.0f;
                     }
                   }
                   for (int64_t lane = 0; lane < row; lane += kLanes) {
                     float* out = packed + at_panel * kPositions<F> + c * row + lane;
                     float* plain_out = plain + at_panel * kTaps + c * row + lane;
                     F32 half[3][F::kIn], all[F::kIn];
                     for (int s = 0; s < 3; ++s) {
                       F32 g[3];
                       for (int r = 0; r < 3; ++r) {
                         g[r] = load<F32>(taps + (r * 3 + s) * kPanel + lane);
                         store(plain_out + (r * 3 + s) * form.c * row, g[r]);
                       }
                       F::weight(g, half[s]);
                     }
                     for (int i = 0; i < F::kIn; ++i) {
                       const F32 g[3] = {half[0][i], half[1][i], half[2][i]};
                       F::weight(g, all);
                       for (int j = 0; j < F::kIn; ++j) store(out + (i * F::kIn + j) * form.c * row, all[j]);
                     }
                   }
                 }
               });
}

template <class F>
void pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor& executor) {
  if (dtype == DType::f32) {
    const auto* p = static_cast<const float*>(weight.data);
    pack_as<F>(shape, weight, packed, executor, [p](int64_t at) { return p[at]; });
  } else {
    const auto* p = static_cast<const bf16_t*>(weight.data);
    pack_as<F>(shape, weight, packed, executor, [p](int64_t at) { return widen(p[at]); });
  }
}

template <class F>
int64_t make_plan(const ConvArgs& args, int threads, void* blocking) {
  static_assert(sizeof(Plan<F>) <= kConvBlockingBytes);
  const Plan<F> plan(args, threads);
  std::memcpy(blocking, &plan, sizeof plan);
  return plan.copy_bytes + plan.zero_bytes + plan.threads * plan.slot_bytes;
}

// sums: [MR][NV * kLanes] = u: [MR][u_row] times w: [channels][NV * kLanes]; kChannels: channels and u_row where these
// are known, or 0. Meanwhile brings `ahead`, `step` floats a channel, into L2: each weight is used once a block, and
// the hardware's own prefetching ends with the page.
template <int MR, int NV, int kChannels>
void product(const float* u, int64_t u_row, int64_t channels, const float* w, float* sums, const float* ahead,
             int64_t step) {
  constexpr int kRow = NV * kLanes;
  if constexpr (kChannels > 0) u_row = channels = kChannels;
  const float* x[MR];
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) x[i] = u + i * u_row;
  for (int64_t c0 = 0; c0 < channels; c0 += kSlice) {
    const int64_t end = min(c0 + kSlice, channels);
    F32 acc[MR][NV] = {};
    for (int64_t c = c0; c < end; ++c, w += kRow, ahead += step) {
      __builtin_prefetch(ahead, 0, 2);
      F32 weight[NV];
      for (int v = 0; v < NV; ++v) weight[v] = load<F32>(w + v * kLanes);
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
        const F32 value = broadcast(x[i][c]);
        for (int v = 0; v < NV; ++v) acc[i][v] = fma(value, weight[v], acc[i][v]);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      for (int v = 0; v < NV; ++v) {
        float* sum = sums + i * kRow + v * kLanes;
        store(sum, c0 == 0 ? acc[i][v] : load<F32>(sum) + acc[i][v]);
      }
    }
  }
}

using Product = void (*)(const float*, int64_t, int64_t, const float*, float*, const float*, int64_t);

// of[tiles - 1], tiles <= most.
struct Products {
  int64_t most;
  const Product* of;
};
template <int NV, int kChannels, class Tiles>
struct ProductTable;
template <int NV, int kChannels, int... i>
struct ProductTable<NV, kChannels, std::integer_sequence<int, i...>> {
  static constexpr Product of[] = {product<i + 1, NV, kChannels>...};
};
template <int NV, int kChannels, int kMost>
constexpr Products kProducts = {kMost, ProductTable<NV, kChannels, std::make_integer_sequence<int, kMost>>::of};

// Groups of so many channels, in and out, have products of their own: so few channels that to set the pointers up takes
// a good part of the time, and one vector of sums a tile, so that more tiles are under way.
constexpr int kNarrow = 16, kNarrowVectors = kLanes < kNarrow ? 2 : 1,
              kNarrowTiles = kLanes < kNarrow ? kTilePixels : 24;

inline Products products_of(int64_t c, int64_t row) {
  if (c == kNarrow && row == kNarrowVectors * kLanes) return kProducts<kNarrowVectors, kNarrow, kNarrowTiles>;
  return row == kLanes ? kProducts<1, 0, kTilePixels> : kProducts<2, 0, kTilePixels>;
}

// The images in work, float32, channels adjacent.
struct Source {
  const float* x;
  int64_t stride_n, stride_h, stride_w;  // in floats
  const float* zeros;
  int64_t first_image;
};

template <class F>
void look(const ConvArgs& args, const Plan<F>& plan, const Source& source, int64_t tile, Window<F>* window) {
  const ConvShape& shape = args.shape;
  const int64_t q = tile % plan.tiles_w * F::kOut, p = tile / plan.tiles_w % plan.tiles_h * F::kOut;
  const int64_t n = tile / plan.tiles_w / plan.tiles_h, image = source.first_image + n;
  window->rows = min(F::kOut, shape.p() - p);
  window->columns = min(F::kOut, shape.q() - q);
  window->y_at = image * args.y_stride[0] + p * args.y_stride[2] + q * args.y_stride[3];
  window->residual_at = image * args.residual.stride[0] + p * args.residual.stride[2] + q * args.residual.stride[3];
  const int64_t h0 = p - shape.pad_top, w0 = q - shape.pad_left;
  for (int i = 0; i < F::kIn; ++i) {
    const int64_t h = h0 + i;
    const bool inside = h >= 0 && h < shape.h;
    const float* from = source.x + n * source.stride_n + h * source.stride_h;
    for (int j = 0; j < F::kIn; ++j) {
      const int64_t w = w0 + j;
      window->x[i * F::kIn + j] = inside && w >= 0 && w < shape.w ? from + w * source.stride_w : source.zeros;
    }
  }
}

// u[position * plane + c] for channels [first, first + channels); past the last one, up to a whole vector, zero.
template <class F>
void transform_input(const Window<F>& window, const Window<F>& next, int64_t first, int64_t channels, float* u,
                     int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t lanes = min(kLanes, channels - c), from = first + c;
    if (from % kLineFloats == 0) {
      for (int i = 0; i < kPositions<F>; ++i) __builtin_prefetch(next.x[i] + from);
    }
    F32 half[F::kIn][F::kIn];
#pragma GCC unroll 8
    for (int j = 0; j < F::kIn; ++j) {
      F32 d[F::kIn], column[F::kIn];
      if (lanes == kLanes) {
        for (int i = 0; i < F::kIn; ++i) d[i] = load<F32>(window.x[i * F::kIn + j] + from);
      } else {
        for (int i = 0; i < F::kIn; ++i) d[i] = load_partial(window.x[i * F::kIn + j] + from, lanes);
      }
      F::input(d, column);
      for (int i = 0; i < F::kIn; ++i) half[i][j] = column[i];
    }
#pragma GCC unroll 8
    for (int i = 0; i < F::kIn; ++i) {
      F32 row[F::kIn];
      F::input(half[i], row);
      for (int j = 0; j < F::kIn; ++j) store(u + (i * F::kIn + j) * plane + c, row[j]);
    }
  }
}

inline bool any_nan(F32 x) {
  const I32 nan = x != x;
  int64_t parts[kVecBytes / 8], any = 0;
  store(parts, nan);
  for (int64_t part : parts) any |= part;
  return any != 0;
}

// body(row, outputs of that row) for all rows of a tile's outputs, of one vector of output channels. False if an output
// is not finite.
template <class F, class Body>
__attribute__((always_inline)) inline bool transform_output(const float* m, int64_t plane, const Body& body) {
  F32 half[F::kOut][F::kIn];
#pragma GCC unroll 8
  for (int j = 0; j < F::kIn; ++j) {
    F32 d[F::kIn], column[F::kOut];
    for (int i = 0; i < F::kIn; ++i) d[i] = load<F32>(m + (i * F::kIn + j) * plane);
    F::output(d, column);
    for (int i = 0; i < F::kOut; ++i) half[i][j] = column[i];
  }
  F32 nought{};  // NaN where any sum is not finite
#pragma GCC unroll 8
  for (int i = 0; i < F::kOut; ++i) {
    F32 row[F::kOut];
    F::output(half[i], row);
    for (int j = 0; j < F::kOut; ++j) nought = fma(row[j], F32{}, nought);
    body(i, row);
  }
  return !any_nan(nought);
}

// sums[(row * kOut + column) * kPanel]
template <class F>
__attribute__((noinline)) bool leave_outputs(const float* m, int64_t plane, float* sums) {
  return transform_output<F>(m, plane, [sums](int i, const F32* row) __attribute__((always_inline)) {
    for (int j = 0; j < F::kOut; ++j) store(sums + (i * F::kOut + j) * kPanel, row[j]);
  });
}

// To y, from the registers: whole vectors of e.in_registers.
template <class F>
__attribute__((noinline)) bool finish_outputs(const ConvArgs& args, const Epilogue& e, const Window<F>& window,
                                              const float* m, int64_t plane, int64_t k0) {
  return transform_output<F>(m, plane, [&](int i, F32* row) __attribute__((always_inline)) {
    if (i >= window.rows) return;
    const int64_t y_at = window.y_at + i * args.y_stride[2];
    const int64_t residual_at = window.residual_at + i * args.residual.stride[2];
    if (window.columns == F::kOut) {
      F32 acc[F::kOut][1];
      int64_t y[F::kOut], residual[F::kOut];
      for (int j = 0; j < F::kOut; ++j) {
        acc[j][0] = row[j];
        y[j] = y_at + j * args.y_stride[3];
        residual[j] = residual_at + j * args.residual.stride[3];
      }
      return finish_tile<F::kOut, 1, true>(acc, e, y, residual, k0, kLanes);
    }
#pragma GCC unroll 8
    for (int j = 0; j + 1 < F::kOut; ++j) {
      if (j >= window.columns) return;
      F32 acc[1][1] = {{row[j]}};
      const int64_t y = y_at + j * args.y_stride[3], residual = residual_at + j * args.residual.stride[3];
      finish_tile<1, 1, true>(acc, e, &y, &residual, k0, kLanes);
    }
  });
}

// What follows the sums of a tile and panel, in any layout and dtype, with any activation and channel tail.
template <class F>
void finish_sums(const ConvArgs& args, const Epilogue& e, const Window<F>& window, const float* sums, int64_t k0,
                 int64_t count) {
  int64_t y_at[F::kOut * F::kOut], residual_at[F::kOut * F::kOut];
  for (int64_t i = 0; i < window.rows; ++i) {
    for (int64_t j = 0; j < window.columns; ++j) {
      const int64_t at = i * F::kOut + j;
      y_at[at] = window.y_at + i * args.y_stride[2] + j * args.y_stride[3];
      residual_at[at] = window.residual_at + i * args.residual.stride[2] + j * args.residual.stride[3];
    }
  }
  if (window.columns == F::kOut) {
    return finish(e, {sums, kPanel, window.rows * F::kOut, y_at, residual_at, k0, count});
  }
  for (int64_t at = 0; at < window.rows * F::kOut; at += F::kOut) {
    finish(e, {sums + at * kPanel, kPanel, window.columns, y_at + at, residual_at + at, k0, count});
  }
}

// A tile and panel by the definition, where Winograd's sums are not finite: of channels [first, first + channels).
// weight: [tap][channel][row].
template <class F>
__attribute__((noinline)) void direct_tile(const ConvArgs& args, const Epilogue& e, const Window<F>& window,
                                           int64_t first, int64_t channels, const float* weight, int64_t row,
                                           int64_t k0, int64_t count) {
  float sums[F::kOut * F::kOut * kPanel];
  for (int64_t i = 0; i < window.rows; ++i) {
    for (int64_t j = 0; j < window.columns; ++j) {
      for (int64_t k = 0; k < row; k += kLanes) {
        F32 sum{};
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          const float* x = window.x[(i + tap / 3) * F::kIn + j + tap % 3] + first;
          const float* w = weight + tap * channels * row + k;
          for (int64_t c = 0; c < channels; ++c) sum = fma(broadcast(x[c]), load<F32>(w + c * row), sum);
        }
        store(sums + (i * F::kOut + j) * kPanel + k, sum);
      }
    }
  }
  finish_sums(args, e, window, sums, k0, count);
}

// The residual and output of a tile and panel. They are new to the cache, and too scattered for the hardware to
// foresee.
template <class F>
inline void prefetch_outputs(const ConvArgs& args, const Epilogue& e, const Window<F>& window, int64_t k0) {
  if (e.planes) return;
  for (int64_t i = 0; i < window.rows; ++i) {
    for (int64_t j = 0; j < window.columns; ++j) {
      const int64_t residual_at = window.residual_at + i * args.residual.stride[2] + j * args.residual.stride[3];
      const int64_t y_at = window.y_at + i * args.y_stride[2] + j * args.y_stride[3];
      fetch_output(e, y_at, residual_at, k0);
    }
  }
}

// The inverse transform of one tile and panel, and its epilogue. False if a sum is not finite.
template <class F>
bool finish_window(const ConvArgs& args, const Epilogue& e, const Window<F>& window, const float* m, int64_t plane,
                   int64_t row, int64_t k0, int64_t count) {
  bool finite = true;
  if (e.in_registers && count == row) {
    for (int64_t k = 0; k < row; k += kLanes) finite &= finish_outputs<F>(args, e, window, m + k, plane, k0 + k);
    return finite;
  }
  float sums[F::kOut * F::kOut * kPanel];
  for (int64_t k = 0; k < row; k += kLanes) finite &= leave_outputs<F>(m + k, plane, sums + k);
  finish_sums(args, e, window, sums, k0, count);
  return finite;
}

// Tiles [begin, end) of the images in work x panels [panel_begin, panel_end).
template <class F>
void run_part(const ConvArgs& args, const Plan<F>& plan, const Source& source, const Epilogue& epilogue,
              const float* weight, int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end, char* slot) {
  auto* u = reinterpret_cast<float*>(slot);
  auto* windows = reinterpret_cast<Window<F>*>(slot + plan.u_bytes);
  auto* m = reinterpret_cast<float*>(slot + plan.u_bytes + plan.window_bytes);
  const float* plain = weight + plan.groups * plan.k_padded * plan.c * kPositions<F>;
  const int64_t m_panel = kPositions<F> * plan.m_plane;
  const auto weight_of = [&](int64_t panel, int64_t position) {
    return weight + (plan.padded_channel(panel) * kPositions<F> + position * plan.panel_width(panel)) * plan.c;
  };
  const int64_t blocks = ceil_div(end - begin, plan.block);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = begin + b * (end - begin) / blocks, count = begin + (b + 1) * (end - begin) / blocks - from;
    for (int64_t i = 0; i < count; ++i) look(args, plan, source, from + i, windows + i);
    for (int64_t g0 = panel_begin, g1; g0 < panel_end; g0 = g1) {
      const int64_t first = g0 / plan.panels * plan.c;  // channel of the group
      g1 = min(min(g0 + plan.panel_group, panel_end), (g0 / plan.panels + 1) * plan.panels);
      if (g0 == panel_begin || g0 % plan.panels == 0) {
        for (int64_t i = 0; i < count; ++i) {
          transform_input(windows[i], windows[min(i + 1, count - 1)], first, plan.c, u + i * plan.row, plan.u_plane);
        }
      }
      for (int64_t position = 0; position < kPositions<F>; ++position) {
        for (int64_t panel = g0; panel < g1; ++panel) {
          const int64_t row = plan.panel_width(panel);
          const Products products = products_of(plan.c, row);
          const int64_t parts = ceil_div(count, products.most), step = ceil_div(row, parts);
          const float* w = weight_of(panel, position);
          const float* next = plan.panels == 1               ? w + max(kAhead, plan.c * row)
                              : panel + 1 < g1               ? weight_of(panel + 1, position)
                              : position + 1 < kPositions<F> ? weight_of(g0, position + 1)
                                                             : weight_of(g1 < panel_end ? g1 : panel_begin, 0);
          float* sums = m + (panel - g0) * m_panel + position * plan.m_plane;
          for (int64_t part = 0; part < parts; ++part) {
            const int64_t tile = part * count / parts, size = (part + 1) * count / parts - tile;
            products.of[size - 1](u + position * plan.u_plane + tile * plan.row, plan.row, plan.c, w, sums + tile * row,
                                  next + part * step * plan.c, step);
          }
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const Window<F>& window = windows[i];
        for (int64_t panel = g0; panel < g1; ++panel) {
          const int64_t row = plan.panel_width(panel), k0 = plan.first_channel(panel), lanes = plan.channels(panel);
          prefetch_outputs(args, epilogue, windows[min(i + 1, count - 1)], k0);
          const float* tile = m + (panel - g0) * m_panel + i * row;
          if (!finish_window(args, epilogue, window, tile, plan.m_plane, row, k0, lanes)) {
            const float* taps = plain + plan.padded_channel(panel) * plan.c * kTaps;
            direct_tile(args, epilogue, window, first, plan.c, taps, row, k0, lanes);
          }
        }
      }
    }
  }
}

// How `threads` share tiles x panels: `rows` * `columns` parts. The fewest operations for the slowest; each part
// transforms its tiles itself and reads its share of the weight.
template <class F>
void split(const Plan<F>& plan, int64_t tiles, int64_t* rows, int64_t* columns) {
  double best = 0;
  *rows = *columns = 1;
  const int64_t panels = plan.groups * plan.panels;
  for (int64_t by_panel = 1; by_panel <= min(plan.threads, panels); ++by_panel) {
    const int64_t by_tile = max(1, min(plan.threads / by_panel, tiles));
    const auto part_tiles = static_cast<double>(ceil_div(tiles, by_tile));
    const auto part_panels = static_cast<double>(ceil_div(panels, by_panel));
    const auto part_groups = static_cast<double>(ceil_div(ceil_div(panels, by_panel), plan.panels));
    const auto c = static_cast<double>(plan.c);
    // In cycles for a position and channel: a product of vectors every half cycle, 16 bytes of weight a cycle, two
    // vectors of a transformed tile a cycle.
    const double cost =
        c * (part_tiles * part_panels + part_panels * kPanel / 4 + part_tiles * part_groups * 2 / kLanes);
    if (best == 0 || cost < best) best = cost, *rows = by_tile, *columns = by_panel;
  }
}

template <class F>
void run(const void* blocking, const ConvArgs& args, const float* weight, char* workspace, const Executor& executor) {
  const ConvShape& shape = args.shape;
  const auto& plan = *static_cast<const Plan<F>*>(blocking);
  auto* copy = reinterpret_cast<float*>(workspace);
  auto* zeros = reinterpret_cast<float*>(workspace + plan.copy_bytes);
  char* slots = workspace + plan.copy_bytes + plan.zero_bytes;
  std::memset(zeros, 0, static_cast<size_t>(plan.zero_bytes));
  const Epilogue epilogue = make_epilogue(args);
  for (int64_t n = 0; n < shape.n; n += plan.images) {
    const int64_t images = min(plan.images, shape.n - n);
    Source source = {static_cast<const float*>(args.x.data) + (plan.copied ? 0 : n * args.x.stride[0]),
                     args.x.stride[0],
                     args.x.stride[2],
                     args.x.stride[3],
                     zeros,
                     n};
    if (plan.copied) {
      to_nhwc(copy, shape.c, args.x, args.dtype, n, images, shape, executor);
      source = {copy, shape.h * shape.w * shape.c, shape.w * shape.c, shape.c, zeros, n};
    }
    const int64_t tiles = images * plan.tiles_h * plan.tiles_w;
    const int64_t panels = plan.groups * plan.panels;
    int64_t rows, columns;
    split(plan, tiles, &rows, &columns);
    parallel_for(executor, 0, rows * columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t row = part / columns, column = part % columns;
        run_part(args, plan, source, epilogue, weight, row * tiles / rows, (row + 1) * tiles / rows,
                 column * panels / columns, (column + 1) * panels / columns, slots + part * plan.slot_bytes);
      }
    });
  }
}

}  // namespace

extern const ConvMethod conv_winograd4, conv_winograd2;
const ConvMethod conv_winograd4 = {packed_floats<F4>, pack<F4>, make_plan<F4>, run<F4>};
const ConvMethod conv_winograd2 = {packed_floats<F2>, pack<F2>, make_plan<F2>, run<F2>};

}  // namespace PK_ISA
}  // namespace pk
