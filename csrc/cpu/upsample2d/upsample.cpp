// Two loops, one of them chosen a call. Both find the taps (which pixels of x, with which weights) of up to kSpan
// columns once, for all rows or planes that a thread has.
//
//   channels adjacent in both (channels_last):  pixel by pixel; nearest is a copy, bilinear four vectors of x for one
//                                               of y, which the four weights of a pixel multiply
//   else, plane by plane:                       columns first, one by one, once for each row of x that is needed; then
//                                               rows in vectors. A row of y whose nearest is that of the row before is
//                                               a copy of it
#include "cpu/upsample2d/isa.h"
#include "cpu/upsample2d/taps.h"

namespace pk {
namespace PK_ISA {
namespace {

// The four pixels around one, and their weights.
template <class T>
struct Around {
  const T* x[4];
  float weight[4];
};

template <int kCount, class T>
inline void mix(const Around<T>& around, int64_t c, T* y) {
  F32 v[kCount];
  for (int k = 0; k < kCount; ++k) v[k] = load_widened(around.x[0] + c + k * kLanes) * around.weight[0];
#pragma GCC unroll 3
  for (int i = 1; i < 4; ++i) {
    const F32 weight = broadcast(around.weight[i]);
    for (int k = 0; k < kCount; ++k) v[k] = fma(load_widened(around.x[i] + c + k * kLanes), weight, v[k]);
  }
  for (int k = 0; k < kCount; ++k) store_narrowed(y + c + k * kLanes, v[k]);
}

template <class T>
inline void mix_all(const Around<T>& around, int64_t channels, T* y) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) mix<4>(around, c, y);
  for (; c + kLanes <= channels; c += kLanes) mix<1>(around, c, y);
  if (c == channels) return;
  if (channels >= kLanes) return mix<1>(around, channels - kLanes, y);  // some once more
  const int64_t lanes = channels - c;
  F32 v = {};
  for (int i = 0; i < 4; ++i) {
    v = fma(load_widened(around.x[i] + c, lanes), broadcast(around.weight[i]), v);
  }
  store_narrowed(y + c, v, lanes);
}

// Rows [begin, end) of n * p.
template <bool kNearest, class T>
void by_channels(const Args& a, int64_t begin, int64_t end) {
  Columns columns;
  for (int64_t q = 0; q < a.q; q += kSpan) {
    const int64_t count = min(kSpan, a.q - q);
    columns.fill(a, q, count);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / a.p, p = row % a.p;
      const Tap tap = row_tap(a, p);
      const T* image = static_cast<const T*>(a.x) + n * a.x_stride[0];
      const T *top = image + tap.a * a.x_stride[2], *bottom = image + tap.b * a.x_stride[2];
      T* y = static_cast<T*>(a.y) + n * a.y_stride[0] + p * a.y_stride[2] + q * a.y_stride[3];
      for (int64_t j = 0; j < count; ++j, y += a.y_stride[3]) {
        if constexpr (kNearest) {
          std::memcpy(y, top + columns.a[j], static_cast<size_t>(a.c) * sizeof(T));
        } else {
          const Around<T> around = {
              {top + columns.a[j], top + columns.b[j], bottom + columns.a[j], bottom + columns.b[j]},
              {tap.of_a * columns.of_a[j], tap.of_a * columns.of_b[j], tap.of_b * columns.of_a[j],
               tap.of_b * columns.of_b[j]}};
          mix_all(around, a.c, y);
        }
      }
    }
  }
}

template <class T>
inline void mix_rows(const Rows& rows, const Tap& tap, int64_t count, T* y, int64_t step) {
  const F32 of_a = broadcast(tap.of_a), of_b = broadcast(tap.of_b);
  const float* const bottom = tap.b == tap.a ? rows.top : rows.bottom;
  for (int64_t j = 0; j < count; j += kLanes) {
    const F32 v = fma(load<F32>(rows.top + j), of_a, load<F32>(bottom + j) * of_b);
    if (step == 1 && j + kLanes <= count) {
      store_narrowed(y + j, v);
    } else {
      T last[kLanes];
      store_narrowed(last, v);
      for (int64_t k = 0; k < min(kLanes, count - j); ++k) y[(j + k) * step] = last[k];
    }
  }
}

// Channels [begin, end) of n * c.
template <bool kNearest, class T>
void by_planes(const Args& a, int64_t begin, int64_t end) {
  Columns columns;
  for (int64_t q = 0; q < a.q; q += kSpan) {
    const int64_t count = min(kSpan, a.q - q);
    columns.fill(a, q, count);
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / a.c, c = plane % a.c;
      const T* x = static_cast<const T*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
      T* y = static_cast<T*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1] + q * a.y_stride[3];
      if constexpr (kNearest) {
        const T* before = nullptr;
        for (int64_t p = 0, was = -1; p < a.p; ++p, y += a.y_stride[2]) {
          const int64_t from = row_tap(a, p).a;
          if (from == was && a.y_stride[3] == 1) {
            std::memcpy(y, before, static_cast<size_t>(count) * sizeof(T));
          } else {
            const T* row = x + from * a.x_stride[2];
            for (int64_t j = 0; j < count; ++j) y[j * a.y_stride[3]] = row[columns.a[j]];
          }
          was = from;
          before = y;
        }
      } else {
        Rows rows;
        for (int64_t p = 0; p < a.p; ++p, y += a.y_stride[2]) {
          const Tap tap = row_tap(a, p);
          rows.move_to(tap, columns, count, x, a.x_stride[2]);
          mix_rows(rows, tap, count, y, a.y_stride[3]);
        }
      }
    }
  }
}

template <bool kNearest, class T>
void upsample(const Args& a, const Executor& executor) {
  in_layout(
      a, executor, [&](int64_t begin, int64_t end) { by_channels<kNearest, T>(a, begin, end); },
      [&](int64_t begin, int64_t end) { by_planes<kNearest, T>(a, begin, end); });
}

void run(const Args& a, const Executor& executor) {
  if (a.dtype == DType::i8) {
    is_nearest(a.mode) ? upsample<true, int8_t>(a, executor) : upsample2d_bilinear_int8(a, executor);
  } else if (is_nearest(a.mode)) {
    a.dtype == DType::f32 ? upsample<true, float>(a, executor) : upsample<true, bf16_t>(a, executor);
  } else {
    a.dtype == DType::f32 ? upsample<false, float>(a, executor) : upsample<false, bf16_t>(a, executor);
  }
}

}  // namespace

extern const Upsample2dKernels upsample2d_kernels;
const Upsample2dKernels upsample2d_kernels = {run};

}  // namespace PK_ISA
}  // namespace pk
