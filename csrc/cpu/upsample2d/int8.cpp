// Bilinear interpolation of int8, in both layouts by one formula, so that the bits are the same:
//
//   y = nearest_even((x[u, v] * of_v + x[u, w] * of_w) * of_u + (x[t, v] * of_v + x[t, w] * of_w) * of_t)
//
// for the pixels (u, t) x (v, w) around, each operation rounded to float32. As the weights add up to 1, it is the same
// on every grid. Compiled with -ffp-contract=off (cmake/isa.cmake).
#include "cpu/bytes.h"
#include "cpu/upsample2d/isa.h"
#include "cpu/upsample2d/taps.h"

namespace pk {
namespace PK_ISA {
namespace {

// A row of y of two of x, which have its columns; there are vectors behind the last column.
struct Mix {
  const float *upper, *lower;
  F32 of_upper, of_lower;

  I32 operator()(int64_t j) const { return nearest(load<F32>(upper + j) * of_upper + load<F32>(lower + j) * of_lower); }
  I32 operator()(int64_t j, int64_t) const { return (*this)(j); }
};

constexpr int64_t kFloats = 4096;  // of a row of x that is kept: it stays in the first cache, with its neighbour

// `channels` of a row of x, with the columns of y.
void widen_pixels(const Columns& columns, int64_t count, const int8_t* x, int64_t channels, float* row) {
  for (int64_t j = 0; j < count; ++j, row += channels) {
    const int8_t *a = x + columns.a[j], *b = x + columns.b[j];
    const F32 of_a = broadcast(columns.of_a[j]), of_b = broadcast(columns.of_b[j]);
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      store(row + c, to_f32(load_bytes(a + c)) * of_a + to_f32(load_bytes(b + c)) * of_b);
    }
    if (c == channels) continue;
    const int64_t rest = channels - c;  // what is written behind is the next pixel's
    store(row + c, to_f32(load_bytes(a + c, rest)) * of_a + to_f32(load_bytes(b + c, rest)) * of_b);
  }
}

// Rows [begin, end) of n * p, some channels and columns at a time. A row of x serves all rows of y around it.
void by_channels(const Args& a, int64_t begin, int64_t end) {
  const int64_t channels = min(a.c, kFloats), span = min(kSpan, kFloats / channels);
  Columns columns;
  float memory[2][kFloats + kLanes] = {};
  for (int64_t q = 0; q < a.q; q += span) {
    const int64_t count = min(span, a.q - q);
    columns.fill(a, q, count);
    for (int64_t c = 0; c < a.c; c += channels) {
      const int64_t some = min(channels, a.c - c);
      const bool adjacent = a.y_stride[3] == some;
      float *upper = memory[0], *lower = memory[1];
      const int8_t *upper_is = nullptr, *lower_is = nullptr;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t n = row / a.p, p = row % a.p;
        const Tap tap = row_tap(a, p);
        const int8_t* image = static_cast<const int8_t*>(a.x) + n * a.x_stride[0] + c;
        const int8_t *above = image + tap.a * a.x_stride[2], *below = image + tap.b * a.x_stride[2];
        if (above != upper_is && above == lower_is) {
          float* const was = upper;
          upper = lower, lower = was;
          upper_is = lower_is, lower_is = nullptr;
        }
        if (above != upper_is) widen_pixels(columns, count, above, some, upper), upper_is = above;
        if (below != above && below != lower_is) widen_pixels(columns, count, below, some, lower), lower_is = below;
        Mix mix = {upper, below == above ? upper : lower, broadcast(tap.of_a), broadcast(tap.of_b)};
        int8_t* y = static_cast<int8_t*>(a.y) + n * a.y_stride[0] + p * a.y_stride[2] + q * a.y_stride[3] + c;
        if (adjacent) {
          store_row(mix, count * some, y);
          continue;
        }
        for (int64_t j = 0; j < count; ++j, y += a.y_stride[3], mix.upper += some, mix.lower += some) {
          store_row(mix, some, y);
        }
      }
    }
  }
}

// Channels [begin, end) of n * c.
void by_planes(const Args& a, int64_t begin, int64_t end) {
  Columns columns;
  for (int64_t q = 0; q < a.q; q += kSpan) {
    const int64_t count = min(kSpan, a.q - q);
    columns.fill(a, q, count);
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / a.c, c = plane % a.c;
      const int8_t* x = static_cast<const int8_t*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
      int8_t* y = static_cast<int8_t*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1] + q * a.y_stride[3];
      Rows rows;
      for (int64_t p = 0; p < a.p; ++p, y += a.y_stride[2]) {
        const Tap tap = row_tap(a, p);
        rows.move_to(tap, columns, count, x, a.x_stride[2]);
        const Mix mix = {rows.top, tap.b == tap.a ? rows.top : rows.bottom, broadcast(tap.of_a), broadcast(tap.of_b)};
        if (a.y_stride[3] == 1) {
          store_row(mix, count, y);
          continue;
        }
        int8_t row[kSpan];
        store_row(mix, count, row);
        for (int64_t j = 0; j < count; ++j) y[j * a.y_stride[3]] = row[j];
      }
    }
  }
}

}  // namespace

void upsample2d_bilinear_int8(const Args& a, const Executor& executor) {
  in_layout(
      a, executor, [&](int64_t begin, int64_t end) { by_channels(a, begin, end); },
      [&](int64_t begin, int64_t end) { by_planes(a, begin, end); });
}

}  // namespace PK_ISA
}  // namespace pk
