// Pools of int8. A maximum compares bytes, an average adds up (int8_sums.h).
//
//   channels adjacent: for each pixel of y, vectors of channels, while the window goes by
//   columns adjacent:  a plane at a time: the rows of a window become one row, then its columns become one
//   else:              element by element
//
// Compiled with -ffp-contract=off (cmake/isa.cmake).
#include "cpu/bytes.h"
#include "cpu/parallel_for.h"
#include "cpu/pool2d/int8_sums.h"
#include "cpu/pool2d/isa.h"
#include "cpu/pool2d/window.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kChannels = 4 * kVecBytes;  // that a thread takes at a time
constexpr int64_t kGrain = 65536;             // elements that are worth waking a thread for
using Bytes = int8_t __attribute__((vector_size(16)));

// What a pixel of y is made of, and what its sum is divided by.
struct Taps : Elements {
  int32_t zero;  // the sum of their zero points
  float divisor;
  float inverse;  // or 0: see inverse_of
};

// 1 / d where a product with it rounds to the same int8 as the quotient does, else 0. No quotient by an odd number lies
// in the middle between two ints; one by a power of two is exact. And for numbers as small as these, none lies so near
// to the middle that the product's error, 2^-15 at most, would matter.
float inverse_of(int64_t d) {
  const int64_t size = d < 0 ? -d : d;
  const bool fits = size > 0 && size < 1 << 14 && (size % 2 == 1 || (size & (size - 1)) == 0);
  return fits ? 1.0f / static_cast<float>(d) : 0.0f;
}

Taps taps_of(const Pool2dArgs& a, const int8_t* image, const Window& rows, const Window& columns) {
  const int64_t divisor = a.divisor ? a.divisor : rows.counted * columns.counted;
  Taps t = {{image, rows.end - rows.begin, columns.end - columns.begin, a.dilation_h * a.x_stride[2],
             a.dilation_w * a.x_stride[3]},
            0,
            static_cast<float>(divisor),
            inverse_of(divisor)};
  if (t.rows && t.columns) {
    t.x += (rows.start + rows.begin * a.dilation_h) * a.x_stride[2] +
           (columns.start + columns.begin * a.dilation_w) * a.x_stride[3];
    t.zero = a.zero_point * static_cast<int32_t>(t.rows * t.columns);
  } else {
    t.rows = 0;
    t.divisor = t.inverse = 1;  // torch's average of nothing is 0
  }
  return t;
}

template <class V>
inline V largest(const Taps& t, int64_t c) {
  V v = V{} + static_cast<int8_t>(-128);
  const int8_t* row = t.x + c;
  for (int64_t i = 0; i < t.rows; ++i, row += t.row_step) {
    const int8_t* at = row;
    for (int64_t j = 0; j < t.columns; ++j, at += t.column_step) {
      const V x = load<V>(at);
      v = x > v ? x : v;
    }
  }
  return v;
}

// What averages become: bytes on x's grid, or floats.
class Finish {
 public:
  explicit Finish(const Pool2dArgs& a)
      : rounding_(a.zero_point), scale_(broadcast(a.scale)), floats_(a.scale != 0.0f) {}

  bool floats() const { return floats_; }
  // Low bytes.
  I32 bytes(I32 sum, F32 divisor) const { return rounding_(to_f32(sum) / divisor); }
  I32 bytes_by(I32 sum, F32 inverse) const { return rounding_(to_f32(sum) * inverse); }
  F32 real(I32 sum, F32 divisor) const { return to_f32(sum) / divisor * scale_; }

  void put(int32_t sum, float divisor, void* y, int64_t at) const {
    if (floats_) {
      static_cast<float*>(y)[at] = real(broadcast(sum), broadcast(divisor))[0];
    } else {
      static_cast<int8_t*>(y)[at] = static_cast<int8_t>(bytes(broadcast(sum), broadcast(divisor))[0]);
    }
  }

 private:
  Rounding rounding_;
  F32 scale_;
  bool floats_;
};

