// Bilinear interpolation of int8, in both layouts by one formula, so that the bits are the same:
//
//   y = nearest_even((x[u, v] * of_v + x[u, w] * of_w) * of_u + (x[t, v] * of_v + x[t, w] * of_w) * of_t)
//
// for the pixels (u, t) x (v, w) around, each operation rounded to float32. As the weights add up to 1, it is the same
// on every grid. Compiled with -ffp-contract=off (cmake/isa.cmake).
#include "cpu/bytes.h"
#include "cpu/parallel_for.h"
#include "cpu/upsample2d/isa.h"
#include "cpu/upsample2d/taps.h"

namespace pk {
namespace PK_ISA {
namespace {

// The channels of a pixel: of the four around, two of the upper row and two of the lower.
struct Pixel {
  const int8_t *upper[2], *lower[2];
  F32 of_column[2], of_row[2];

  static F32 along(const int8_t* const (&x)[2], const F32 (&weight)[2], int64_t c) {
    return to_f32(load_bytes(x[0] + c)) * weight[0] + to_f32(load_bytes(x[1] + c)) * weight[1];
  }
  static F32 along(const int8_t* const (&x)[2], const F32 (&weight)[2], int64_t c, int64_t count) {
    return to_f32(load_bytes(x[0] + c, count)) * weight[0] + to_f32(load_bytes(x[1] + c, count)) * weight[1];
  }
  I32 operator()(int64_t c) const {
    return nearest(along(upper, of_column, c) * of_row[0] + along(lower, of_column, c) * of_row[1]);
  }
  I32 operator()(int64_t c, int64_t count) const {
    return nearest(along(upper, of_column, c, count) * of_row[0] + along(lower, of_column, c, count) * of_row[1]);
  }
};

// Rows [begin, end) of n * p.
void by_channels(const Args& a, int64_t begin, int64_t end) {
  Columns columns;
  for (int64_t q = 0; q < a.q; q += kSpan) {
    const int64_t count = least(kSpan, a.q - q);
    columns.fill(a, q, count);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / a.p, p = row % a.p;
      const Tap tap = row_tap(a, p);
      const int8_t* image = static_cast<const int8_t*>(a.x) + n * a.x_stride[0];
      const int8_t *upper = image + tap.a * a.x_stride[2], *lower = image + tap.b * a.x_stride[2];
      int8_t* y = static_cast<int8_t*>(a.y) + n * a.y_stride[0] + p * a.y_stride[2] + q * a.y_stride[3];
      for (int64_t j = 0; j < count; ++j, y += a.y_stride[3]) {
        const Pixel pixel = {{upper + columns.a[j], upper + columns.b[j]},
                             {lower + columns.a[j], lower + columns.b[j]},
                             {broadcast(columns.of_a[j]), broadcast(columns.of_b[j])},
                             {broadcast(tap.of_a), broadcast(tap.of_b)}};
        store_row(pixel, a.c, y);
      }
    }
  }
}

// A row of y of two of x, which have its columns; there are vectors behind the last column.
struct Mix {
  const float *upper, *lower;
  F32 of_upper, of_lower;

  I32 operator()(int64_t j) const { return nearest(load<F32>(upper + j) * of_upper + load<F32>(lower + j) * of_lower); }
  I32 operator()(int64_t j, int64_t) const { return (*this)(j); }
};

// Channels [begin, end) of n * c.
void by_planes(const Args& a, int64_t begin, int64_t end) {
  Columns columns;
  for (int64_t q = 0; q < a.q; q += kSpan) {
    const int64_t count = least(kSpan, a.q - q);
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
  const bool channels = a.c > 1 && a.x_stride[1] == 1 && a.y_stride[1] == 1;
  const int64_t units = a.n * (channels ? a.p : a.c), each = a.q * (channels ? a.c : a.p);
  parallel_for(executor, 0, units, kGrain / each + 1,
               [&](int64_t begin, int64_t end) { channels ? by_channels(a, begin, end) : by_planes(a, begin, end); });
}

}  // namespace PK_ISA
}  // namespace pk
