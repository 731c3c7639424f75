// The numbers that the packers and the microkernel share; how a product is cut into these is choose.h's business.
//
// b is cut into blocks of kKc rows, a block into panels of kNr columns, and a panel is laid out
// [k / kGroup][kNr][kGroup]: the bytes that one dot-product instruction sums lie together. a is laid out
// [k / kKc][row][kARow], widened to 16 bits for pairs; for fours as bytes, on x86 with the sign bit flipped (a + 128,
// unsigned).
#pragma once

#include "cpu/int8_matmul/kernels.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

template <bool dot4>
struct Form;
template <>
struct Form<false> {
  using A = int16_t;
  static constexpr int kGroup = 2;
};
template <>
struct Form<true> {
  using A = uint8_t;
  static constexpr int kGroup = 4;
};

using AValue = Form<kDot4>::A;
inline constexpr int kGroup = Form<kDot4>::kGroup;
// What packing adds to a; the column sums of b take it off again.
inline constexpr int32_t kAOffset = kDot4 ? kDot4Offset : 0;
// Signed bytes with that added.
template <class V>
inline V with_offset(V bytes) {
  if constexpr (kAOffset == 0) return bytes;
  return bytes ^ static_cast<int8_t>(-128);
}

// Accumulators fill the registers but for two of b, one of a and, for pairs, one product.
inline constexpr int kNrVectors = 2, kNr = kNrVectors * kLanes;
inline constexpr int kMr = kRegisters == 32 ? 12 : 6;

// A panel of b (kKc x kNr, as the microkernel reads it) stays in half of L1.
inline constexpr int64_t kKc = kDot4 || kLanes <= 8 ? 512 : 256;
// A row of a's block: a cache line more than kKc values, so that rows don't share cache sets.
inline constexpr int64_t kARow = kKc + 64 / static_cast<int64_t>(sizeof(AValue));

static_assert(kPackedColumns % kNr == 0 && kPackedRows % kGroup == 0 && kKc % kPackedRows == 0);

inline constexpr Int8Tiling kTiling = {
    kMr, kNr, kKc, kGroup, kARow* static_cast<int64_t>(sizeof(AValue)), kDot4 ? 0 : 2 * kKc* kNr};

inline constexpr uint32_t kLayout =
    static_cast<uint32_t>(kGroup) << 24 | static_cast<uint32_t>(kNr) << 16 | static_cast<uint32_t>(kKc);

// Where b's packed panel (block kb, panel p) starts behind the column sums, and how many rows it has.
struct PackedB {
  int64_t k, n;  // as the caller gave them

  int64_t columns() const { return round_up(n, kPackedColumns); }
  int64_t rows() const { return round_up(k, kPackedRows); }
  int64_t blocks() const { return ceil_div(rows(), kKc); }
  int64_t panels() const { return ceil_div(n, kNr); }
  int64_t depth(int64_t kb) const { return min(kKc, rows() - kb * kKc); }
  int64_t offset(int64_t kb, int64_t p) const { return kb * kKc * columns() + p * kNr * depth(kb); }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