// Averages of channels [c, c + count), kCount words of them or a part of one, to y at `at`.
template <bool kWhole, int kCount>
inline void average(const Finish& finish, const Taps& t, int64_t c, int64_t count, void* y, int64_t at) {
  Elements e = t;
  e.x += c;
  I32 total[2 * kCount];
  add_up<kWhole, kCount>(e, count, total);
  const F32 divisor = broadcast(t.divisor);
  for (I32& sum : total) sum -= broadcast(t.zero);
  if (finish.floats()) {
    float* const to = static_cast<float*>(y) + at + c;
    for (int k = 0; k < 2 * kCount && k * kLanes < count; ++k) {
      const F32 v = finish.real(total[k], divisor);
      const int64_t here = min(kLanes, count - k * kLanes);
      here == kLanes ? store(to + k * kLanes, v) : store_partial(to + k * kLanes, v, here);
    }
    return;
  }
  int8_t* const to = static_cast<int8_t*>(y) + at + c;
  const bool multiplies = t.inverse != 0.0f;
  const F32 inverse = broadcast(t.inverse);
  for (I32& sum : total) sum = multiplies ? finish.bytes_by(sum, inverse) : finish.bytes(sum, divisor);
  if constexpr (kCount % 2 == 0) {
    for (int k = 0; k < 2 * kCount; k += 4) {
      store(to + k * kLanes, to_i8(total[k], total[k + 1], total[k + 2], total[k + 3]));
    }
  } else {
    for (int k = 0; k < 2 * kCount && k * kLanes < count; ++k) {
      const int64_t here = min(kLanes, count - k * kLanes);
      here == kLanes ? store_bytes(to + k * kLanes, total[k]) : store_bytes(to + k * kLanes, total[k], here);
    }
  }
}

template <class V>
inline int64_t largest_channels(const Taps& t, int64_t c, int64_t end, int8_t* y) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(V));
  for (; c + kSize <= end; c += kSize) store(y + c, largest<V>(t, c));
  if (c == end || c < kSize) return c;
  store(y + end - kSize, largest<V>(t, end - kSize));  // some once more
  return end;
}

// Channels [c, end).
void max_pixel(const Taps& t, int64_t c, int64_t end, int8_t* y) {
  c = largest_channels<I8>(t, c, end, y);
  c = largest_channels<Bytes>(t, c, end, y);
  for (; c < end; ++c) {
    int8_t v = -128;
    for (int64_t i = 0; i < t.rows; ++i) {
      for (int64_t j = 0; j < t.columns; ++j) {
        const int8_t x = t.x[i * t.row_step + j * t.column_step + c];
        v = x > v ? x : v;
      }
    }
    y[c] = v;
  }
}

void channels(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const Finish finish(a);
  const int64_t blocks = (a.c + kChannels - 1) / kChannels, work = plan.q * least(a.c, kChannels) * a.r * a.s;
  parallel_for(executor, 0, a.n * plan.p * blocks, most(1, kGrain / most(work, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, n = row / plan.p, p = row % plan.p;
      const int64_t first = i % blocks * kChannels, last = least(a.c, first + kChannels);
      const Window rows = row_window(a, p);
      const int8_t* image = static_cast<const int8_t*>(a.x) + n * a.x_stride[0];
      for (int64_t q = 0; q < plan.q; ++q) {
        const Taps t = taps_of(a, image, rows, column_window(a, q));
        const int64_t at = n * a.y_stride[0] + p * a.y_stride[2] + q * a.y_stride[3];
        if (a.kind == PoolKind::max) {
          max_pixel(t, first, last, static_cast<int8_t*>(a.y) + at);
          continue;
        }
        int64_t c = first;
        for (; c + 4 * kWords <= last; c += 4 * kWords) average<true, 4>(finish, t, c, 4 * kWords, a.y, at);
        for (; c + kWords <= last; c += kWords) average<true, 1>(finish, t, c, kWords, a.y, at);
        if (c < last) average<false, 1>(finish, t, c, last - c, a.y, at);
      }
    }
  });
}

// Averages over whole maps whose columns are adjacent.
void whole_planes(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const Finish finish(a);
  const bool adjacent = a.h == 1 || a.x_stride[2] == a.w;
  const int64_t rows = adjacent ? 1 : a.h, count = adjacent ? a.h * a.w : a.w;
  const int32_t zero = a.zero_point * static_cast<int32_t>(a.h * a.w);
  const auto divisor = static_cast<float>(a.divisor ? a.divisor : a.h * a.w);
  parallel_for(executor, 0, a.n * a.c, most(1, kGrain / (a.h * a.w)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / a.c, c = i % a.c;
      const int8_t* x = static_cast<const int8_t*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
      int32_t sum = -zero;
      for (int64_t h = 0; h < rows; ++h) sum += sum_of_bytes(x + h * a.x_stride[2], count);
      finish.put(sum, divisor, a.y, n * a.y_stride[0] + c * a.y_stride[1]);
    }
  });
}

