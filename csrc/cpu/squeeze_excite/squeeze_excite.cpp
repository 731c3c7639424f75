// Two passes over x with two small products between them. The second pass goes backwards: what the first one read last
// is still in the cache.
#include "cpu/pool2d/mean.h"
#include "cpu/squeeze_excite/isa.h"
#include "cpu/squeeze_excite/products.h"

namespace pk {
namespace PK_ISA {
namespace {

template <class T>
float mean_apart(const T* x, const SqueezeExciteArgs& a) {
  float sum = 0;
  for (int64_t i = 0; i < a.h; ++i) {
    float of_row = 0;
    for (int64_t j = 0; j < a.w; ++j) of_row += widen(x[i * a.x_stride[2] + j * a.x_stride[3]]);
    sum += of_row;
  }
  return sum / static_cast<float>(a.h * a.w);
}

// means: (n, c); sums: (n, strips, c).
template <class T>
void squeeze(const SqueezeExciteArgs& a, Way way, float* means, float* sums, const Executor& executor) {
  const auto* x = static_cast<const T*>(a.x);
  const auto divisor = static_cast<float>(a.h * a.w);
  if (way == Way::channels) {
    const Strips strips(a);
    const int64_t grain = most(1, kGrain / (strips.rows * a.w * a.c));
    parallel_for(executor, 0, a.n * strips.count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / strips.count, row = i % strips.count * strips.rows;
        const Map map = map_of(least(strips.rows, a.h - row), a.w, a.x_stride[2], a.x_stride[3]);
        mean_of_channels(x + n * a.x_stride[0] + row * a.x_stride[2], a.c, map, 1, sums + i * a.c);
      }
    });
    for (int64_t n = 0; n < a.n; ++n) {
      for (int64_t c = 0; c < a.c; c += kLanes) {
        const int64_t count = least(kLanes, a.c - c);
        F32 total = {};
        for (int64_t i = 0; i < strips.count; ++i) {
          total += load_partial(sums + (n * strips.count + i) * a.c + c, count);
        }
        store_partial(means + n * a.c + c, total / broadcast(divisor), count);
      }
    }
    return;
  }
  Map map = map_of(a.h, a.w, a.x_stride[2], a.x_stride[3]);
  if (map.step != 1) map = {a.h, a.x_stride[2], a.w, 1};  // a single column
  parallel_for(executor, 0, a.n * a.c, most(1, kGrain / (a.h * a.w)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* plane = x + i / a.c * a.x_stride[0] + i % a.c * a.x_stride[1];
      means[i] = way == Way::planes ? mean_of_plane(plane, map, divisor) : mean_apart(plane, a);
    }
  });
}

// Elements [0, count) of x, one after the other, by factors of their own or, with a step of 0, by one.
template <class T>
inline void multiply(const T* x, const float* factors, int64_t step, int64_t count, T* y) {
  const F32 factor = broadcast(*factors);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store_narrowed(y + i, load_widened(x + i) * (step ? load<F32>(factors + i) : factor));
  }
  if (i == count) return;
  const F32 last = step ? load_partial(factors + i, count - i) : factor;
  store_narrowed(y + i, load_widened(x + i, count - i) * last, count - i);
}

template <class T>
void excite(const SqueezeExciteArgs& a, Way way, const float* gates, const Executor& executor) {
  const auto* x = static_cast<const T*>(a.x);
  auto* y = static_cast<T*>(a.y);
  const bool channels = way == Way::channels;
  // Rows of pixels, or maps.
  const int64_t parts = channels ? a.h : a.c, work = channels ? a.w * a.c : a.h * a.w;
  parallel_for(executor, 0, a.n * parts, most(1, kGrain / work), [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) {
      const int64_t n = i / parts, part = i % parts;
      const T* from = x + n * a.x_stride[0] + part * a.x_stride[channels ? 2 : 1];
      T* to = y + n * a.y_stride[0] + part * a.y_stride[channels ? 2 : 1];
      if (channels) {
        for (int64_t j = a.w; j-- > 0;) {
          multiply(from + j * a.x_stride[3], gates + n * a.c, 1, a.c, to + j * a.y_stride[3]);
        }
        continue;
      }
      if (way == Way::planes && a.x_stride[2] == a.w && a.y_stride[2] == a.w) {
        multiply(from, gates + i, 0, a.h * a.w, to);
        continue;
      }
      for (int64_t p = a.h; p-- > 0;) {
        const T* from_row = from + p * a.x_stride[2];
        T* to_row = to + p * a.y_stride[2];
        if (way == Way::planes) {
          multiply(from_row, gates + i, 0, a.w, to_row);
          continue;
        }
        for (int64_t q = 0; q < a.w; ++q) {
          multiply(from_row + q * a.x_stride[3], gates + i, 0, 1, to_row + q * a.y_stride[3]);
        }
      }
    }
  });
}

template <class T>
void run_as(const SqueezeExciteArgs& a, float* workspace, const Executor& executor) {
  float *means = workspace, *hidden = means + a.n * a.c, *gates = hidden + a.n * a.m;
  const Way way = way_of(a);
  squeeze<T>(a, way, means, gates + a.n * a.c, executor);
  product<T>(a.n, a.m, a.c, a.reduce, a.reduce_bias, a.activation, means, hidden, executor);
  product<T>(a.n, a.c, a.m, a.expand, a.expand_bias, a.gate, hidden, gates, executor);
  excite<T>(a, way, gates, executor);
}

void run(const SqueezeExciteArgs& args, float* workspace, const Executor& executor) {
  if (args.dtype == DType::i8) return squeeze_excite_int8(args, workspace, executor);
  args.dtype == DType::f32 ? run_as<float>(args, workspace, executor) : run_as<bf16_t>(args, workspace, executor);
}

}  // namespace

extern const SqueezeExciteKernels squeeze_excite_kernels;
const SqueezeExciteKernels squeeze_excite_kernels = {run};

}  // namespace PK_ISA
}  // namespace pk
