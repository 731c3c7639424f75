// From the int32 sums of a tile, still in L1, to the output in its final dtype: zero points, scales, bias, activation.
#pragma once

#include "cpu/activate.h"
#include "cpu/int8_matmul/rounding.h"
#include "cpu/int8_matmul/tiling.h"

namespace pk {
namespace PK_ISA {
namespace {

struct Epilogue {
  const Int8MatmulArgs* args;
  const float* row_scales;  // of the rows of the tile's block where a is float, else null
  int64_t first_row;        // of that block
};

template <class T>
inline void store_vector(T* to, I32 v, int64_t count) {
  if (count == kLanes) {
    if constexpr (sizeof(T) == 4) {
      store(to, v);
    } else {
      store(to, to_i8(v));
    }
    return;
  }
  for (int i = 0; i < count; ++i) to[i] = static_cast<T>(v[i]);
}

inline void store_bf16_some(bf16_t* to, F32 v, int64_t count) {
  const U16Half narrow = to_bf16(v);
  std::memcpy(to, &narrow, static_cast<size_t>(count) * sizeof(bf16_t));
}

// `sums` are columns [column, column + count) of row `row`; compensated already.
inline void store_output(const Int8MatmulArgs& p, int64_t row, int64_t column, F32 y, int64_t count) {
  const int64_t at = row * p.n + column;
  switch (p.out_dtype) {
    case DType::f32:
      if (count == kLanes) {
        store(static_cast<float*>(p.out) + at, y);
      } else {
        store_partial(static_cast<float*>(p.out) + at, y, count);
      }
      return;
    case DType::bf16:
      if (count == kLanes) {
        store_bf16(static_cast<bf16_t*>(p.out) + at, y);
      } else {
        store_bf16_some(static_cast<bf16_t*>(p.out) + at, y, count);
      }
      return;
    case DType::i8:
      store_vector(static_cast<int8_t*>(p.out) + at, round_saturated(y, -128.0f, 127.0f), count);
      return;
    case DType::i32:
    case DType::f16:  // refused in api.cpp
      return;
  }
}

// sums[rows][kNr] at rows [row, row + rows), panel p, whose column sums are given.
inline void finish_tile(const Epilogue& e, const int32_t* sums, int64_t stride, int64_t row, int64_t rows,
                        int64_t panel, const int32_t* column_sums) {
  const Int8MatmulArgs& p = *e.args;
  for (int v = 0; v < kNrVectors; ++v) {
    const int64_t column = panel * kNr + v * kLanes, count = smaller(kLanes, p.n - column);
    if (count <= 0) return;
    const I32 compensation = load<I32>(column_sums + v * kLanes);
    F32 b_scale = broadcast(1.0f), bias{};
    if (p.b_scale != nullptr) {
      b_scale = p.b_scale_stride == 0 ? broadcast(*p.b_scale)
                : count == kLanes     ? load<F32>(p.b_scale + column)
                                      : load_partial(p.b_scale + column, count);
    }
    if (p.bias != nullptr) bias = count == kLanes ? load<F32>(p.bias + column) : load_partial(p.bias + column, count);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = row + r;
      // Modulo 2^32 like the sums themselves: only the final value has to fit.
      const uint32_t zero =
          static_cast<uint32_t>(kAOffset) +
          (p.a_zero_point != nullptr ? static_cast<uint32_t>(p.a_zero_point[i * p.a_zero_point_stride]) : 0u);
      const U32 wrapped = bit_cast<U32>(load<I32>(sums + r * stride + v * kLanes)) - bit_cast<U32>(compensation) * zero;
      const I32 sum = bit_cast<I32>(wrapped);
      if (p.out_dtype == DType::i32) {
        store_vector(static_cast<int32_t*>(p.out) + i * p.n + column, sum, count);
        continue;
      }
      const float a_scale = e.row_scales != nullptr ? e.row_scales[i - e.first_row]
                            : p.a_scale != nullptr  ? p.a_scale[i * p.a_scale_stride]
                                                    : 1.0f;
      const F32 y = fma(to_f32(sum), b_scale * a_scale, bias);
      store_output(p, i, column, activate(y, p.activation, p.negative_slope), count);
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