// What a plane is pooled in: bytes for a maximum, 32-bit sums of x - zero for an average.
struct Largest {
  using Number = int8_t;
  using Vector = Bytes;
  static constexpr int64_t kCount = 16;
  static constexpr int8_t kNothing = -128;

  Vector load_from(const int8_t* x) const { return load<Bytes>(x); }
  Vector load_from(const int8_t* x, int64_t count) const {
    int8_t some[kCount] = {};
    std::memcpy(some, x, static_cast<size_t>(count));
    return load<Bytes>(some);
  }
  static Vector together(Vector a, Vector b) { return a > b ? a : b; }
  static int8_t together(int8_t a, int8_t b) { return a > b ? a : b; }
  static Vector evens(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
};
struct Sum {
  using Number = int32_t;
  using Vector = I32;
  static constexpr int64_t kCount = kLanes;
  static constexpr int32_t kNothing = 0;
  I32 zero;

  Vector load_from(const int8_t* x) const { return load_bytes(x) - zero; }
  Vector load_from(const int8_t* x, int64_t count) const { return load_bytes(x, count) - zero; }
  static Vector together(Vector a, Vector b) { return a + b; }
  static int32_t together(int32_t a, int32_t b) { return a + b; }
  static Vector evens(Vector a, Vector b) {
    I32 order;
    for (int i = 0; i < kLanes; ++i) order[i] = 2 * i;
    return __builtin_shuffle(a, b, order);
  }
};

// row[0, span) of the rows of `window` from column `first` on; what lies outside of the image is nothing.
template <class Way>
inline void merge_rows(const Way& way, const Pool2dArgs& a, const int8_t* plane, const Window& window, int64_t first,
                       int64_t span, typename Way::Number* row) {
  const int64_t begin = least(most(-first, 0), span), end = most(begin, least(a.w - first, span));
  const int64_t rows = window.end - window.begin, step = a.dilation_h * a.x_stride[2];
  const int8_t* x = plane + (window.start + window.begin * a.dilation_h) * a.x_stride[2] + first;
  for (int64_t i = 0; i < begin; ++i) row[i] = Way::kNothing;
  for (int64_t i = begin; i < end; i += Way::kCount) {
    if (i + Way::kCount > end && end - begin >= Way::kCount) i = end - Way::kCount;  // some once more
    const bool whole = i + Way::kCount <= end;
    typename Way::Vector v = typename Way::Vector{} + Way::kNothing;
    for (int64_t u = 0; u < rows; ++u) {
      const int8_t* at = x + u * step + i;
      v = Way::together(v, whole ? way.load_from(at) : way.load_from(at, end - i));
    }
    store(row + i, v);
  }
  for (int64_t i = end; i < span; ++i) row[i] = Way::kNothing;
}

// to[j] = what the window's columns make of row, j < count. There are vectors behind both.
template <class Way>
inline void merge_columns(const Pool2dArgs& a, const typename Way::Number* row, int64_t count,
                          typename Way::Number* to) {
  if (a.stride_w > 2) {
    for (int64_t j = 0; j < count; ++j) {
      const auto* at = row + j * a.stride_w;
      auto v = at[0];
      for (int64_t t = 1; t < a.s; ++t) v = Way::together(v, at[t * a.dilation_w]);
      to[j] = v;
    }
    return;
  }
  using Vector = typename Way::Vector;
  for (int64_t j = 0; j < count; j += Way::kCount) {
    Vector v = {};
    for (int64_t t = 0; t < a.s; ++t) {
      const auto* at = row + j * a.stride_w + t * a.dilation_w;
      const Vector next =
          a.stride_w == 1 ? load<Vector>(at) : Way::evens(load<Vector>(at), load<Vector>(at + Way::kCount));
      v = t == 0 ? next : Way::together(v, next);
    }
    store(to + j, v);
  }
}

void put_averages(const Finish& finish, const int32_t* sums, const float* divisors, int64_t count, void* y,
                  int64_t at) {
  if (finish.floats()) {
    for (int64_t j = 0; j < count; ++j) finish.put(sums[j], divisors[j], y, at + j);
    return;
  }
  struct Row {
    const Finish& finish;
    const int32_t* sums;
    const float* divisors;
    I32 operator()(int64_t j) const { return finish.bytes(load<I32>(sums + j), load<F32>(divisors + j)); }
    I32 operator()(int64_t j, int64_t) const { return (*this)(j); }  // there are vectors behind the last one
  };
  store_row(Row{finish, sums, divisors}, count, static_cast<int8_t*>(y) + at);
}

void planes(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const Finish finish(a);
  const int64_t taps = (a.s - 1) * a.dilation_w + 1, chunk = most(1, (kPoolSpan - taps) / a.stride_w + 1);
  const int64_t work = plan.p * plan.q * a.r * a.s;
  parallel_for(executor, 0, a.n * a.c, most(1, kGrain / most(work, 1)), [&](int64_t begin, int64_t end) {
    constexpr int64_t kBehind = 64;  // what vectors of the last columns read and write behind them
    int8_t bytes[kPoolSpan + kBehind] = {}, largest[kPoolSpan + kBehind];
    int32_t numbers[kPoolSpan + kBehind] = {}, sums[kPoolSpan + kBehind] = {};
    float divisors[kPoolSpan + kBehind];
    const Sum sum = {broadcast(a.zero_point)};
    for (float& d : divisors) d = 1;
    for (int64_t q = 0; q < plan.q; q += chunk) {
      const int64_t count = least(chunk, plan.q - q), span = (count - 1) * a.stride_w + taps;
      int32_t widths[kPoolSpan];
      for (int64_t j = 0; j < count; ++j) widths[j] = static_cast<int32_t>(column_window(a, q + j).counted);
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t n = plane / a.c, c = plane % a.c;
        const int8_t* x = static_cast<const int8_t*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
        int64_t at = n * a.y_stride[0] + c * a.y_stride[1] + q;
        for (int64_t p = 0; p < plan.p; ++p, at += a.y_stride[2]) {
          const Window rows = row_window(a, p);
          const int64_t first = q * a.stride_w - a.pad_w;
          if (a.kind == PoolKind::max) {
            merge_rows(Largest{}, a, x, rows, first, span, bytes);
            merge_columns<Largest>(a, bytes, count, largest);
            std::memcpy(static_cast<int8_t*>(a.y) + at, largest, static_cast<size_t>(count));
            continue;
          }
          for (int64_t j = 0; j < count; ++j) {
            const int64_t counted = a.divisor ? a.divisor : rows.counted * widths[j];
            divisors[j] = static_cast<float>(counted ? counted : 1);  // torch's average of nothing is 0
          }
          merge_rows(sum, a, x, rows, first, span, numbers);
          merge_columns<Sum>(a, numbers, count, sums);
          put_averages(finish, sums, divisors, count, a.y, at);
        }
      }
    }
  });
}

