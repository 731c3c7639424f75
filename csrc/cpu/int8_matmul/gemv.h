// A few rows of a times a b that is not packed: b is read once, as it lies, at the speed of memory.
//
// Where four bytes are summed at once and one operand is unsigned, that is b with the sign bit flipped (b + 128): 128
// times the sum of a row of a comes off again, which costs nothing a byte of b.
//   columns of b contiguous (a Linear's weight): lanes along k, one column after the other, summed across at its end.
//   rows of b contiguous: lanes along n. kDepth rows together, from end to end of the thread's columns, are interleaved
//   in registers; their sums lie in L1 or L2 meanwhile.
#pragma once

#include "cpu/int8_matmul/choose.h"
#include "cpu/int8_matmul/epilogue.h"
#include "cpu/int8_matmul/microkernel.h"
#include "cpu/int8_matmul/pack_b.h"

namespace pk {
namespace PK_ISA {
namespace {

// Rows of b that are read side by side, and columns whose bytes fill a vector.
constexpr int64_t kDepth = 8, kWide = kVecBytes;
static_assert(kWide == 2 * kNr);

// a as the products want it: the bits of signed bytes, or words.
using Signed = AValue;

// Rows of a from blocks of k (pack_a.h) to `to`: (rows, stride), zeros behind k; and what their sums are to be lowered
// by.
inline void flatten(const AValue* a, int64_t rows, int64_t k, int64_t stride, Signed* to, uint32_t* lower) {
  for (int64_t r = 0; r < rows; ++r, to += stride) {
    std::memset(to, 0, static_cast<size_t>(stride) * sizeof(Signed));
    uint32_t sum = 0;
    for (int64_t i = 0; i < k; i += kKc) {
      const AValue* from = a + (i / kKc * rows + r) * kARow;
      const int64_t n = min(kKc, k - i);
      for (int64_t j = 0; j < n; ++j) {
        to[i + j] = static_cast<Signed>(from[j] ^ kAOffset);
        if (kAOffset != 0) sum += static_cast<uint32_t>(static_cast<int32_t>(static_cast<int8_t>(to[i + j])));
      }
    }
    lower[r] = kAOffset * sum;
  }
}

template <int kBy, int... i>
inline U32 rotated(U32 v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, ((i + kBy) % kLanes)...);
}
template <int kHalf = kLanes / 2>
inline uint32_t sum_of_lanes(U32 v) {
  v += rotated<kHalf>(v, std::make_integer_sequence<int, kLanes>());
  if constexpr (kHalf > 1) {
    return sum_of_lanes<kHalf / 2>(v);
  } else {
    return v[0];
  }
}

// Lanes of b along k times those of a.
inline I32 dot_along(I32 sum, const Signed* a, const int8_t* b) {
  if constexpr (kDot4) {
    return dot4(sum, with_offset(load<I8>(b)), load<I8>(a));
  } else {
    return dot2(sum, load<I16>(a), widen(load<I8Half>(b)));
  }
}

// sums[r] of one column.
template <int kRows>
inline void gemv_column(const Signed* a, int64_t stride, const int8_t* b, int64_t k, uint32_t* sums) {
  constexpr int64_t kStep = kLanes * kGroup;
  constexpr int kParts = kRows == 1 ? 4 : 2;
  I32 sum[kRows][kParts] = {};
  int64_t i = 0;
  for (; i + kParts * kStep <= k; i += kParts * kStep) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sum[r][part] = dot_along(sum[r][part], a + r * stride + i + part * kStep, b + i + part * kStep);
      }
    }
  }
  for (; i < k; i += kStep) {
    int8_t padded[kStep] = {};
    const int8_t* at = b + i;
    if (i + kStep > k) {
      std::memcpy(padded, at, static_cast<size_t>(k - i));
      at = padded;
    }
    for (int r = 0; r < kRows; ++r) sum[r][0] = dot_along(sum[r][0], a + r * stride + i, at);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    I32 all = sum[r][0];
    for (int part = 1; part < kParts; ++part) all += sum[r][part];
    sums[r] = sum_of_lanes(bit_cast<U32>(all));
  }
}

