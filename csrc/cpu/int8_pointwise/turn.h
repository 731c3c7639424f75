// Bytes in another order: rows of them become columns, in squares of 16 x 16. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kSide = 16;
using Bytes = int8_t __attribute__((vector_size(kSide)));

// `count` bytes, at most kSide, in pieces of a size that the compiler knows.
inline void copy_bytes(int8_t* to, const int8_t* from, int64_t count) {
  if (count == kSide) return void(std::memcpy(to, from, kSide));
#pragma GCC unroll 4
  for (int piece = 8; piece > 0; piece /= 2) {
    if ((count & piece) == 0) continue;
    std::memcpy(to, from, static_cast<size_t>(piece));
    to += piece;
    from += piece;
  }
}

// Each round halves the distance between the elements of a column: four bring them together.
inline void turn_square(Bytes (&v)[kSide]) {
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    Bytes w[kSide];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      w[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      w[2 * i + 1] =
          __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) v[i] = w[i];
  }
}

// to[j * to_step + i] = from[i * from_step + j], i < rows <= kSide, j < columns <= kSide
inline void turn(const int8_t* from, int64_t from_step, int64_t rows, int64_t columns, int8_t* to, int64_t to_step) {
  Bytes v[kSide] = {};
  if (columns == kSide) {
    for (int64_t i = 0; i < rows; ++i) v[i] = load<Bytes>(from + i * from_step);
  } else {
    for (int64_t i = 0; i < rows; ++i) copy_bytes(reinterpret_cast<int8_t*>(&v[i]), from + i * from_step, columns);
  }
  turn_square(v);
  if (rows == kSide) {
    for (int64_t j = 0; j < columns; ++j) store(to + j * to_step, v[j]);
  } else {
    for (int64_t j = 0; j < columns; ++j) copy_bytes(to + j * to_step, reinterpret_cast<const int8_t*>(&v[j]), rows);
  }
}

// Three rows of 16 bytes in turn: the pixels of an image.
inline void weave_three(Bytes a, Bytes b, Bytes c, int8_t* to) {
  const Bytes x = __builtin_shufflevector(a, b, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const Bytes y = __builtin_shufflevector(a, b, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const Bytes z = __builtin_shufflevector(a, b, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  store(to, __builtin_shufflevector(x, c, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15));
  store(to + 16, __builtin_shufflevector(y, c, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15));
  store(to + 32, __builtin_shufflevector(z, c, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31));
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
