// A call on its way: the rows of x, the packed parts of the weight, and what becomes of sums.
#pragma once

#include "cpu/activate.h"
#include "cpu/elements.h"
#include "cpu/lstm/sequence.h"
#include "cpu/weight_only_linear/layout.h"

namespace pk {
namespace PK_ISA {
namespace {

// Multiply-adds that are worth a thread.
inline constexpr int64_t kGrain = 1 << 17;
inline int64_t grain_of(int64_t work) { return 1 + kGrain / (work + 1); }

inline void pad(const float* from, int64_t n, int64_t padded, float* to) {
  std::memset(to, 0, static_cast<size_t>(padded) * sizeof(float));
  if (from) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

// The rows of x as float32, and what is done with sums.
struct Product {
  const WeightOnlyLinearArgs& args;
  const float* x;
  int64_t x_row;
  const float *scale, *bias;  // of whole panels
  const int8_t* panels;

  // Of a block behind its header.
  void set_packed(const char* block, const WeightOnlyLinearOffsets& o) {
    scale = reinterpret_cast<const float*>(block + o.scale);
    bias = reinterpret_cast<const float*>(block + o.bias);
    panels = reinterpret_cast<const int8_t*>(block + o.panels);
  }

  // sums (rows, ...) of the columns [column, column + width), whose rows are c_row apart, to y.
  void finish(int64_t row, int64_t rows, int64_t column, int64_t width, const float* c, int64_t c_row) const {
    if (args.dtype == DType::f32) return put(static_cast<float*>(args.y), row, rows, column, width, c, c_row);
    put(static_cast<bf16_t*>(args.y), row, rows, column, width, c, c_row);
  }

 private:
  template <class T>
  void put(T* y, int64_t row, int64_t rows, int64_t column, int64_t width, const float* c, int64_t c_row) const {
    const int64_t count = min(width, args.n - column);
    for (int64_t r = 0; r < rows; ++r) {
      T* const to = y + (row + r) * args.n + column;
      const float* const from = c + r * c_row;
      for (int64_t j = 0; j < count; j += kLanes) {
        const F32 v = activate(load<F32>(from + j), args.activation, args.negative_slope);
        if (count - j >= kLanes) {
          store_narrowed(to + j, v);
        } else {
          store_narrowed(to + j, v, count - j);
        }
      }
    }
  }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
