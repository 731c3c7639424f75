// One tile of F(m x m, 3 x 3): from the images, and back into them.
#pragma once

#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/winograd_plan.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kLineFloats = 16;  // of a cache line

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

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