// The bytes (or words) of two vectors in turn, from the low (high: 1) half of each 16 bytes.
template <int high, class V, int... i>
inline V interleave_lanes(V x, V y, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i), lane = n * 16 / static_cast<int>(sizeof(V));
  return __builtin_shufflevector(x, y, (i / lane * lane + i % lane / 2 + high * lane / 2 + i % 2 * n)...);
}
template <int high>
inline I8 interleave_bytes(I8 x, I8 y) {
  return interleave_lanes<high>(x, y, std::make_integer_sequence<int, kVecBytes>());
}
template <int high>
inline I8 interleave_words(I8 x, I8 y) {
  return bit_cast<I8>(
      interleave_lanes<high>(bit_cast<I16>(x), bit_cast<I16>(y), std::make_integer_sequence<int, kVecBytes / 2>()));
}

// kWide columns of kGroup rows, as four vectors of kLanes columns for `dot`. Which columns: column_of.
struct Groups {
#if defined(PK_DOT4)
  I8 v[4];
#else
  I16 v[4];
#endif
};
template <int kBegin, int... i>
inline I8Half half(I8 v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (kBegin + i)...);
}
inline Groups groups_of(const int8_t* const* rows, int64_t at) {
  Groups g;
#if defined(PK_DOT4)
  I8 r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) r[i] = with_offset(load<I8>(rows[i] + at));
  const I8 low = interleave_bytes<0>(r[0], r[1]), high = interleave_bytes<1>(r[0], r[1]);
  const I8 low2 = interleave_bytes<0>(r[2], r[3]), high2 = interleave_bytes<1>(r[2], r[3]);
  g.v[0] = interleave_words<0>(low, low2), g.v[1] = interleave_words<1>(low, low2);
  g.v[2] = interleave_words<0>(high, high2), g.v[3] = interleave_words<1>(high, high2);
#else
  const I8 x = load<I8>(rows[0] + at), y = load<I8>(rows[1] + at);
  const I8 low = interleave_bytes<0>(x, y), high = interleave_bytes<1>(x, y);
  constexpr auto kHalf = std::make_integer_sequence<int, kVecBytes / 2>();
  g.v[0] = widen(half<0>(low, kHalf)), g.v[1] = widen(half<kVecBytes / 2>(low, kHalf));
  g.v[2] = widen(half<0>(high, kHalf)), g.v[3] = widen(half<kVecBytes / 2>(high, kHalf));
#endif
  return g;
}

// b's bytes come first: they are the ones with the offset.
inline I32 dot_b(I32 sum, I8 b, Repeated a) { return dot4(sum, b, a); }
inline I32 dot_b(I32 sum, I16 b, I32 a) { return dot(sum, a, b); }

// Which of the kWide columns lane `lane` of vector v of `Groups` is.
constexpr int64_t column_of(int v, int lane) {
  const int byte = kGroup * lane + (kDot4 ? 0 : v % 2 * kVecBytes / 2);
  return byte / 16 * 16 + (kDot4 ? 4 * v : v / 2 * 8) + byte % 16 / kGroup;
}

// sums[r][4][kLanes] += kDepth rows of kWide columns.
template <int kRows>
inline void gemv_square(const Signed* a, int64_t stride, const int8_t* const* rows, int64_t at, int32_t* sums,
                        int64_t sum_stride) {
  constexpr int kGroups = kDepth / kGroup;
  Groups g[kGroups];
#pragma GCC unroll 4
  for (int i = 0; i < kGroups; ++i) g[i] = groups_of(rows + i * kGroup, at);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    I32 sum[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] = load<I32>(sums + r * sum_stride + v * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < kGroups; ++i) {
      int32_t group;
      std::memcpy(&group, a + r * stride + i * kGroup, sizeof group);
      const auto ar = repeated(group);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        sum[v] = dot_b(sum[v], g[i].v[v], ar);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store(sums + r * sum_stride + v * kLanes, sum[v]);
  }
}