// Any strides.
void elements(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const Finish finish(a);
  parallel_for(executor, 0, a.n * plan.p, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / plan.p, p = row % plan.p;
      const Window rows = row_window(a, p);
      for (int64_t i = 0; i < plan.q * a.c; ++i) {
        const int64_t q = i / a.c, c = i % a.c;
        const int8_t* x = static_cast<const int8_t*>(a.x) + n * a.x_stride[0] + c * a.x_stride[1];
        const Taps t = taps_of(a, x, rows, column_window(a, q));
        int64_t sum = -t.zero;
        int8_t v = -128;
        for (int64_t u = 0; u < t.rows; ++u) {
          for (int64_t w = 0; w < t.columns; ++w) {
            const int8_t element = t.x[u * t.row_step + w * t.column_step];
            sum += element;
            v = element > v ? element : v;
          }
        }
        const int64_t at = n * a.y_stride[0] + c * a.y_stride[1] + p * a.y_stride[2] + q * a.y_stride[3];
        if (a.kind == PoolKind::max) {
          static_cast<int8_t*>(a.y)[at] = v;
        } else {
          finish.put(static_cast<int32_t>(sum), t.divisor, a.y, at);
        }
      }
    }
  });
}

}  // namespace

void pool2d_int8(const Pool2dPlan& plan, const Executor& executor) {
  const Pool2dArgs& a = plan.args;
  const bool columns = (a.w == 1 || a.x_stride[3] == 1) && (plan.q == 1 || a.y_stride[3] == 1);
  const bool narrow = (a.s - 1) * a.dilation_w < kPoolSpan / 2 && a.stride_w < kPoolSpan / 2;
  const bool whole = a.kind == PoolKind::average && a.r == a.h && a.s == a.w && a.pad_h == 0 && a.pad_w == 0;
  if (a.c > 1 && a.x_stride[1] == 1 && a.y_stride[1] == 1) return channels(plan, executor);
  if (whole && columns && plan.p == 1 && plan.q == 1) return whole_planes(plan, executor);
  if (columns && narrow) return planes(plan, executor);
  elements(plan, executor);
}

}  // namespace PK_ISA
}  // namespace pk
