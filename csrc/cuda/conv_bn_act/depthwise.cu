// One filter (or a few) for each input channel: y[n, p, q, k] = finish(sum over (r, s) of x[n, h, w, k / multiplier] *
// weight[r, s, k]).
//
// A thread computes eight channels of four neighbouring pixels of a row, neighbouring lanes neighbouring channels: so
// every access is 16 bytes (float: twice that, int8: 8) and runs of lanes are contiguous. Nothing is shared but what
// the caches share; for 3 x 3 filters at stride 1 and 2 an input column is loaded and widened once for all the taps and
// pixels of the thread that it serves. The floor is memory: x and y once, as the rows above and below are in L1 or L2.
#include "cuda/conv_bn_act/epilogue.cuh"
#include "cuda/launch.cuh"

namespace pk::cuda::conv {
namespace {

constexpr int kThreads = 128;
constexpr int kPixels = 4;

template <class T_, class Sum_, class Type_>
struct Types {
  using T = T_;
  using Sum = Sum_;
  using Type = Type_;  // of y and residual
};

// Eight input channels of one pixel; the filters k .. k + count read them.
template <class Types, bool kOneEach>
PK_DEVICE void load_pixel(const Depthwise& d, const typename Types::T* pixel, int k, int count,
                          typename Types::Sum (&v)[8]) {
  float wide[8];
  if constexpr (kOneEach) {
    load_channels(pixel + k, 1, true, count, wide);
  } else {
    PK_UNROLL
    for (int i = 0; i < 8; ++i) wide[i] = i < count ? widen(pixel[(k + i) / d.multiplier]) : 0.0f;
  }
  PK_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = static_cast<typename Types::Sum>(wide[i]);
}

// kS, kStride: the filter's width and horizontal stride where they are known, at dilation 1; else 0. Four blocks to a
// multiprocessor: unasked, ptxas spills a few registers to make room for six.
template <class Types, int kS, int kStride, bool kOneEach>
__global__ void __launch_bounds__(kThreads, 4) depthwise(const __grid_constant__ Depthwise d) {
  using T = typename Types::T;
  using Sum = typename Types::Sum;
  const int groups = ceil_div(d.k, kChannelsAtOnce), runs = ceil_div(d.q, kPixels);
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= int64_t{d.n} * d.p * runs * groups) return;
  const int k = static_cast<int>(i % groups) * kChannelsAtOnce;
  i /= groups;
  const int q = static_cast<int>(i % runs) * kPixels, row = static_cast<int>(i / runs);  // row: of n * p
  const int n = row / d.p, p = row % d.p;
  const int count = d.k - k < 8 ? d.k - k : 8;
  const int h0 = p * d.stride_h - d.pad_top, w0 = q * d.stride_w - d.pad_left;
  const T* x = static_cast<const T*>(d.pixels.x) + n * d.pixels.stride_n;
  const T* weight = static_cast<const T*>(d.weight) + k;

  Sum sum[kPixels][8] = {};
  for (int r = 0; r < d.r; ++r) {
    const int h = h0 + r * d.dilation_h;
    if (static_cast<unsigned>(h) >= static_cast<unsigned>(d.h)) continue;
    const T* line = x + h * d.pixels.stride_h;
    const T* taps = weight + int64_t{r} * d.s * d.columns;
    const auto load_tap = [&](int s, Sum(&v)[8]) {
      float wide[8];
      load_channels(taps + int64_t{s} * d.columns, 1, true, count, wide);
      PK_UNROLL
      for (int c = 0; c < 8; ++c) v[c] = static_cast<Sum>(wide[c]);
    };
    if constexpr (kS > 0) {
      Sum tap[kS][8];
      PK_UNROLL
      for (int s = 0; s < kS; ++s) load_tap(s, tap[s]);
      PK_UNROLL
      for (int column = 0; column < (kPixels - 1) * kStride + kS; ++column) {
        const int w = w0 + column;
        if (static_cast<unsigned>(w) >= static_cast<unsigned>(d.w)) continue;
        Sum v[8];
        load_pixel<Types, kOneEach>(d, line + w * d.pixels.stride_w, k, count, v);
        PK_UNROLL
        for (int pixel = 0; pixel < kPixels; ++pixel) {
          const int s = column - pixel * kStride;
          if (s < 0 || s >= kS) continue;
          PK_UNROLL
          for (int c = 0; c < 8; ++c) sum[pixel][c] += v[c] * tap[s][c];
        }
      }
    } else {
      for (int s = 0; s < d.s; ++s) {
        Sum tap[8];
        load_tap(s, tap);
        PK_UNROLL
        for (int pixel = 0; pixel < kPixels; ++pixel) {
          const int w = w0 + pixel * d.stride_w + s * d.dilation_w;
          if (static_cast<unsigned>(w) >= static_cast<unsigned>(d.w)) continue;
          Sum v[8];
          load_pixel<Types, kOneEach>(d, line + w * d.pixels.stride_w, k, count, v);
          PK_UNROLL
          for (int c = 0; c < 8; ++c) sum[pixel][c] += v[c] * tap[c];
        }
      }
    }
  }
  const Channels channels = channels_at(d.epilogue, k, count);
  // Rolled, the sums moving up: four copies of all the activations would be most of the kernel.
  PK_ROLLED
  for (int pixel = 0; pixel < kPixels && q + pixel < d.q; ++pixel) {
    finish<typename Types::Type>(d.epilogue, channels, row * d.q + q + pixel, sum[0]);
    PK_UNROLL
    for (int next = 1; next < kPixels; ++next) {
      PK_UNROLL
      for (int c = 0; c < 8; ++c) sum[next - 1][c] = sum[next][c];
    }
  }
}

template <class Types>
Status run_types(const Depthwise& d, void* stream) {
  const int64_t threads = int64_t{d.n} * d.p * ceil_div(d.q, kPixels) * ceil_div(d.k, kChannelsAtOnce);
  const Launch how = {.grid = static_cast<unsigned>(ceil_div<int64_t>(threads, kThreads)), .block = kThreads};
  if (d.multiplier != 1) return launch(depthwise<Types, 0, 0, false>, how, stream, d);
  if (d.s == 3 && d.dilation_w == 1 && d.stride_w == 1) return launch(depthwise<Types, 3, 1, true>, how, stream, d);
  if (d.s == 3 && d.dilation_w == 1 && d.stride_w == 2) return launch(depthwise<Types, 3, 2, true>, how, stream, d);
  return launch(depthwise<Types, 0, 0, true>, how, stream, d);
}

}  // namespace

Status run_depthwise(const Depthwise& d, Math math, void* stream) {
  switch (math) {
    case Math::f16:
      return run_types<Types<f16, float, f16>>(d, stream);
    case Math::bf16:
      return run_types<Types<bf16, float, bf16>>(d, stream);
    case Math::f32:
    case Math::tf32:
      return run_types<Types<float, float, float>>(d, stream);
    case Math::i8:
      return run_types<Types<int8_t, int32_t, AnyType>>(d, stream);
  }
  return {"dtype: no such arithmetic"};
}

}  // namespace pk::cuda::conv
