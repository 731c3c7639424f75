// Pools of images whose channels are adjacent: for each pixel of y, four vectors of channels at a time stay in
// registers while the window goes by. Each element of x is read once for every window that it is in, mostly from the
// cache; it is the memory that such a loop waits for. Channels that lie apart are gathered, which is slow, and rare.
#include "cpu/parallel_for.h"
#include "cpu/pool2d/isa.h"
#include "cpu/pool2d/window.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int kVectors = 4;

// What a pixel of y is made of: `rows` x `columns` elements of x from `x` on, and what their sum is divided by.
template <class T>
struct Taps {
  const T* x;
  int64_t rows, columns, row_step, column_step;
  float divisor;
};

template <PoolKind kKind>
inline F32 finished(F32 v, float divisor) {
  return kKind == PoolKind::average ? v / broadcast(divisor) : v;
}

template <PoolKind kKind, int kCount, class T>
inline void pool_vectors(const Taps<T>& t, int64_t c, T* y) {
  F32 v[kCount];
  for (int k = 0; k < kCount; ++k) v[k] = nothing<kKind>();
  const T* row = t.x + c;
  for (int64_t i = 0; i < t.rows; ++i, row += t.row_step) {
    const T* at = row;
    for (int64_t j = 0; j < t.columns; ++j, at += t.column_step) {
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) v[k] = combine<kKind>(v[k], load_widened(at + k * kLanes));
    }
  }
  for (int k = 0; k < kCount; ++k) store_narrowed(y + c + k * kLanes, finished<kKind>(v[k], t.divisor));
}

// The last channels, fewer than a vector.
template <PoolKind kKind, class T>
inline void pool_last(const Taps<T>& t, int64_t c, int64_t lanes, T* y) {
  F32 v = nothing<kKind>();
  for (int64_t i = 0; i < t.rows; ++i) {
    for (int64_t j = 0; j < t.columns; ++j) {
      v = combine<kKind>(v, load_widened(t.x + i * t.row_step + j * t.column_step + c, lanes));
    }
  }
  store_narrowed(y + c, finished<kKind>(v, t.divisor), lanes);
}

// Channels x_step and y_step apart.
template <PoolKind kKind, class T>
__attribute__((noinline)) void pool_apart(const Taps<T>& t, int64_t channels, int64_t x_step, int64_t y_step, T* y) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t lanes = least(kLanes, channels - c);
    F32 v = nothing<kKind>();
    for (int64_t i = 0; i < t.rows; ++i) {
      for (int64_t j = 0; j < t.columns; ++j) {
        const T* at = t.x + i * t.row_step + j * t.column_step + c * x_step;
        float gathered[kLanes] = {};
        for (int64_t k = 0; k < lanes; ++k) gathered[k] = widen(at[k * x_step]);
        v = combine<kKind>(v, load<F32>(gathered));
      }
    }
    T last[kLanes];
    store_narrowed(last, finished<kKind>(v, t.divisor));
    for (int64_t k = 0; k < lanes; ++k) y[(c + k) * y_step] = last[k];
  }
}

template <PoolKind kKind, class T>
void pool(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const bool adjacent = (a.x_stride[1] == 1 && a.y_stride[1] == 1) || a.c == 1;
  const int64_t work = plan.q * a.c * a.r * a.s;
  parallel_for(executor, 0, a.n * plan.p, most(1, 65536 / most(work, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / plan.p, p = row % plan.p;
      const Window rows = row_window(a, p);
      const T* image = static_cast<const T*>(a.x) + n * a.x_stride[0];
      T* to = static_cast<T*>(a.y) + n * a.y_stride[0] + p * a.y_stride[2];
      for (int64_t q = 0; q < plan.q; ++q, to += a.y_stride[3]) {
        const Window columns = column_window(a, q);
        Taps<T> t;
        t.rows = rows.end - rows.begin;
        t.columns = columns.end - columns.begin;
        t.row_step = a.dilation_h * a.x_stride[2];
        t.column_step = a.dilation_w * a.x_stride[3];
        t.divisor = static_cast<float>(a.divisor ? a.divisor : rows.counted * columns.counted);
        t.x = image;
        if (t.rows && t.columns) {
          t.x += (rows.start + rows.begin * a.dilation_h) * a.x_stride[2] +
                 (columns.start + columns.begin * a.dilation_w) * a.x_stride[3];
        } else {
          t.rows = 0;
          t.divisor = 1;  // torch's average of nothing is 0
        }
        if (!adjacent) {
          pool_apart<kKind>(t, a.c, a.x_stride[1], a.y_stride[1], to);
          continue;
        }
        int64_t c = 0;
        for (; c + kVectors * kLanes <= a.c; c += kVectors * kLanes) pool_vectors<kKind, kVectors>(t, c, to);
        for (; c + kLanes <= a.c; c += kLanes) pool_vectors<kKind, 1>(t, c, to);
        if (c < a.c) pool_last<kKind>(t, c, a.c - c, to);
      }
    }
  });
}

}  // namespace

void pool2d_channels(const Pool2dPlan& plan, const Executor& executor) {
  by_type(plan, [&]<PoolKind kKind, class T>() { pool<kKind, T>(plan, executor); });
}

}  // namespace PK_ISA
}  // namespace pk
