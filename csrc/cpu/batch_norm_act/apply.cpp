// Two loops; each call chooses one of them:
//
//   channels adjacent in all tensors (channels_last and slices of it): pixel by pixel, vectors of channels
//   else:                                                              rows of pixels of one channel, vectors of pixels
//
// compiled for each activation. The first reads and writes whole lines in order. Consecutive vectors do not depend on
// each other, so the CPU computes the polynomials of several at a time.
#include <utility>

#include "cpu/activate.h"
#include "cpu/batch_norm_act/kernels.h"
#include "cpu/elements.h"

namespace pk {
namespace PK_ISA {
namespace {

using Args = BatchNormActArgs;

// The least that a thread is woken for, in elements.
constexpr int64_t kGrain = 16384;

// act(x * scale + shift + residual) of a vector, with the activation's usual constants or, if kOwn, p and q.
template <Activation kA, bool kOwn>
struct Apply {
  F32 scale, shift, p, q;
  float negative_slope;

  F32 operator()(F32 x, F32 residual) const { return act(fma(x, scale, shift) + residual); }
  F32 operator()(F32 x) const { return act(fma(x, scale, shift)); }
  F32 act(F32 x) const { return kOwn ? activate(x, kA, p, q) : activate(x, kA, negative_slope); }
};

// Where the constants of all channels lie. A local of each loop: a store may change whatever is read through a pointer,
// as far as compilers know.
template <Activation kA, bool kOwn>
struct Constants {
  const float *scale, *shift, *p, *q;
  float negative_slope;

  explicit Constants(const Args& a)
      : scale(a.scale),
        shift(a.shift),
        p(a.parameters),
        q(a.parameters ? a.parameters + a.c : nullptr),
        negative_slope(a.negative_slope) {}

