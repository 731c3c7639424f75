// Exact sums of int8: of 16-bit words, and after kBlock additions, which no word can leave, of 32-bit ones. Internal
// linkage: ISA sources include it.
#pragma once

#include "cpu/bytes.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kBlock = 256;
constexpr int64_t kWords = 2 * kLanes;  // of a vector

// `rows` x `columns` elements from `x` on.
struct Elements {
  const int8_t* x;
  int64_t rows, columns, row_step, column_step;
};

// `count` elements, at most kWords; the rest is 0.
inline I8Half load_some(const int8_t* x, int64_t count) {
  int8_t some[kWords] = {};
  for (int64_t i = 0; i < count; i += kLanes) copy_partial(some + i, x + i, min(kLanes, count - i));
  return load<I8Half>(some);
}

// total: of kWords channels from `c` on, of which `count` are there.
template <bool kWhole>
inline void add_up(const Elements& t, int64_t c, int64_t count, I32 (&total)[2]) {
  I16 part = {};
  int64_t left = kBlock;
  const auto flush = [&] {
    I16Half halves[2];
    std::memcpy(halves, &part, sizeof part);
    for (int k = 0; k < 2; ++k) total[k] += to_i32(halves[k]);
    part = I16{};
    left = kBlock;
  };
  const int8_t* row = t.x + c;
  for (int64_t i = 0; i < t.rows; ++i, row += t.row_step) {
    const int8_t* at = row;
    for (int64_t j = 0; j < t.columns;) {
      const int64_t end = min(t.columns, j + left);
      left -= end - j;
      for (; j < end; ++j, at += t.column_step) part += widen(kWhole ? load<I8Half>(at) : load_some(at, count));
      if (left == 0) flush();
    }
  }
  flush();
}

// Of adjacent elements.
inline int32_t sum_of_bytes(const int8_t* x, int64_t count) {
  const I16 ones = I16{} + int16_t{1};
  I32 total = {};
  int64_t i = 0;
  for (; i + kWords <= count; i += kWords) total = dot2(total, widen(load<I8Half>(x + i)), ones);
  int32_t sum = 0;
  for (; i < count; ++i) sum += x[i];
  for (int k = 0; k < kLanes; ++k) sum += total[k];
  return sum;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
