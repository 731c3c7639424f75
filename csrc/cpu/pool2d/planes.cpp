// Pools of images whose columns are adjacent, a plane at a time. First the rows of a window become one row of at most
// kPoolSpan columns, with the edges added. Then its columns become one, in vectors where the stride is 1 or 2 (the even
// columns of two vectors), else one by one.
#include "cpu/parallel_for.h"
#include "cpu/pool2d/isa.h"
#include "cpu/pool2d/window.h"

namespace pk {
namespace PK_ISA {
namespace {

inline float combine_one(PoolKind kind, float a, float b) {
  if (kind == PoolKind::average) return a + b;
  return b > a || b != b ? b : a;
}

// Elements 0, 2, 4, ... of 2 * kLanes.
inline F32 evens(const float* p) {
  const F32 low = load<F32>(p), high = load<F32>(p + kLanes);
  I32 order;
  for (int i = 0; i < kLanes; ++i) order[i] = 2 * i;
  return __builtin_shuffle(low, high, order);
}

// row[0, span) of the rows of `window` from column `first` on, which may lie outside of the image.
template <PoolKind kKind, class T>
void merge_rows(const Pool2dArgs& a, const T* plane, const Window& window, int64_t first, int64_t span, float* row) {
  const int64_t begin = least(most(-first, 0), span), end = most(begin, least(a.w - first, span));
  for (int64_t i = 0; i < begin; ++i) row[i] = nothing<kKind>()[0];
  for (int64_t i = end; i < span; ++i) row[i] = nothing<kKind>()[0];
  const int64_t rows = window.end - window.begin, step = a.dilation_h * a.x_stride[2];
  const T* x = plane + (window.start + window.begin * a.dilation_h) * a.x_stride[2] + first;
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    F32 v = nothing<kKind>();
    for (int64_t u = 0; u < rows; ++u) v = combine<kKind>(v, load_widened(x + u * step + i));
    store(row + i, v);
  }
  if (i < end) {
    F32 v = nothing<kKind>();
    for (int64_t u = 0; u < rows; ++u) v = combine<kKind>(v, load_widened(x + u * step + i, end - i));
    store_partial(row + i, v, end - i);
  }
}

template <PoolKind kKind, int kStride, class T>
void merge_columns(const Pool2dArgs& a, const float* row, int64_t count, const float* divisors, T* y) {
  for (int64_t j = 0; j < count; j += kLanes) {
    F32 v = nothing<kKind>();
    for (int64_t t = 0; t < a.s; ++t) {
      const float* at = row + j * kStride + t * a.dilation_w;
      v = combine<kKind>(v, kStride == 1 ? load<F32>(at) : evens(at));
    }
    if constexpr (kKind == PoolKind::average) v /= load<F32>(divisors + j);
    if (j + kLanes <= count) {
      store_narrowed(y + j, v);
    } else {
      store_narrowed(y + j, v, count - j);
    }
  }
}

template <PoolKind kKind, class T>
void merge_columns(const Pool2dArgs& a, const float* row, int64_t count, const float* divisors, T* y) {
  if (a.stride_w == 1) return merge_columns<kKind, 1>(a, row, count, divisors, y);
  if (a.stride_w == 2) return merge_columns<kKind, 2>(a, row, count, divisors, y);
  float merged[kLanes];
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t lanes = least(kLanes, count - j);
    for (int64_t k = 0; k < lanes; ++k) {
      const float* at = row + (j + k) * a.stride_w;
      float v = at[0];
      for (int64_t t = 1; t < a.s; ++t) v = combine_one(kKind, v, at[t * a.dilation_w]);
      merged[k] = v;
    }
    F32 v = load_partial(merged, lanes);
    if constexpr (kKind == PoolKind::average) v /= load<F32>(divisors + j);
    store_narrowed(y + j, v, lanes);
  }
}

template <PoolKind kKind, class T>
void pool(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const int64_t taps = (a.s - 1) * a.dilation_w + 1, chunk = most(1, (kPoolSpan - taps) / a.stride_w + 1);
  const int64_t work = plan.p * plan.q * a.r * a.s;
  parallel_for(executor, 0, a.n * a.c, most(1, 65536 / most(work, 1)), [&](int64_t begin, int64_t end) {
    // Vectors of the last columns read behind them.
    float row[kPoolSpan + 3 * kLanes] = {};
    float widths[kPoolSpan + kLanes], divisors[kPoolSpan + kLanes];
    for (int64_t q = 0; q < plan.q; q += chunk) {
      const int64_t count = least(chunk, plan.q - q), whole = (count + kLanes - 1) / kLanes * kLanes;
      for (int64_t j = 0; j < whole; ++j) {
        widths[j] = j < count ? static_cast<float>(column_window(a, q + j).counted) : 1.0f;
      }
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t n = plane / a.c, c = plane % a.c;
        const T* x = static_cast<const T*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
        T* y = static_cast<T*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1] + q;
        for (int64_t p = 0; p < plan.p; ++p) {
          const Window rows = row_window(a, p);
          if constexpr (kKind == PoolKind::average) {
            for (int64_t j = 0; j < whole; j += kLanes) {
              const F32 elements = load<F32>(widths + j) * broadcast(static_cast<float>(rows.counted));
              const F32 d = a.divisor ? broadcast(static_cast<float>(a.divisor)) : elements;
              store(divisors + j, d == F32{} ? broadcast(1.0f) : d);  // torch's average of nothing is 0
            }
          }
          const int64_t span = (count - 1) * a.stride_w + taps;
          merge_rows<kKind>(a, x, rows, q * a.stride_w - a.pad_w, span, row);
          merge_columns<kKind>(a, row, count, divisors, y + p * a.y_stride[2]);
        }
      }
    }
  });
}

}  // namespace

void pool2d_planes(const Pool2dPlan& plan, const Executor& executor) {
  by_type(plan, [&]<PoolKind kKind, class T>() { pool<kKind, T>(plan, executor); });
}

}  // namespace PK_ISA
}  // namespace pk
