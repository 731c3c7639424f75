// The epilogue's loops, for each activation, dtype and layout of y.
#include "cpu/conv_bn_act/epilogue.h"

#include "cpu/activate.h"
#include "cpu/conv_bn_act/transpose.h"

namespace pk {
namespace PK_ISA {
namespace {

// Rows of a square under way without a trip to memory; of sixteen the code would be too long.
constexpr int kUnrolled = kLanes <= 8 ? kLanes : 1;

// The activation of some channels: with its usual constants, leaky_relu's slope among them, or, if kOwn, with theirs.
template <Activation kA, bool kOwn>
struct Activate {
  float negative_slope;
  F32 p, q;

  F32 operator()(F32 x) const { return kOwn ? activate(x, kA, p, q) : activate(x, kA, negative_slope); }
};

// Of channels [k, k + lanes), a lane each; or of the one channel k in every lane.
template <Activation kA, bool kOwn>
inline Activate<kA, kOwn> activate_lanes(const Epilogue& e, int64_t k, int64_t lanes) {
  Activate<kA, kOwn> result = {e.negative_slope, {}, {}};
  if constexpr (kOwn) result.p = load_partial(e.parameters + k, lanes);
  if constexpr (kOwn && parameters_of(kA) > 1) result.q = load_partial(e.parameters + e.k + k, lanes);
  return result;
}
template <Activation kA, bool kOwn>
inline Activate<kA, kOwn> activate_channel(const Epilogue& e, int64_t k) {
  Activate<kA, kOwn> result = {e.negative_slope, {}, {}};
  if constexpr (kOwn) result.p = broadcast(e.parameters[k]);
  if constexpr (kOwn && parameters_of(kA) > 1) result.q = broadcast(e.parameters[e.k + k]);
  return result;
}

// Channels adjacent in y and residual: vectors of channels.
template <Activation kA, bool kOwn, class T>
void finish_channels(const Epilogue& e, const Finish& f) {
  for (int64_t j = 0; j < f.count; j += kLanes) {
    const int64_t k = f.k0 + j, lanes = min(kLanes, f.count - j);
    const float* sums = f.sums + j;
    const auto act = activate_lanes<kA, kOwn>(e, k, lanes);
    T* y = reinterpret_cast<T*>(e.y) + k;
    const T* residual = e.residual ? reinterpret_cast<const T*>(e.residual) + k : nullptr;
    if (lanes < kLanes) {
      const F32 scale = e.scale ? load_partial(e.scale + k, lanes) : broadcast(1.0f);
      const F32 shift = e.shift ? load_partial(e.shift + k, lanes) : F32{};
      for (int64_t i = 0; i < f.pixels; ++i) {
        F32 v = fma(load<F32>(sums + i * f.row), scale, shift);
        if (residual) v += load_widened(residual + f.residual_at[i], lanes);
        store_narrowed(y + f.y_at[i], act(v), lanes);
      }
      return;
    }
    const F32 scale = e.scale ? load<F32>(e.scale + k) : broadcast(1.0f);
    const F32 shift = e.shift ? load<F32>(e.shift + k) : F32{};
    if (residual) {
      for (int64_t i = 0; i < f.pixels; ++i) {
        const F32 v = fma(load<F32>(sums + i * f.row), scale, shift) + load_widened(residual + f.residual_at[i]);
        store_narrowed(y + f.y_at[i], act(v));
      }
    } else {
      for (int64_t i = 0; i < f.pixels; ++i) {
        store_narrowed(y + f.y_at[i], act(fma(load<F32>(sums + i * f.row), scale, shift)));
      }
    }
  }
}

inline bool adjacent(const int64_t* at, int64_t pixels) {
  if (pixels < kLanes) return false;
  bool yes = true;
  for (int i = 1; i < kLanes; ++i) yes &= at[i] == at[0] + i;
  return yes;
}

// A square, square[channel][pixel], from and to pixels that are not adjacent, channels `stride` apart.
template <class T>
__attribute__((noinline)) void gather(T* square, const T* from, const int64_t* at, int64_t pixels, int64_t stride,
                                      int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < kLanes; ++i) square[c * kLanes + i] = i < pixels ? from[at[i] + c * stride] : T{};
  }
}
template <class T>
__attribute__((noinline)) void scatter(T* to, const T* square, const int64_t* at, int64_t pixels, int64_t stride,
                                       int64_t channels) {
  for (int64_t i = 0, run; i < pixels; i += run) {
    for (run = 1; i + run < pixels && at[i + run] == at[i] + run;) ++run;
    for (int64_t c = 0; c < channels; ++c) copy_partial(to + at[i] + c * stride, square + c * kLanes + i, run);
  }
}

// Any layout, in squares of kLanes pixels x kLanes channels, turned over in registers: vectors of pixels, which move
// whole where they are adjacent.
template <Activation kA, bool kOwn, class T>
void finish_planes(const Epilogue& e, const Finish& f) {
  T outputs[kLanes * kLanes], added[kLanes * kLanes];
  for (int64_t j = 0; j < f.count; j += kLanes) {
    const int64_t k = f.k0 + j, channels = min(kLanes, f.count - j);
    for (int64_t i = 0; i < f.pixels; i += kLanes) {
      const int64_t pixels = min(kLanes, f.pixels - i);
      T* y = reinterpret_cast<T*>(e.y) + k * e.y_c;
      const bool whole = adjacent(f.y_at + i, pixels);
      T* to = whole ? y + f.y_at[i] : outputs;
      const int64_t to_step = whole ? e.y_c : kLanes;
      const T* residual = reinterpret_cast<const T*>(e.residual);
      int64_t residual_step = e.residual_c;
      if (residual && adjacent(f.residual_at + i, pixels)) {
        residual += k * e.residual_c + f.residual_at[i];
      } else if (residual) {
        gather(added, residual + k * e.residual_c, f.residual_at + i, pixels, e.residual_c, channels);
        residual = added;
        residual_step = kLanes;
      }
      // Of pixels that are not there the last one stands in.
      F32 v[kLanes];
#pragma GCC unroll 16
      for (int m = 0; m < kLanes; ++m) v[m] = load<F32>(f.sums + (i + min(m, pixels - 1)) * f.row + j);
      transpose(v);
#pragma GCC unroll kUnrolled
      for (int c = 0; c < kLanes; ++c) {
        if (c == channels) break;
        const F32 scale = broadcast(e.scale ? e.scale[k + c] : 1.0f),
                  shift = broadcast(e.shift ? e.shift[k + c] : 0.0f);
        F32 sum = fma(v[c], scale, shift);
        if (residual) sum += load_widened(residual + c * residual_step);
        store_narrowed(to + c * to_step, activate_channel<kA, kOwn>(e, k + c)(sum));
      }
      if (!whole) scatter(y, outputs, f.y_at + i, pixels, e.y_c, channels);
    }
  }
}

// Planes of adjacent pixels: vectors of those, a channel after the other.
template <Activation kA, bool kOwn, class T>
void finish_rows(const Epilogue& e, const FinishRows& f) {
  const float* sums = f.sums;
  for (int64_t k = f.k0; k < f.k0 + f.count; ++k, sums += f.row) {
    const F32 scale = broadcast(e.scale ? e.scale[k] : 1.0f), shift = broadcast(e.shift ? e.shift[k] : 0.0f);
    const auto act = activate_channel<kA, kOwn>(e, k);
    T* y = reinterpret_cast<T*>(e.y) + k * e.y_c + f.y_at;
    const T* residual =
        e.residual ? reinterpret_cast<const T*>(e.residual) + k * e.residual_c + f.residual_at : nullptr;
    int64_t i = 0;
    for (; i + kLanes <= f.pixels; i += kLanes) {
      F32 sum = fma(load<F32>(sums + i), scale, shift);
      if (residual) sum += load_widened(residual + i);
      store_narrowed(y + i, act(sum));
    }
    if (i == f.pixels) continue;
    F32 sum = fma(load<F32>(sums + i), scale, shift);
    if (residual) sum += load_widened(residual + i, f.pixels - i);
    store_narrowed(y + i, act(sum), f.pixels - i);
  }
}

template <Activation kA, bool kOwn, class T>
constexpr FinishFunction kFinish[2] = {finish_channels<kA, kOwn, T>, finish_planes<kA, kOwn, T>};

template <int... code>
constexpr FinishTable table_of(std::integer_sequence<int, code...>) {
  FinishTable table = {};
  const auto fill = [&table]<Activation kA>(std::integral_constant<Activation, kA>) {
    constexpr bool kOwn = parameters_of(kA) > 0;
    FinishRowsFunction(&rows)[2][2] = table.rows_of[static_cast<int>(kA)];
    rows[0][0] = finish_rows<kA, false, float>;
    rows[0][1] = finish_rows<kA, false, bf16_t>;
    rows[1][0] = finish_rows<kA, kOwn, float>;
    rows[1][1] = finish_rows<kA, kOwn, bf16_t>;
    for (int planes = 0; planes < 2; ++planes) {
      FinishFunction(&of)[2][2][2] = table.of[static_cast<int>(kA)];
      of[0][0][planes] = kFinish<kA, false, float>[planes];
      of[0][1][planes] = kFinish<kA, false, bf16_t>[planes];
      of[1][0][planes] = kFinish<kA, kOwn, float>[planes];
      of[1][1][planes] = kFinish<kA, kOwn, bf16_t>[planes];
    }
  };
  (fill(std::integral_constant<Activation, Activation{code}>()), ...);
  return table;
}

}  // namespace

constexpr FinishTable conv_finish = table_of(std::make_integer_sequence<int, kActivations>());

}  // namespace PK_ISA
}  // namespace pk
