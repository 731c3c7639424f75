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

  float scale(int64_t row) const {
    return row_scales != nullptr      ? row_scales[row - first_row]
           : args->a_scale != nullptr ? args->a_scale[row * args->a_scale_stride]
                                      : 1.0f;
  }
};

// Where the sums of a tile go from their registers: to memory, which `Columns::finish` reads, or, where a few
// instructions make the output, straight there.
enum class Way { memory, int32, float32 };

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

// A panel's columns: what their epilogue needs, loaded once for all tiles.
class Columns {
 public:
  // `column_sums` of panel `panel`.
  Columns(const Epilogue& epilogue, int64_t panel, const int32_t* column_sums)
      : e_(epilogue), first_(panel * kNr), way_(Way::memory) {
    const Int8MatmulArgs& p = *e_.args;
    for (int v = 0; v < kNrVectors; ++v) {
      const int64_t column = first_ + v * kLanes, count = min(kLanes, p.n - column);
      sums_[v] = load<I32>(column_sums + v * kLanes);
      offset_[v] = bit_cast<U32>(sums_[v]) * static_cast<uint32_t>(kAOffset);
      scale_[v] = broadcast(1.0f);
      bias_[v] = F32{};
      if (count <= 0) continue;
      if (p.b_scale != nullptr) {
        scale_[v] = p.b_scale_stride == 0 ? broadcast(*p.b_scale)
                    : count == kLanes     ? load<F32>(p.b_scale + column)
                                          : load_partial(p.b_scale + column, count);
      }
      if (p.bias != nullptr) {
        bias_[v] = count == kLanes ? load<F32>(p.bias + column) : load_partial(p.bias + column, count);
      }
    }
    if (p.a_zero_point != nullptr || first_ + kNr > p.n) return;
    if (p.out_dtype == DType::i32) way_ = Way::int32;
    const bool is_simple = p.activation == Activation::none || p.activation == Activation::relu;
    if (p.out_dtype == DType::f32 && is_simple) way_ = Way::float32;
    lowest_ = p.activation == Activation::relu ? 0.0f : -__builtin_inff();
  }

  // How the last pass leaves the sums.
  Way way() const { return way_; }

  // Fetches the lines that `put` will write.
  void fetch(int64_t row, int rows) const {
    for (int r = 0; r < rows; ++r) {
      const auto* const at = static_cast<const int32_t*>(e_.args->out) + (row + r) * e_.args->n + first_;
#pragma GCC unroll 2
      for (int v = 0; v < kNrVectors; ++v) __builtin_prefetch(at + v * kLanes, 1, 2);
    }
  }

  // The sums of vector v of row `row`, to the output.
  template <Way way>
  [[gnu::always_inline]] void put(I32 sum, int64_t row, int v) const {
    const Int8MatmulArgs& p = *e_.args;
    const int64_t at = row * p.n + first_ + v * kLanes;
    const I32 exact = bit_cast<I32>(bit_cast<U32>(sum) - offset_[v]);
    if constexpr (way == Way::int32) {
      store(static_cast<int32_t*>(p.out) + at, exact);
    } else {
      const F32 y = fma(to_f32(exact), scale_[v] * e_.scale(row), bias_[v]);
      store(static_cast<float*>(p.out) + at, max(broadcast(lowest_), y));
    }
  }

  // sums[rows][kNr], to rows [row, row + rows) of the output.
  void finish(const int32_t* sums, int64_t row, int64_t rows) const {
    const Int8MatmulArgs& p = *e_.args;
    for (int v = 0; v < kNrVectors; ++v) {
      const int64_t column = first_ + v * kLanes, count = min(kLanes, p.n - column);
      if (count <= 0) return;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = row + r;
        // Modulo 2^32 like the sums themselves: only the final value has to fit.
        U32 wrapped = bit_cast<U32>(load<I32>(sums + r * kNr + v * kLanes)) - offset_[v];
        if (p.a_zero_point != nullptr) {
          wrapped -= bit_cast<U32>(sums_[v]) * static_cast<uint32_t>(p.a_zero_point[i * p.a_zero_point_stride]);
        }
        const I32 sum = bit_cast<I32>(wrapped);
        if (p.out_dtype == DType::i32) {
          store_vector(static_cast<int32_t*>(p.out) + i * p.n + column, sum, count);
          continue;
        }
        const F32 y = fma(to_f32(sum), scale_[v] * e_.scale(i), bias_[v]);
        store_output(p, i, column, activate(y, p.activation, p.negative_slope), count);
      }
    }
  }

 private:
  const Epilogue& e_;
  int64_t first_;
  Way way_;
  float lowest_ = 0.0f;  // relu's
  I32 sums_[kNrVectors];
  U32 offset_[kNrVectors];  // of a's values as packed
  F32 scale_[kNrVectors], bias_[kNrVectors];
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
