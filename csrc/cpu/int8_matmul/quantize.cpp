// quantize_int8: one pass over x for the range of each channel, one that divides and rounds.
//
// x is (outer, channels, inner). A single channel is one run of numbers, dealt to the threads; inner == 1 keeps a
// channel a lane; otherwise a channel is `outer` runs of `inner` numbers. Minimum and maximum don't depend on the order
// or the threads, so neither does any bit of the result. Divided, not multiplied by 1 / scale: a tiny scale has no
// reciprocal.
#include "cpu/int8_matmul/kernels.h"
#include "cpu/int8_matmul/rounding.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kParts = 64;       // the most pieces that a tensor of one channel is cut into
constexpr int64_t kGrain = 1 << 15;  // numbers worth a thread

struct Range {
  I32 largest;    // |x| as bits: tells NaN and infinity
  F32 low, high;  // with 0, without NaN

  void add(F32 x) {
    largest = larger_of(largest, magnitude(x));
    low = min(x, low);
    high = max(x, high);
  }
  void add(const Range& r) {
    largest = larger_of(largest, r.largest);
    low = min(r.low, low);
    high = max(r.high, high);
  }
};

// All lanes into each.
inline Range across(const Range& r) {
  Range all{};
  for (int i = 0; i < kLanes; ++i) all.add(Range{broadcast(r.largest[i]), broadcast(r.low[i]), broadcast(r.high[i])});
  return all;
}

struct Grid {
  F32 scale;
  I32 zero_point;
};

inline Grid grid_of(const Range& r, bool symmetric) {
  const I32 infinity = broadcast(0x7f800000);
  F32 scale = bit_cast<F32>(r.largest) / 127.0f;
  F32 zero{};
  if (!symmetric) {
    scale = r.largest > infinity ? bit_cast<F32>(r.largest) : r.high / 255.0f - r.low / 255.0f;
    zero = -128.0f - r.low / scale;
  }
  const I32 bad = (r.largest >= infinity) | (scale == 0.0f);
  scale = scale == 0.0f ? F32{} + 1.0f : scale;
  return {scale, bad ? I32{} : round_saturated(zero, -128.0f, 127.0f)};
}

inline I32 on_grid(F32 x, const Grid& g, bool symmetric) {
  if (symmetric) return quantized(x, g.scale);
  const I32 q = round_saturated(x / g.scale, -512.0f, 512.0f) + g.zero_point;
  const I32 low = broadcast(-128), high = broadcast(127);
  return q < low ? low : q > high ? high : q;
}

inline void store_q(int8_t* to, I32 q, int64_t count) {
  const I8Quarter bytes = to_i8(q);
  if (count >= kLanes) {
    store(to, bytes);
  } else {
    std::memcpy(to, &bytes, static_cast<size_t>(count));
  }
}

template <class T>
inline Range range_of_run(const T* x, int64_t n) {
  Range a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a.add(load_as_f32(x + i));
    b.add(load_as_f32(x + i + kLanes));
  }
  for (; i < n; i += kLanes) a.add(load_some_as_f32(x + i, n - i < kLanes ? n - i : kLanes));
  a.add(b);
  return a;
}

template <class T>
inline void quantize_run(const T* x, int64_t n, const Grid& grid, bool symmetric, int8_t* q) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(q + i, to_i8(on_grid(load_as_f32(x + i), grid, symmetric)));
  if (i < n) store_q(q + i, on_grid(load_some_as_f32(x + i, n - i), grid, symmetric), n - i);
}

inline void store_grid(const QuantizeInt8Args& p, int64_t channel, const Grid& grid) {
  p.scale[channel] = grid.scale[0];
  p.zero_point[channel] = grid.zero_point[0];
}

template <class T>
inline void whole(const QuantizeInt8Args& p, const T* x, const Executor& executor) {
  const int64_t n = p.outer * p.inner;
  int64_t parts = n / kGrain < kParts ? n / kGrain : kParts;
  if (parts < 1) parts = 1;
  const int64_t part = (n + parts - 1) / parts;
  const auto length = [&](int64_t i) { return i * part >= n ? 0 : n - i * part < part ? n - i * part : part; };
  Range ranges[kParts];
  parallel_for(executor, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ranges[i] = range_of_run(x + i * part, length(i));
  });
  for (int64_t i = 1; i < parts; ++i) ranges[0].add(ranges[i]);
  const Grid grid = grid_of(across(ranges[0]), p.symmetric);
  store_grid(p, 0, grid);
  parallel_for(executor, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      quantize_run(x + i * part, length(i), grid, p.symmetric, p.q + i * part);
    }
  });
}

template <class T>
inline void runs(const QuantizeInt8Args& p, const T* x, int64_t channel) {
  const int64_t step = p.channels * p.inner, first = channel * p.inner;
  Range range{};
  for (int64_t o = 0; o < p.outer; ++o) range.add(range_of_run(x + first + o * step, p.inner));
  const Grid grid = grid_of(across(range), p.symmetric);
  store_grid(p, channel, grid);
  for (int64_t o = 0; o < p.outer; ++o) {
    quantize_run(x + first + o * step, p.inner, grid, p.symmetric, p.q + first + o * step);
  }
}

// Channels [first, first + count), count <= kLanes, a lane each.
template <class T>
inline void lanes(const QuantizeInt8Args& p, const T* x, int64_t first, int64_t count) {
  const bool full = count == kLanes;
  Range range{};
  for (int64_t o = 0; o < p.outer; ++o) {
    const T* at = x + o * p.channels + first;
    range.add(full ? load_as_f32(at) : load_some_as_f32(at, count));
  }
  const Grid grid = grid_of(range, p.symmetric);
  for (int i = 0; i < count; ++i) {
    p.scale[first + i] = grid.scale[i];
    p.zero_point[first + i] = grid.zero_point[i];
  }
  for (int64_t o = 0; o < p.outer; ++o) {
    const int64_t i = o * p.channels + first;
    store_q(p.q + i, on_grid(full ? load_as_f32(x + i) : load_some_as_f32(x + i, count), grid, p.symmetric), count);
  }
}

template <class T>
inline void quantize_as(const QuantizeInt8Args& p, const T* x, const Executor& executor) {
  if (p.channels == 1) {
    whole(p, x, executor);
    return;
  }
  const int64_t width = p.inner == 1 ? kLanes : 1;
  const int64_t work = p.outer * p.inner * width;
  parallel_for(executor, 0, (p.channels + width - 1) / width, work < kGrain ? kGrain / (work + 1) + 1 : 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   if (width == 1) {
                     runs(p, x, i);
                   } else {
                     const int64_t first = i * width, left = p.channels - first;
                     lanes(p, x, first, left < width ? left : width);
                   }
                 }
               });
}

void quantize(const QuantizeInt8Args& p, const Executor& executor) {
  if (p.x_dtype == DType::f32) {
    quantize_as(p, static_cast<const float*>(p.x), executor);
  } else {
    quantize_as(p, static_cast<const bf16_t*>(p.x), executor);
  }
}

}  // namespace

extern const QuantizeKernels quantize_kernels;
const QuantizeKernels quantize_kernels = {quantize};

}  // namespace PK_ISA
}  // namespace pk
