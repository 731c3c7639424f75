// Which pixels of x, with which weights, make one of y. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/elements.h"
#include "cpu/parallel_for.h"
#include "cpu/upsample2d/kernels.h"

namespace pk {
namespace PK_ISA {
namespace {

using Args = Upsample2dArgs;

constexpr int64_t kSpan = 512;
// The least that a thread is woken for, in elements of y.
constexpr int64_t kGrain = 16384;

inline bool is_nearest(UpsampleMode mode) {
  return mode == UpsampleMode::nearest || mode == UpsampleMode::nearest_exact;
}

// In one dimension: pixels a and b of x, at most one apart, and their weights; of the nearest, a alone.
struct Tap {
  int64_t a, b;
  float of_a, of_b;
};

// torch's index, which takes float32 for it, and the first two sizes apart.
inline int64_t nearest_of(UpsampleMode mode, int64_t i, int64_t in, int64_t out, double scale) {
  const float step = scale > 0 ? static_cast<float>(1 / scale) : static_cast<float>(in) / static_cast<float>(out);
  if (mode == UpsampleMode::nearest_exact) {
    return static_cast<int64_t>(static_cast<float>((static_cast<double>(i) + 0.5) * static_cast<double>(step)));
  }
  if (out == in) return i;
  if (out == 2 * in) return i / 2;
  return static_cast<int64_t>(static_cast<float>(i) * step);
}

// Divided last, so that a pixel that lies on one of x gets it whole.
inline double position_of(UpsampleMode mode, int64_t i, int64_t in, int64_t out, double scale) {
  const auto d = [](int64_t v) { return static_cast<double>(v); };
  if (out == in) return d(i);
  if (mode == UpsampleMode::bilinear_corners) return out > 1 ? d(in - 1) * d(i) / d(out - 1) : 0;
  const double at = scale > 0 ? (d(i) + 0.5) / scale - 0.5 : (d(2 * i + 1) * d(in) - d(out)) / d(2 * out);
  return at > 0 ? at : 0;
}

// A pixel of weight 0 counts too, as with torch, for infinity times 0 is NaN: hence a twice where the size stays.
inline Tap tap_of(UpsampleMode mode, int64_t i, int64_t in, int64_t out, double scale) {
  if (is_nearest(mode)) return {min(nearest_of(mode, i, in, out, scale), in - 1), 0, 1, 0};
  const double at = position_of(mode, i, in, out, scale);
  const int64_t a = min(static_cast<int64_t>(at), in - 1);
  const double past = at - static_cast<double>(a), share = past < 1 ? past : 1;
  return {a, out == in ? a : min(a + 1, in - 1), static_cast<float>(1 - share), static_cast<float>(share)};
}
inline Tap row_tap(const Args& a, int64_t p) { return tap_of(a.mode, p, a.h, a.p, a.scale_h); }

// The taps of some columns; steps in elements of x.
struct Columns {
  int64_t a[kSpan], b[kSpan];
  float of_a[kSpan], of_b[kSpan];

  void fill(const Args& args, int64_t first, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const Tap tap = tap_of(args.mode, first + j, args.w, args.q, args.scale_w);
      a[j] = tap.a * args.x_stride[3];
      b[j] = tap.b * args.x_stride[3];
      of_a[j] = tap.of_a;
      of_b[j] = tap.of_b;
    }
  }
};

inline float widen(int8_t x) { return static_cast<float>(x); }

// A row of x with the columns of y.
template <class T>
inline void widen_row(const Columns& columns, int64_t count, const T* x, float* row) {
  for (int64_t j = 0; j < count; ++j) {
    row[j] = widen(x[columns.a[j]]) * columns.of_a[j] + widen(x[columns.b[j]]) * columns.of_b[j];
  }
}

// Rows of x as `widen_row` made them: a pair that moves down; the top alone where a tap has one pixel twice.
struct Rows {
  float memory[2][kSpan + kLanes] = {};  // vectors read behind the last column
  float *top = memory[0], *bottom = memory[1];
  int64_t top_is = -1, bottom_is = -1;

  template <class T>
  void move_to(const Tap& tap, const Columns& columns, int64_t count, const T* plane, int64_t step) {
    if (tap.a != top_is && tap.a == bottom_is) {
      float* const was = top;
      top = bottom, bottom = was;
      top_is = bottom_is, bottom_is = -1;
    }
    if (tap.a != top_is) widen_row(columns, count, plane + tap.a * step, top), top_is = tap.a;
    if (tap.b != tap.a && tap.b != bottom_is)
      widen_row(columns, count, plane + tap.b * step, bottom), bottom_is = tap.b;
  }
};

// by_channels(begin, end) on rows of n * p where the channels of x and y are adjacent, else by_planes(begin, end) on
// channels of n * c.
template <class ByChannels, class ByPlanes>
inline void in_layout(const Args& a, const Executor& executor, const ByChannels& by_channels,
                      const ByPlanes& by_planes) {
  const bool channels = a.c > 1 && a.x_stride[1] == 1 && a.y_stride[1] == 1;
  const int64_t units = a.n * (channels ? a.p : a.c), each = a.q * (channels ? a.c : a.p);
  parallel_for(executor, 0, units, kGrain / each + 1,
               [&](int64_t begin, int64_t end) { channels ? by_channels(begin, end) : by_planes(begin, end); });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
