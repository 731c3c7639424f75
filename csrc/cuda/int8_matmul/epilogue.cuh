// From int32 sums to the output in its final dtype: y = act(fma(sum, a_scale b_scale, bias)), four columns of a row at
// a time, so that what belongs to a column is loaded once for many rows.
#pragma once

#include "cuda/activate.cuh"
#include "cuda/int8_matmul/kernels.h"
#include "cuda/numeric.cuh"

namespace pk::cuda::int8 {

inline constexpr int kColumns = 4;

// The offset of a tile's row, of `rows` that there are from the tile's first on: behind the end that of the last one,
// which is read and whose sums are not stored.
PK_DEVICE int row_offset(int row, int64_t rows, int64_t stride) {
  return (row < rows ? row : static_cast<int>(rows) - 1) * static_cast<int>(stride);
}

// What belongs to columns [first, first + count) of the output, count <= 4 (less than 1: none).
struct Columns {
  int64_t first;
  int count;
  float scale[kColumns], bias[kColumns];
  uint32_t sums[kColumns];
};

PK_DEVICE Columns load_columns(const Epilogue& e, int64_t first) {
  Columns c;
  c.first = first;
  c.count = first + kColumns <= e.n ? kColumns : static_cast<int>(e.n - first);
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    const bool there = i < c.count;
    c.scale[i] = there && e.b_scale != nullptr ? e.b_scale[(first + i) * e.b_scale_stride] : 1.0f;
    c.bias[i] = there && e.bias != nullptr ? e.bias[first + i] : 0.0f;
    c.sums[i] = there && e.a_zero_point != nullptr ? static_cast<uint32_t>(e.column_sums[first + i]) : 0u;
  }
  return c;
}

// Four outputs to `to`, whole where they are aligned.
PK_DEVICE void store4(int32_t* to, const int32_t (&v)[kColumns], int count, bool wide) {
  if (wide && count >= kColumns) {
    *reinterpret_cast<int4*>(to) = make_int4(v[0], v[1], v[2], v[3]);
    return;
  }
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    if (i < count) to[i] = v[i];
  }
}
template <class T>
PK_DEVICE void store4(T* to, const float (&v)[kColumns], int count, bool wide) {
  if (wide && count >= kColumns) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    } else if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
    } else {
      uint32_t bytes = 0;
      PK_UNROLL
      for (int i = 0; i < kColumns; ++i) bytes |= (static_cast<uint32_t>(from_float<T>(v[i])) & 255u) << 8 * i;
      *reinterpret_cast<uint32_t*>(to) = bytes;
    }
    return;
  }
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    if (i < count) to[i] = from_float<T>(v[i]);
  }
}

// Row `row`, the columns of `c`.
PK_DEVICE void store_row(const Epilogue& e, const Columns& c, int64_t row, const int32_t (&given)[kColumns]) {
  int32_t sums[kColumns];
  // Modulo 2^32 like the sums themselves: only the final value has to fit.
  const uint32_t zero =
      e.a_zero_point != nullptr ? static_cast<uint32_t>(e.a_zero_point[row * e.a_zero_point_stride]) : 0u;
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    sums[i] = static_cast<int32_t>(static_cast<uint32_t>(given[i]) - zero * c.sums[i]);
  }
  const int64_t at = row * e.out_stride + c.first;
  if (e.out_dtype == DType::i32) {
    store4(static_cast<int32_t*>(e.out) + at, sums, c.count, e.wide);
    return;
  }
  const float a_scale = e.a_scale != nullptr ? e.a_scale[row * e.a_scale_stride] : 1.0f;
  float y[kColumns];
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    y[i] = activate(fmaf(static_cast<float>(sums[i]), c.scale[i] * a_scale, c.bias[i]), e.activation, e.negative_slope);
  }
  switch (e.out_dtype) {
    case DType::f32:
      store4(static_cast<float*>(e.out) + at, y, c.count, e.wide);
      return;
    case DType::bf16:
      store4(static_cast<bf16*>(e.out) + at, y, c.count, e.wide);
      return;
    case DType::f16:
      store4(static_cast<f16*>(e.out) + at, y, c.count, e.wide);
      return;
    case DType::i8:
      store4(static_cast<int8_t*>(e.out) + at, y, c.count, e.wide);
      return;
    case DType::i32:
      return;
  }
}

// The same of one slice of K, blockIdx.y, of a product that may be split: then the sums are put aside.
PK_DEVICE void store_slice_row(const Product& p, const Epilogue& e, const Columns& c, int64_t row,
                               const int32_t (&sums)[kColumns]) {
  if (p.split > 1) {
    const int64_t stride = ceil_div<int64_t>(p.n, kColumns) * kColumns;
    store4(p.partial + (static_cast<int64_t>(blockIdx.y) * p.m + row) * stride + c.first, sums, kColumns, true);
  } else {
    store_row(e, c, row, sums);
  }
}

}  // namespace pk::cuda::int8