// Columns [first, last) of b, whose rows are contiguous, to sums (kRows, sum_stride) in the order of column_of.
template <int kRows>
inline void gemv_rows(const SourceB& b, int64_t first, int64_t last, const Signed* a, int64_t stride, int32_t* sums,
                      int64_t sum_stride) {
  std::memset(sums, 0, static_cast<size_t>(kRows * sum_stride) * sizeof *sums);
  for (int64_t i = 0; i < b.k; i += kDepth) {
    const int8_t* rows[kDepth];
    // Behind k the last row stands in: a is zero there.
    for (int64_t d = 0; d < kDepth; ++d) rows[d] = b.data + min(i + d, b.k - 1) * b.stride_k;
    int64_t j = first;
    for (; j + kWide <= last; j += kWide) {
      gemv_square<kRows>(a + i, stride, rows, j, sums + (j - first), sum_stride);
    }
    if (j < last) {
      int8_t rest[kDepth][kWide] = {};
      for (int64_t d = 0; d < kDepth; ++d) {
        std::memcpy(rest[d], rows[d] + j, static_cast<size_t>(last - j));
        rows[d] = rest[d];
      }
      gemv_square<kRows>(a + i, stride, rows, 0, sums + (j - first), sum_stride);
    }
  }
}

// Panels [begin, end), whole kWide's of columns but for the last ones. `a` (kRows, stride); `sums`: workspace.
template <int kRows>
inline void gemv(const SourceB& b, const Epilogue& epilogue, int64_t begin, int64_t end, const Signed* a,
                 int64_t stride, const uint32_t* lower, int32_t* sums) {
  const int32_t none[kNr] = {};
  const int64_t width = round_up((end - begin) * kNr, kWide);
  if (b.stride_k != 1) gemv_rows<kRows>(b, begin * kNr, min(end * kNr, b.n), a, stride, sums, width);
  for (int64_t j = begin; j < end; ++j) {
    int32_t c[kRows * kNr] = {};
    for (int64_t x = 0; x < kNr; ++x) {
      uint32_t column[kRows] = {};
      if (b.stride_k == 1 && j * kNr + x < b.n) {
        gemv_column<kRows>(a, stride, b.data + (j * kNr + x) * b.stride_n, b.k, column);
        for (int r = 0; r < kRows; ++r) c[r * kNr + x] = static_cast<int32_t>(column[r] - lower[r]);
      }
    }
    if (b.stride_k != 1) {
      const int64_t square = (j - begin) * kNr / kWide * kWide, offset = (j - begin) * kNr % kWide;
      for (int v = 0; v < 4; ++v) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const int64_t x = column_of(v, lane) - offset;
          if (x < 0 || x >= kNr) continue;
          for (int r = 0; r < kRows; ++r) {
            const int32_t sum = sums[r * width + square + v * kLanes + lane];
            c[r * kNr + x] = static_cast<int32_t>(static_cast<uint32_t>(sum) - lower[r]);
          }
        }
      }
    }
    Columns(epilogue, j, none).finish(c, epilogue.first_row, kRows);
  }
}

template <int kRows = kMostStreamed>
inline void run_gemv(int64_t rows, const SourceB& b, const Epilogue& epilogue, int64_t begin, int64_t end,
                     const Signed* a, int64_t stride, const uint32_t* lower, int32_t* sums) {
  if (rows == kRows) {
    gemv<kRows>(b, epilogue, begin, end, a, stride, lower, sums);
  } else if constexpr (kRows > 1) {
    run_gemv<kRows - 1>(rows, b, epilogue, begin, end, a, stride, lower, sums);
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
