// From int32 sums to the output in its final dtype: y = act(fma(sum, a_scale b_scale, bias)), two or four neighbours of
// a row at a time, so that stores are wide and what belongs to a column is loaded once for many rows.
#pragma once

#include <type_traits>

#include "cuda/activate.cuh"
#include "cuda/int8_matmul/kernels.h"
#include "cuda/numeric.cuh"

namespace pk::cuda::int8 {

// The offset of a tile's row, of `rows` that there are from the tile's first on: behind the end that of the last one,
// which is read and whose sums are not stored.
PK_DEVICE int row_offset(int row, int64_t rows, int64_t stride) {
  return (row < rows ? row : static_cast<int>(rows) - 1) * static_cast<int>(stride);
}

// Row `row` of a slice's sums; these rows have whole fours of columns.
PK_DEVICE int32_t* partial_row(const Product& p, int slice, int64_t row) {
  return p.partial + (slice * p.m + row) * (ceil_div<int64_t>(p.n, 4) * 4);
}

// What belongs to columns [first, first + count) of the output, count <= kColumns (less than 1: none).
template <int kColumns>
struct Columns {
  int64_t first;
  int count;
  float scale[kColumns], bias[kColumns];
  uint32_t sums[kColumns];
};

template <int kColumns>
PK_DEVICE Columns<kColumns> load_columns(const Epilogue& e, int64_t first) {
  Columns<kColumns> c;
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

// y as the output has it, in as many bits as that takes.
PK_DEVICE uint32_t rounded(float y, DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return from_float<bf16>(y).bits;
    case DType::f16:
      return from_float<f16>(y).bits;
    case DType::i8:
      return static_cast<uint8_t>(from_float<int8_t>(y));
    default:
      return __float_as_uint(y);
  }
}

// Neighbours of `size` bytes each, of which `count` are there, in one piece where they are aligned.
template <int kColumns>
PK_DEVICE void store(char* to, const uint32_t (&v)[kColumns], int size, int count, bool wide) {
  static_assert(kColumns == 2 || kColumns == 4);
  if (wide && count >= kColumns) {
    if constexpr (kColumns == 4) {
      if (size == 4) {
        *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
      } else if (size == 2) {
        *reinterpret_cast<uint2*>(to) = make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
      } else {
        *reinterpret_cast<uint32_t*>(to) = v[0] | v[1] << 8 | v[2] << 16 | v[3] << 24;
      }
    } else {
      if (size == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(v[0], v[1]);
      } else if (size == 2) {
        *reinterpret_cast<uint32_t*>(to) = v[0] | v[1] << 16;
      } else {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(v[0] | v[1] << 8);
      }
    }
    return;
  }
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    if (i >= count) continue;
    if (size == 4) {
      reinterpret_cast<uint32_t*>(to)[i] = v[i];
    } else if (size == 2) {
      reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(v[i]);
    } else {
      to[i] = static_cast<char>(v[i]);
    }
  }
}

// Row `row`, the columns of `c`.
template <int kColumns>
PK_DEVICE void store_row(const Epilogue& e, const Columns<kColumns>& c, int64_t row, const int32_t (&sums)[kColumns]) {
  uint32_t v[kColumns];
  // Modulo 2^32 like the sums themselves: only the final value has to fit.
  const uint32_t zero =
      e.a_zero_point != nullptr ? static_cast<uint32_t>(e.a_zero_point[row * e.a_zero_point_stride]) : 0u;
  PK_UNROLL
  for (int i = 0; i < kColumns; ++i) v[i] = static_cast<uint32_t>(sums[i]) - zero * c.sums[i];
  if (e.out_dtype != DType::i32) {
    const float a_scale = e.a_scale != nullptr ? e.a_scale[row * e.a_scale_stride] : 1.0f;
    PK_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      const float y = fmaf(static_cast<float>(static_cast<int32_t>(v[i])), c.scale[i] * a_scale, c.bias[i]);
      v[i] = rounded(activate(y, e.activation, e.negative_slope), e.out_dtype);
    }
  }
  store(static_cast<char*>(e.out) + (row * e.n + c.first) * e.out_size, v, e.out_size, c.count, e.wide);
}

// The same of one slice of K of a product that may be split: then the sums are put aside. `column`: a multiple of four.
PK_DEVICE void store_slice_row(const Product& p, const Epilogue& e, int slice, int64_t row, int64_t column, int4 sums) {
  if (p.split > 1) {
    *reinterpret_cast<int4*>(partial_row(p, slice, row) + column) = sums;
  } else {
    store_row<4>(e, load_columns<4>(e, column), row, {sums.x, sums.y, sums.z, sums.w});
  }
}

// Where a warp's sums lie in shared memory, in ints: kWidth columns a row, groups of eight columns twisted by the row,
// so that neither the fragments' pairs nor whole rows have bank conflicts.
template <int kWidth>
PK_DEVICE int staged(int row, int column) {
  return row * kWidth + (column ^ row % 4 * 8);
}

// `rows` rows by kWidth columns of sums that a warp has put into shared memory go out as rows from (row, column) on,
// kColumns of them a lane. The epilogue is long (all activations, five output types), so its loop is not unrolled.
template <int kWidth, int kColumns>
PK_DEVICE void store_staged(const Product& p, const Epilogue& e, int slice, const int32_t* sums, int rows, int64_t row,
                            int64_t column) {
  constexpr int kLanes = kWidth / kColumns, kRowsAtOnce = kWarp / kLanes;
  static_assert(kWarp % kLanes == 0);
  using Few = std::conditional_t<kColumns == 4, int4, int2>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  column += lane % kLanes * kColumns;
  if (column >= e.n) return;
  const auto read = [&](int r) {
    return *reinterpret_cast<const Few*>(sums + staged<kWidth>(r, lane % kLanes * kColumns));
  };
  if (rows > e.m - row) rows = static_cast<int>(e.m - row);
  if (p.split > 1) {
    PK_ROLLED
    for (int r = lane / kLanes; r < rows; r += kRowsAtOnce) {
      *reinterpret_cast<Few*>(partial_row(p, slice, row + r) + column) = read(r);
    }
    return;
  }
  const Columns<kColumns> columns = load_columns<kColumns>(e, column);
  PK_ROLLED
  for (int r = lane / kLanes; r < rows; r += kRowsAtOnce) {
    const Few few = read(r);
    if constexpr (kColumns == 4) {
      store_row<4>(e, columns, row + r, {few.x, few.y, few.z, few.w});
    } else {
      store_row<2>(e, columns, row + r, {few.x, few.y});
    }
  }
}

}  // namespace pk::cuda::int8