  // Of channels [c, c + lanes), a lane each.
  Apply<kA, kOwn> of_lanes(int64_t c, int64_t lanes) const {
    const auto get = [=](const float* of) { return lanes == kLanes ? load<F32>(of + c) : load_partial(of + c, lanes); };
    Apply<kA, kOwn> result = {};
    result.scale = scale ? get(scale) : broadcast(1.0f);
    result.shift = shift ? get(shift) : -F32{};  // x + -0 keeps -0
    result.negative_slope = negative_slope;
    if constexpr (kOwn) result.p = get(p);
    if constexpr (kOwn && parameters_of(kA) > 1) result.q = get(q);
    return result;
  }
  // Of the one channel c in every lane.
  Apply<kA, kOwn> of_channel(int64_t c) const {
    Apply<kA, kOwn> result = {};
    result.scale = broadcast(scale ? scale[c] : 1.0f);
    result.shift = shift ? broadcast(shift[c]) : -F32{};
    result.negative_slope = negative_slope;
    if constexpr (kOwn) result.p = broadcast(p[c]);
    if constexpr (kOwn && parameters_of(kA) > 1) result.q = broadcast(q[c]);
    return result;
  }
};

// Channels [c0, c0 + count) of one pixel; the residual may be null.
template <Activation kA, bool kOwn, class T>
__attribute__((always_inline)) inline void apply_pixel(Constants<kA, kOwn> k, const T* x, const T* residual, T* y,
                                                       int64_t c0, int64_t count) {
  int64_t j = 0;
  if (residual) {
    for (; j + kLanes <= count; j += kLanes) {
      store_narrowed(y + j, k.of_lanes(c0 + j, kLanes)(load_widened(x + j), load_widened(residual + j)));
    }
  } else if (k.scale && k.shift) {
    // By two, loads before stores.
    for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
      const F32 u = fma(load_widened(x + j), load<F32>(k.scale + c0 + j), load<F32>(k.shift + c0 + j));
      const int64_t next = j + kLanes;
      const F32 v = fma(load_widened(x + next), load<F32>(k.scale + c0 + next), load<F32>(k.shift + c0 + next));
      store_narrowed(y + j, k.of_lanes(c0 + j, kLanes).act(u));
      store_narrowed(y + next, k.of_lanes(c0 + next, kLanes).act(v));
    }
  }
  for (; j + kLanes <= count; j += kLanes) store_narrowed(y + j, k.of_lanes(c0 + j, kLanes)(load_widened(x + j)));
  if (j == count) return;
  const int64_t lanes = count - j;
  const auto apply = k.of_lanes(c0 + j, lanes);
  const F32 value = load_widened(x + j, lanes);
  store_narrowed(y + j, residual ? apply(value, load_widened(residual + j, lanes)) : apply(value), lanes);
}

// Pixels [begin, end) of n * h * w, channels adjacent in all tensors.
template <Activation kA, bool kOwn, class T>
void channels(int64_t begin, int64_t end, void* context) {
  const Args a = *static_cast<const Args*>(context);
  const Constants<kA, kOwn> k(a);
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t row = pixel / a.w, from = pixel % a.w, to = min(a.w, from + end - pixel);
    const int64_t n = row / a.h, h = row % a.h;
    const auto at = [&](const int64_t* stride, int64_t w) { return n * stride[0] + h * stride[2] + w * stride[3]; };
    for (int64_t w = from; w < to; ++w) {
      T* y = static_cast<T*>(a.y) + at(a.y_stride, w);
      const T* residual = static_cast<const T*>(a.residual.data);
      if (residual) residual += at(a.residual.stride, w);
      for (int64_t i = 0, c = 0; i < a.pieces; ++i) {
        const BatchNormTensor& x = a.x[i];
        const int64_t count = x.channels;
        const T* of_pixel = static_cast<const T*>(x.data) + at(x.stride, w);
        apply_pixel(k, of_pixel, residual ? residual + c : nullptr, y + c, c, count);
        c += count;
      }
    }
    pixel += to - from;
  }
}

// `count` elements, `step` apart, from and to a vector.
template <class T>
inline F32 gather(const T* from, int64_t step, int64_t count) {
  if (step == 1) return count == kLanes ? load_widened(from) : load_widened(from, count);
  T whole[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = from[i * step];
  return load_widened(whole);
}
template <class T>
inline void scatter(T* to, F32 v, int64_t step, int64_t count) {
  if (step == 1) return count == kLanes ? store_narrowed(to, v) : store_narrowed(to, v, count);
  T whole[kLanes];
  store_narrowed(whole, v);
  for (int64_t i = 0; i < count; ++i) to[i * step] = whole[i];
}

// Channels [begin, end) of n * c, in any layout.
template <Activation kA, bool kOwn, class T>
void planes(int64_t begin, int64_t end, void* context) {
  const Args a = *static_cast<const Args*>(context);
  const Constants<kA, kOwn> k(a);
  const bool unit = a.y_stride[3] == 1 && (a.residual.data == nullptr || a.residual.stride[3] == 1);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / a.c, c = plane % a.c;
    int64_t i = 0, first = 0;
    while (c - first >= a.x[i].channels) first += a.x[i++].channels;
    const BatchNormTensor& x = a.x[i];
    const auto apply = k.of_channel(c);
    const T* from = static_cast<const T*>(x.data) + n * x.stride[0] + (c - first) * x.stride[1];
    T* to = static_cast<T*>(a.y) + n * a.y_stride[0] + c * a.y_stride[1];
    const T* residual = static_cast<const T*>(a.residual.data);
    if (residual) residual += n * a.residual.stride[0] + c * a.residual.stride[1];
    for (int64_t h = 0; h < a.h; ++h) {
      const T* row = from + h * x.stride[2];
      T* y = to + h * a.y_stride[2];
      const T* added = residual ? residual + h * a.residual.stride[2] : nullptr;
      int64_t w = 0;
      if (unit && x.stride[3] == 1) {
        for (; w + kLanes <= a.w; w += kLanes) {
          const F32 value = load_widened(row + w);
          store_narrowed(y + w, added ? apply(value, load_widened(added + w)) : apply(value));
        }
      }
      for (; w < a.w; w += kLanes) {
        const int64_t count = min(kLanes, a.w - w);
        const F32 value = gather(row + w * x.stride[3], x.stride[3], count);
        const F32 result =
            added ? apply(value, gather(added + w * a.residual.stride[3], a.residual.stride[3], count)) : apply(value);
        scatter(y + w * a.y_stride[3], result, a.y_stride[3], count);
      }
    }
  }
}

struct Loops {
  RangeBody of[kActivations][2][2][2];  // [activation][with constants by channel][bf16][planes]
};

template <Activation kA, bool kOwn, class T>
constexpr RangeBody kLoops[2] = {channels<kA, kOwn, T>, planes<kA, kOwn, T>};

template <int... code>
constexpr Loops loops_of(std::integer_sequence<int, code...>) {
  Loops loops = {};
  const auto fill = [&loops]<Activation kA>(std::integral_constant<Activation, kA>) {
    constexpr bool kOwn = parameters_of(kA) > 0;
    for (int i = 0; i < 2; ++i) {
      RangeBody(&of)[2][2][2] = loops.of[static_cast<int>(kA)];
      of[0][0][i] = kLoops<kA, false, float>[i];
      of[0][1][i] = kLoops<kA, false, bf16_t>[i];
      of[1][0][i] = kLoops<kA, kOwn, float>[i];
      of[1][1][i] = kLoops<kA, kOwn, bf16_t>[i];
    }
  };
  (fill(std::integral_constant<Activation, Activation{code}>()), ...);
  return loops;
}
constexpr Loops kAll = loops_of(std::make_integer_sequence<int, kActivations>());

// Are the rows of all images one, so that w may count the pixels of an image?
bool rows_adjoin(const Args& a) {
  const auto adjoins = [&a](const int64_t* stride) { return a.h == 1 || stride[2] == a.w * stride[3]; };
  bool all = adjoins(a.y_stride) && (a.residual.data == nullptr || adjoins(a.residual.stride));
  for (int64_t i = 0; i < a.pieces; ++i) all &= a.x[i].channels == 0 || adjoins(a.x[i].stride);
  return all;
}

void run(const Args& given, const Executor& executor) {
  Args a = given;
  if (rows_adjoin(a)) {
    a.w *= a.h;
    a.h = 1;
  }
  bool adjacent = a.y_stride[1] == 1 && (a.residual.data == nullptr || a.residual.stride[1] == 1);
  for (int64_t i = 0; i < a.pieces; ++i) adjacent &= a.x[i].channels <= 1 || a.x[i].stride[1] == 1;
  const bool by_planes = !adjacent || a.c == 1;
  const int64_t units = a.n * (by_planes ? a.c : a.h * a.w), each = by_planes ? a.h * a.w : a.c;
  const RangeBody body =
      kAll.of[static_cast<int>(a.activation)][a.parameters != nullptr][a.dtype == DType::bf16][by_planes];
  executor.run(0, units, kGrain / each + 1, body, &a);
}

}  // namespace

extern const BatchNormActKernels batch_norm_act_kernels;
const BatchNormActKernels batch_norm_act_kernels = {run};

}  // namespace PK_ISA
}  // namespace pk
