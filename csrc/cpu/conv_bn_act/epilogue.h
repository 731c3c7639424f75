// What follows the sum of a convolution: y = act(sum * scale[k] + shift[k] + residual), for any output layout.
#pragma once

#include "cpu/activate.h"
#include "cpu/conv_bn_act/transpose.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {
namespace {

struct Epilogue {
  const float* scale;  // (k,) or null
  const float* shift;  // (k,) or null
  const char* residual;
  char* y;
  int64_t residual_c, y_c;  // strides of the channels, in elements
  DType dtype;
  Activation activation;
  float negative_slope;
  bool plain;  // y and residual float32 with adjacent channels, and no activation but relu: finished in registers
};

inline Epilogue make_epilogue(const ConvArgs& args) {
  const auto* residual = static_cast<const char*>(args.residual.data);
  const bool adjacent = args.y_stride[1] == 1 && (residual == nullptr || args.residual.stride[1] == 1);
  const bool simple = args.activation == Activation::none || args.activation == Activation::relu;
  return {args.scale,
          args.shift,
          residual,
          static_cast<char*>(args.y),
          args.residual.stride[1],
          args.y_stride[1],
          args.dtype,
          args.activation,
          args.negative_slope,
          args.dtype == DType::f32 && adjacent && simple};
}

// `count` channels from an array of elements `stride` apart; the other lanes are zero.
inline F32 gather(const void* from, DType dtype, int64_t stride, int64_t count) {
  if (dtype == DType::f32 && stride == 1) {
    const auto* p = static_cast<const float*>(from);
    return count == kLanes ? load<F32>(p) : load_partial(p, count);
  }
  if (dtype == DType::bf16 && stride == 1 && count == kLanes) return load_bf16(static_cast<const bf16_t*>(from));
  F32 v{};
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == DType::f32) {
      v[i] = static_cast<const float*>(from)[i * stride];
    } else {
      const uint32_t bits = static_cast<uint32_t>(static_cast<const bf16_t*>(from)[i * stride]) << 16;
      float x;
      std::memcpy(&x, &bits, sizeof x);
      v[i] = x;
    }
  }
  return v;
}

inline void scatter(void* to, DType dtype, int64_t stride, F32 v, int64_t count) {
  if (dtype == DType::f32) {
    auto* p = static_cast<float*>(to);
    if (stride == 1) return count == kLanes ? store(p, v) : store_partial(p, v, count);
    for (int64_t i = 0; i < count; ++i) p[i * stride] = v[i];
  } else {
    auto* p = static_cast<bf16_t*>(to);
    if (stride == 1 && count == kLanes) return store_bf16(p, v);
    const U16Half half = to_bf16(v);
    for (int64_t i = 0; i < count; ++i) p[i * stride] = half[i];
  }
}

inline bool adjacent(const int64_t* at) {
  bool yes = true;
  for (int i = 1; i < kLanes; ++i) yes &= at[i] == at[0] + i;
  return yes;
}

// kLanes adjacent pixels x `count` channels of an array whose channels are `stride` apart, by pixel.
inline void load_planes(const void* from, DType dtype, int64_t stride, int64_t count, F32 (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if (i >= count) {
      v[i] = F32{};
    } else if (dtype == DType::f32) {
      v[i] = load<F32>(static_cast<const float*>(from) + i * stride);
    } else {
      v[i] = load_bf16(static_cast<const bf16_t*>(from) + i * stride);
    }
  }
  transpose(v);
}

inline void store_planes(void* to, DType dtype, int64_t stride, int64_t count, F32 (&v)[kLanes]) {
  transpose(v);
  for (int i = 0; i < count; ++i) {
    if (dtype == DType::f32) {
      store(static_cast<float*>(to) + i * stride, v[i]);
    } else {
      store_bf16(static_cast<bf16_t*>(to) + i * stride, v[i]);
    }
  }
}

// Finishes `count` channels from k0 of `pixels` pixels. sums: [pixels][row]; y_at, residual_at: [pixels], the element
// offset of each pixel's channel 0 in y and residual. Where pixels are adjacent and channels are not (NCHW), kLanes
// pixels at a time turn over in registers.
__attribute__((noinline)) void finish(const Epilogue& e, const float* sums, int64_t row, int64_t pixels,
                                      const int64_t* y_at, const int64_t* residual_at, int64_t k0, int64_t count) {
  const auto size = static_cast<int64_t>(size_of(e.dtype));
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t lanes = count - j < kLanes ? count - j : kLanes;
    const int64_t k = k0 + j;
    const F32 scale = e.scale ? gather(e.scale + k, DType::f32, 1, lanes) : broadcast(1.0f);
    const F32 shift = e.shift ? gather(e.shift + k, DType::f32, 1, lanes) : F32{};
    char* y = e.y + k * e.y_c * size;
    const char* residual = e.residual ? e.residual + k * e.residual_c * size : nullptr;
    for (int64_t i = 0; i < pixels;) {
      const bool many = e.y_c != 1 && i + kLanes <= pixels && adjacent(y_at + i);
      const int n = many ? kLanes : 1;
      F32 v[kLanes], r[kLanes];
      if (residual && many && e.residual_c != 1 && adjacent(residual_at + i)) {
        load_planes(residual + residual_at[i] * size, e.dtype, e.residual_c, lanes, r);
      } else if (residual) {
        for (int m = 0; m < n; ++m) {
          r[m] = gather(residual + residual_at[i + m] * size, e.dtype, e.residual_c, lanes);
        }
      }
      for (int m = 0; m < n; ++m) {
        F32 sum = fma(load<F32>(sums + (i + m) * row + j), scale, shift);
        if (residual) sum += r[m];
        v[m] = activate(sum, e.activation, e.negative_slope);
      }
      if (many) {
        store_planes(y + y_at[i] * size, e.dtype, e.y_c, lanes, v);
      } else {
        scatter(y + y_at[i] * size, e.dtype, e.y_c, v[0], lanes);
      }
      i += n;
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
