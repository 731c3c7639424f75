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

// part[k] = the sum over all elements, at most kBlock, of words k of channels; with one word `count` channels are
// there.
template <bool kWhole, int kCount>
inline void add_words(const Elements& e, int64_t count, I16 (&part)[kCount]) {
  for (int k = 0; k < kCount; ++k) part[k] = I16{};
  const int8_t* row = e.x;
  for (int64_t i = 0; i < e.rows; ++i, row += e.row_step) {
    const int8_t* at = row;
    for (int64_t j = 0; j < e.columns; ++j, at += e.column_step) {
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) part[k] += widen(kWhole ? load<I8Half>(at + k * kWords) : load_some(at, count));
    }
  }
}

// total: of kCount * kWords channels from e.x on, or with one word of `count`, fewer.
template <bool kWhole, int kCount>
inline void add_up(Elements e, int64_t count, I32 (&total)[2 * kCount]) {
  for (I32& t : total) t = I32{};
  I16 part[kCount];
  const auto flush = [&](const Elements& some) {
    add_words<kWhole>(some, count, part);
    for (int k = 0; k < kCount; ++k) {
      I16Half halves[2];
      std::memcpy(halves, &part[k], sizeof halves);
      total[2 * k] += to_i32(halves[0]);
      total[2 * k + 1] += to_i32(halves[1]);
    }
  };
  if (e.rows * e.columns <= kBlock) return flush(e);
  const int64_t rows = e.columns < kBlock ? kBlock / e.columns : 1, columns = min(e.columns, kBlock);
  for (int64_t i = 0; i < e.rows; i += rows) {
    for (int64_t j = 0; j < e.columns; j += columns) {
      flush({e.x + i * e.row_step + j * e.column_step, min(rows, e.rows - i), min(columns, e.columns - j), e.row_step,
             e.column_step});
    }
  }
}

// kWords zeros and then as many ones.
struct LastOnes {
  int16_t words[2 * kWords] = {};
  constexpr LastOnes() {
    for (int64_t k = kWords; k < 2 * kWords; ++k) words[k] = 1;
  }
};
constexpr LastOnes kLastOnes;

// Of adjacent elements.
inline int32_t sum_of_bytes(const int8_t* x, int64_t count) {
  const I16 ones = I16{} + int16_t{1};
  I32 total = {};
  int64_t i = 0;
  for (; i + kWords <= count; i += kWords) total = dot2(total, widen(load<I8Half>(x + i)), ones);
  int32_t rest = 0;
  if (i < count && count >= kWords) {  // the last vector, and of it what has not been added yet
    total = dot2(total, widen(load<I8Half>(x + count - kWords)), load<I16>(kLastOnes.words + count - i));
  } else {
    for (; i < count; ++i) rest += x[i];
  }
  int32_t lanes[kLanes];
  store(lanes, total);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  }
  return rest + lanes[0];
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
