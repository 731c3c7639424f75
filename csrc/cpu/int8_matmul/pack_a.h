// Rows of a to blocks [k / kKc][row][kARow]; float rows are quantised on the way.
#pragma once

#include "cpu/int8_matmul/rounding.h"
#include "cpu/int8_matmul/tiling.h"

namespace pk {
namespace PK_ISA {
namespace {

inline AValue packed_value(int32_t v) { return static_cast<AValue>(v + kAOffset); }

// n contiguous bytes.
inline void pack_row(const int8_t* a, int64_t n, AValue* to) {
  int64_t i = 0;
  if constexpr (kDot4) {
    for (; i + kVecBytes <= n; i += kVecBytes) store(to + i, with_offset(load<I8>(a + i)));
  } else {
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) store(to + i, widen(load<I8Half>(a + i)));
  }
  for (; i < n; ++i) to[i] = packed_value(a[i]);
}

// n contiguous floats, quantised.
template <class T>
inline void pack_row(const T* a, int64_t n, float scale, AValue* to) {
  const int64_t whole = n / kLanes * kLanes;
  quantize_vectors(a, whole, scale, [&](int64_t i, I32 q) {
    if constexpr (kDot4) {
      store(to + i, with_offset(to_i8(q)));
    } else {
      store(to + i, to_i16(q));
    }
  });
  if (whole < n) {
    const I32 q = quantized(load_some_as_f32(a + whole, n - whole), broadcast(scale));
    for (int j = 0; whole + j < n; ++j) to[whole + j] = packed_value(q[j]);
  }
}

// Row by row: the second reading of a row finds it in a cache.
template <class T>
inline void quantize_rows(const T* a, int64_t stride_m, int64_t rows, int64_t k, AValue* to, float* scales) {
  for (int64_t r = 0; r < rows; ++r, a += stride_m) {
    scales[r] = symmetric_scale(largest_magnitude(a, k));
    for (int64_t i = 0; i < k; i += kKc) {
      pack_row(a + i, min(kKc, k - i), scales[r], to + (i / kKc * rows + r) * kARow);
    }
  }
}

// Rows [first, first + rows) of the problem. scales[rows] is filled if a is float.
inline void pack_rows(const Int8MatmulArgs& args, int64_t first, int64_t rows, AValue* to, float* scales) {
  const int64_t k = args.k, stride_m = args.a_stride_m, stride_k = args.a_stride_k;
  // The last groups of a row may lie beyond k: b has zeros there, a gets some.
  if (k % kPackedRows != 0) {
    AValue* last = to + k / kKc * rows * kARow + k % kKc / kPackedRows * kPackedRows;
    for (int64_t r = 0; r < rows; ++r) std::memset(last + r * kARow, 0, kPackedRows * sizeof(AValue));
  }
  if (args.a_dtype == DType::f32) {
    quantize_rows(static_cast<const float*>(args.a) + first * stride_m, stride_m, rows, k, to, scales);
    return;
  }
  if (args.a_dtype == DType::bf16) {
    quantize_rows(static_cast<const bf16_t*>(args.a) + first * stride_m, stride_m, rows, k, to, scales);
    return;
  }
  const int8_t* a = static_cast<const int8_t*>(args.a) + first * stride_m;
  for (int64_t i = 0; i < k; i += kKc, to += rows * kARow) {
    const int64_t n = min(kKc, k - i);
    for (int64_t r = 0; r < rows; ++r) {
      const int8_t* row = a + r * stride_m + i * stride_k;
      if (stride_k == 1) {
        pack_row(row, n, to + r * kARow);
      } else {
        for (int64_t j = 0; j < n; ++j) to[r * kARow + j] = packed_value(row[j * stride_k]);
      }
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
