// Squeeze-and-excitation of int8 maps, in the same two passes: exact sums, which make means in float32, and bytes times
// one factor a channel, which holds the gate and both scales. Compiled with -ffp-contract=off (cmake/isa.cmake).
#include "cpu/pool2d/int8_sums.h"
#include "cpu/squeeze_excite/isa.h"
#include "cpu/squeeze_excite/products.h"

namespace pk {
namespace PK_ISA {
namespace {

using Args = SqueezeExciteArgs;

int32_t sum_apart(const int8_t* x, const Args& a) {
  int32_t sum = 0;
  for (int64_t i = 0; i < a.h; ++i) {
    for (int64_t j = 0; j < a.w; ++j) sum += x[i * a.x_stride[2] + j * a.x_stride[3]];
  }
  return sum;
}

int32_t sum_of_plane(const int8_t* x, const Args& a) {
  if (a.h == 1 || a.x_stride[2] == a.w) return sum_of_bytes(x, a.h * a.w);
  int32_t sum = 0;
  for (int64_t i = 0; i < a.h; ++i) sum += sum_of_bytes(x + i * a.x_stride[2], a.w);
  return sum;
}

// Channels [0, a.c) of `rows` rows at x.
void sum_of_channels(const int8_t* x, int64_t rows, const Args& a, int32_t* to) {
  Elements e = {x, rows, a.w, a.x_stride[2], a.x_stride[3]};
  int64_t c = 0;
  for (; c + 4 * kWords <= a.c; c += 4 * kWords, e.x += 4 * kWords) {
    I32 total[8];
    add_up<true, 4>(e, 4 * kWords, total);
    for (int k = 0; k < 8; ++k) store(to + c + k * kLanes, total[k]);
  }
  for (; c < a.c; c += kWords, e.x += kWords) {
    const int64_t count = min(kWords, a.c - c);
    I32 total[2];
    count == kWords ? add_up<true, 1>(e, count, total) : add_up<false, 1>(e, count, total);
    int32_t sums[kWords];
    for (int k = 0; k < 2; ++k) store(sums + k * kLanes, total[k]);
    std::memcpy(to + c, sums, static_cast<size_t>(count) * sizeof *to);
  }
}

// means: (n, c); sums: (n, strips, c).
void squeeze(const Args& a, Way way, float* means, int32_t* sums, const Executor& executor) {
  const auto* x = static_cast<const int8_t*>(a.x);
  const auto count = static_cast<float>(a.h * a.w);
  const int32_t zero = a.x_zero * static_cast<int32_t>(a.h * a.w);
  const auto mean = [&](int32_t sum) { return static_cast<float>(sum - zero) / count * a.x_scale; };
  if (way == Way::channels) {
    const Strips strips(a);
    const int64_t grain = max(1, kGrain / (strips.rows * a.w * a.c));
    parallel_for(executor, 0, a.n * strips.count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / strips.count, row = i % strips.count * strips.rows;
        sum_of_channels(x + n * a.x_stride[0] + row * a.x_stride[2], min(strips.rows, a.h - row), a, sums + i * a.c);
      }
    });
    for (int64_t n = 0; n < a.n; ++n) {
      int32_t* const total = sums + n * strips.count * a.c;
      for (int64_t i = 1; i < strips.count; ++i) {
        for (int64_t c = 0; c < a.c; ++c) total[c] += total[i * a.c + c];
      }
      for (int64_t c = 0; c < a.c; ++c) means[n * a.c + c] = mean(total[c]);
    }
    return;
  }
  parallel_for(executor, 0, a.n * a.c, max(1, kGrain / (a.h * a.w)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int8_t* plane = x + i / a.c * a.x_stride[0] + i % a.c * a.x_stride[1];
      means[i] = mean(way == Way::planes ? sum_of_plane(plane, a) : sum_apart(plane, a));
    }
  });
}

// y = rounded((x - zero) * factor), with a factor for each element, or with a step of 0 one for all.
class Multiplier {
 public:
  explicit Multiplier(const Args& a) : zero_(broadcast(a.x_zero)), rounding_(a.y_zero) {}

  template <int kStep>
  void row(const int8_t* x, const float* factors, int64_t count, int8_t* y) const {
    store_row(Row<kStep>{*this, x, factors, broadcast(*factors)}, count, y);
  }

 private:
  template <int kStep>
  struct Row {
    const Multiplier& m;
    const int8_t* x;
    const float* factors;
    F32 factor;
    I32 operator()(int64_t i) const { return m.value(load_bytes(x + i), kStep ? load<F32>(factors + i) : factor); }
    I32 operator()(int64_t i, int64_t n) const {
      return m.value(load_bytes(x + i, n), kStep ? load_partial(factors + i, n) : factor);
    }
  };

  I32 value(I32 x, F32 factor) const { return rounding_(to_f32(x - zero_) * factor); }

  I32 zero_;
  Rounding rounding_;
};

void excite(const Args& a, Way way, const float* factors, const Executor& executor) {
  const auto* x = static_cast<const int8_t*>(a.x);
  auto* y = static_cast<int8_t*>(a.y);
  const Multiplier multiplier(a);
  const bool channels = way == Way::channels, whole = a.x_stride[2] == a.w && a.y_stride[2] == a.w;
  // Rows of pixels, or maps.
  const int64_t parts = channels ? a.h : a.c, work = channels ? a.w * a.c : a.h * a.w;
  parallel_for(executor, 0, a.n * parts, max(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) {
      const int64_t n = i / parts, part = i % parts;
      const int8_t* from = x + n * a.x_stride[0] + part * a.x_stride[channels ? 2 : 1];
      int8_t* to = y + n * a.y_stride[0] + part * a.y_stride[channels ? 2 : 1];
      if (channels) {
        for (int64_t j = a.w; j-- > 0;) {
          multiplier.row<1>(from + j * a.x_stride[3], factors + n * a.c, a.c, to + j * a.y_stride[3]);
        }
        continue;
      }
      if (way == Way::planes && whole) {
        multiplier.row<0>(from, factors + i, a.h * a.w, to);
        continue;
      }
      for (int64_t p = a.h; p-- > 0;) {
        const int8_t* from_row = from + p * a.x_stride[2];
        int8_t* to_row = to + p * a.y_stride[2];
        if (way == Way::planes) {
          multiplier.row<0>(from_row, factors + i, a.w, to_row);
          continue;
        }
        for (int64_t q = 0; q < a.w; ++q) {
          multiplier.row<0>(from_row + q * a.x_stride[3], factors + i, 1, to_row + q * a.y_stride[3]);
        }
      }
    }
  });
}

}  // namespace

void squeeze_excite_int8(const Args& a, float* workspace, const Executor& executor) {
  float *means = workspace, *hidden = means + a.n * a.c, *gates = hidden + a.n * a.m;
  const Way way = way_of(a);
  squeeze(a, way, means, reinterpret_cast<int32_t*>(gates + a.n * a.c), executor);
  product<float>(a.n, a.m, a.c, a.reduce, a.reduce_bias, a.activation, means, hidden, executor);
  product<float>(a.n, a.c, a.m, a.expand, a.expand_bias, a.gate, hidden, gates, executor);
  for (int64_t i = 0; i < a.n * a.c; ++i) gates[i] = gates[i] * a.x_scale * a.y_inverse;
  excite(a, way, gates, executor);
}

}  // namespace PK_ISA
}  // namespace pk
