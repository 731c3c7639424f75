// What follows the sum of a convolution: y = act(sum * scale[k] + shift[k] + residual), for any output layout.
#pragma once

#include "cpu/activate.h"
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

// Finishes `count` channels from k0 of `pixels` pixels. sums: [pixels][row]; y_at, residual_at: [pixels], the element
// offset of each pixel's channel 0 in y and residual.
__attribute__((noinline)) void finish(const Epilogue& e, const float* sums, int64_t row, int64_t pixels,
                                      const int64_t* y_at, const int64_t* residual_at, int64_t k0, int64_t count) {
  const auto size = static_cast<int64_t>(size_of(e.dtype));
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t lanes = count - j < kLanes ? count - j : kLanes;
    const int64_t k = k0 + j;
    const F32 scale = e.scale ? gather(e.scale + k, DType::f32, 1, lanes) : broadcast(1.0f);
    const F32 shift = e.shift ? gather(e.shift + k, DType::f32, 1, lanes) : F32{};
    for (int64_t i = 0; i < pixels; ++i) {
      F32 v = fma(load<F32>(sums + i * row + j), scale, shift);
      if (e.residual) {
        v += gather(e.residual + (residual_at[i] + k * e.residual_c) * size, e.dtype, e.residual_c, lanes);
      }
      v = activate(v, e.activation, e.negative_slope);
      scatter(e.y + (y_at[i] + k * e.y_c) * size, e.dtype, e.y_c, v, lanes);
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
