// What every device asks of the int8 family's arguments, for the validation in api.cpp and api.cu. A device says itself
// which float dtypes its kernels take.
#pragma once

#include "common/sizes.h"
#include "pykernels/int8_matmul.h"

namespace pk {
namespace {

bool is_float(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16; }

Status check_b(int64_t k, int64_t n) {
  if (k < 0 || n < 0) return {"b: expected sizes of at least 0"};
  if (k > kInt8MaxK) return {"b: expected at most 131071 rows, beyond which int32 sums may wrap"};
  if (n > kInt8MaxN) return {"b: expected at most 2^36 columns"};
  return kOk;
}

Status check_matmul(const Int8MatmulArgs& p) {
  if (p.m < 0 || p.n < 0 || p.k < 0) return {"m, n, k: expected sizes of at least 0"};
  if (p.k > kInt8MaxK) return {"k: expected at most 131071 = 2^31 / 2^14 - 1, beyond which int32 sums may wrap"};
  if (p.n > kInt8MaxN) return {"n: expected at most 2^36 columns"};
  if (p.m > int64_t{1} << 36 || !product_fits({p.m + 64, p.n + 64, 64}) || !product_fits({p.m + 64, p.k + 4096, 2})) {
    return {"m, n, k: the sizes are too large"};
  }
  if (is_float(p.a_dtype) && p.a_stride_k != 1 && p.k > 1) return {"a: expected contiguous rows of floats"};
  if (is_float(p.a_dtype) && (p.a_scale != nullptr || p.a_zero_point != nullptr)) {
    return {"a_scale, a_zero_point: expected none for a float a, which is quantised here"};
  }
  const bool plain = p.a_scale == nullptr && p.b_scale == nullptr && p.bias == nullptr &&
                     p.activation == Activation::none && p.a_dtype == DType::i8;
  if (p.out_dtype == DType::i32 && !plain) {
    return {"out_dtype: int32 is the plain sum; expected a float dtype or int8 with scales, bias or activation"};
  }
  if (p.a_zero_point != nullptr && p.k > kInt8MaxKWithZeroPoint) {
    return {"k: expected at most 65793 = 2^31 / (255 * 128) with a zero point, beyond which int32 sums may wrap"};
  }
  return kOk;
}

Status check_quantize(const QuantizeInt8Args& p) {
  if (p.outer < 0 || p.channels < 0 || p.inner < 0) return {"x: expected sizes of at least 0"};
  if (!product_fits({p.outer, p.channels, p.inner, 4})) return {"x: the sizes are too large"};
  return kOk;
}

}  // namespace
}  // namespace pk
