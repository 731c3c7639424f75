// 16-bit floating types as the kernels hold them: raw bits with exact widening and rounding to nearest even.
#pragma once

#include "cuda/platform.cuh"
#include "pykernels/dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pk::cuda {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

PK_DEVICE float to_float(float x) { return x; }
PK_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
PK_DEVICE float to_float(f16 x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  return simt::half_to_float(x.bits);
#endif
}

template <class T>
PK_DEVICE T from_float(float x);
template <>
PK_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
PK_DEVICE bf16 from_float<bf16>(float x) {
#ifdef __CUDACC__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return {simt::float_to_bfloat(x)};
#endif
}
template <>
PK_DEVICE f16 from_float<f16>(float x) {
#ifdef __CUDACC__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  return {simt::float_to_half(x)};
#endif
}
// To nearest even, saturated; NaN gives 0 (as the CPU kernels do).
template <>
PK_DEVICE int8_t from_float<int8_t>(float x) {
  return x != x ? int8_t{0} : static_cast<int8_t>(__float2int_rn(fminf(fmaxf(x, -128.0f), 127.0f)));
}

// Two rounded neighbours in one register, `low` in the low half.
template <class T>
PK_DEVICE uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(low).bits) | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

// f(T{}) for the floating type T that `dtype` names.
template <class F>
auto with_type(DType dtype, const F& f) {
  if (dtype == DType::f16) return f(f16{});
  if (dtype == DType::bf16) return f(bf16{});
  return f(float{});
}

template <class T>
inline constexpr DType kDType = DType::f32;
template <>
inline constexpr DType kDType<f16> = DType::f16;
template <>
inline constexpr DType kDType<bf16> = DType::bf16;
template <>
inline constexpr DType kDType<int8_t> = DType::i8;
template <>
inline constexpr DType kDType<int32_t> = DType::i32;

}  // namespace pk::cuda
