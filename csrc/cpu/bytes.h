// int8 elements as vectors of numbers, and numbers rounded to int8. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

inline I32 load_bytes(const int8_t* from) { return to_i32(load<I8Quarter>(from)); }
// The first `count` lanes; the rest is 0.
inline I32 load_bytes(const int8_t* from, int64_t count) {
  if (count == kLanes) return load_bytes(from);
  return to_i32(load_partial(from, count));
}
// The low bytes.
inline void store_bytes(int8_t* to, I32 v) { store(to, to_i8(v)); }
inline void store_bytes(int8_t* to, I32 v, int64_t count) {
  const I8Quarter bytes = to_i8(v);
  copy_partial(to, reinterpret_cast<const int8_t*>(&bytes), count);
}

// From a float in units of the grid's scale to its byte: to nearest even, then by the zero point, then saturated; a NaN
// as 0.
struct Rounding {
  F32 low, high;
  I32 zero;

  explicit Rounding(int32_t zero_point)
      : low(broadcast(static_cast<float>(-128 - zero_point))),
        high(broadcast(static_cast<float>(127 - zero_point))),
        zero(broadcast(zero_point)) {}

  // In the low bytes; a NaN's other bits are any. Unsigned, because they may wrap.
  I32 operator()(F32 t) const {
    return bit_cast<I32>(bit_cast<U32>(nearest(min(high, max(low, t)))) + bit_cast<U32>(zero));
  }
};

// y[i] = the low byte of values(i), i < count; values(i, n) has n < kLanes lanes. What is read in the place of y is
// read before it is written.
template <class Values>
inline void store_row(const Values& values, int64_t count, int8_t* y) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    store(y + i, to_i8(values(i), values(i + kLanes), values(i + 2 * kLanes), values(i + 3 * kLanes)));
  }
  for (; i + kLanes <= count; i += kLanes) store_bytes(y + i, values(i));
  if (i < count) store_bytes(y + i, values(i, count - i), count - i);
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
