// b (k, n), any strides, to panels [k / kGroup][kNr][kGroup] with the sum of each column.
#pragma once

#include "cpu/int8_matmul/tiling.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

// 16 bytes in three disguises: what every target has registers for.
using Bytes16 = int8_t __attribute__((vector_size(16)));
using Words8 = int16_t __attribute__((vector_size(16)));
using Quads4 = int32_t __attribute__((vector_size(16)));

struct SourceB {
  const int8_t* data;
  int64_t stride_k, stride_n;
  int64_t k, n;
};

// Four rows of 16 bytes to 16 groups of four, the last eight of them at `last`.
inline void interleave_quads(Bytes16 r0, Bytes16 r1, Bytes16 r2, Bytes16 r3, int8_t* to, int8_t* last) {
  const auto low = (Words8)__builtin_shufflevector(r0, r1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const auto high =
      (Words8)__builtin_shufflevector(r0, r1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const auto low2 = (Words8)__builtin_shufflevector(r2, r3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const auto high2 =
      (Words8)__builtin_shufflevector(r2, r3, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  store(to, __builtin_shufflevector(low, low2, 0, 8, 1, 9, 2, 10, 3, 11));
  store(to + 16, __builtin_shufflevector(low, low2, 4, 12, 5, 13, 6, 14, 7, 15));
  store(last, __builtin_shufflevector(high, high2, 0, 8, 1, 9, 2, 10, 3, 11));
  store(last + 16, __builtin_shufflevector(high, high2, 4, 12, 5, 13, 6, 14, 7, 15));
}

// Rows of b that are contiguous along n: bytes of kGroup rows interleave, 16 columns at a time.
inline void interleave(const int8_t* source, int64_t stride_k, int8_t* to, int8_t* last) {
  if constexpr (kGroup == 2) {
    const auto x = load<Bytes16>(source), y = load<Bytes16>(source + stride_k);
    store(to, __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store(last, __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  } else {
    interleave_quads(load<Bytes16>(source), load<Bytes16>(source + stride_k), load<Bytes16>(source + 2 * stride_k),
                     load<Bytes16>(source + 3 * stride_k), to, last);
  }
}

// Columns of b that are contiguous along k (the weight of a Linear, transposed): 16 rows of 16 / kGroup columns, a
// square of groups, are transposed.
inline void transpose(const int8_t* source, int64_t stride_n, int8_t* to) {
  if constexpr (kGroup == 2) {
    Words8 c[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) c[i] = load<Words8>(source + i * stride_n);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = __builtin_shufflevector(c[i], c[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      t[2 * i + 1] = __builtin_shufflevector(c[i], c[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      c[2 * i] = __builtin_shufflevector(t[i], t[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      c[2 * i + 1] = __builtin_shufflevector(t[i], t[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = __builtin_shufflevector(c[i], c[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      t[2 * i + 1] = __builtin_shufflevector(c[i], c[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store(to + i * kNr * kGroup, t[i]);
  } else {
    Quads4 c[4], t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) c[i] = load<Quads4>(source + i * stride_n);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      t[2 * i] = __builtin_shufflevector(c[i], c[i + 2], 0, 4, 1, 5);
      t[2 * i + 1] = __builtin_shufflevector(c[i], c[i + 2], 2, 6, 3, 7);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      c[2 * i] = __builtin_shufflevector(t[i], t[i + 2], 0, 4, 1, 5);
      c[2 * i + 1] = __builtin_shufflevector(t[i], t[i + 2], 2, 6, 3, 7);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(to + i * kNr * kGroup, c[i]);
  }
}

// Whatever the vector forms left over of a panel: rows [first_row, rows) whole, of the others columns from
// first_column.
inline void pack_rest(const SourceB& b, const int8_t* source, int64_t rows, int64_t columns, int64_t first_row,
                      int64_t first_column, int8_t* to) {
  for (int64_t i = 0; i < rows; ++i) {
    int8_t* row = to + i / kGroup * kGroup * kNr + i % kGroup;
    for (int64_t j = i < first_row ? first_column : 0; j < columns; ++j) {
      row[j * kGroup] = source[i * b.stride_k + j * b.stride_n];
    }
  }
}

inline void add_column_sums(const int8_t* panel, int64_t depth, int32_t* sums) {
  I32 sum[kNrVectors];
  for (int v = 0; v < kNrVectors; ++v) sum[v] = load<I32>(sums + v * kLanes);
  for (int64_t i = 0; i < depth; i += kGroup) {
    for (int v = 0; v < kNrVectors; ++v) {
      const int8_t* group = panel + i * kNr + v * kLanes * kGroup;
      if constexpr (kDot4) {
        sum[v] = dot4(sum[v], I8{} + 1, load<I8>(group));
      } else {
        sum[v] = dot2(sum[v], I16{} + 1, widen(load<I8Half>(group)));
      }
    }
  }
  for (int v = 0; v < kNrVectors; ++v) store(sums + v * kLanes, sum[v]);
}

// Block kb of the panels [first, first + count), depth * kNr bytes each, to `to`, `stride` bytes apart, with zeros
// beyond k and n; adds their column sums to sums[count * kNr]. Several panels at once because rows of b are read whole
// then: a panel alone takes a fraction of each cache line.
inline void pack_panels(const SourceB& b, int64_t kb, int64_t first, int64_t count, int64_t depth, int8_t* to,
                        int64_t stride, int32_t* sums) {
  const int64_t rows = min(depth, b.k - kb * kKc), columns = min(count * kNr, b.n - first * kNr);
  const int8_t* source = b.data + kb * kKc * b.stride_k + first * kNr * b.stride_n;
  for (int64_t p = rows < depth ? 0 : columns / kNr; p < count; ++p) {  // panels that are not filled
    std::memset(to + p * stride, 0, static_cast<size_t>(depth * kNr));
  }

  int64_t fast_rows = 0, fast_columns = 0;  // what the two vector forms do of it
  if (b.stride_n == 1) {
    fast_rows = rows / kGroup * kGroup;
    fast_columns = columns / 16 * 16;
    for (int64_t i = 0; i < fast_rows; i += kGroup) {
      for (int64_t j = 0; j < fast_columns; j += 16) {
        int8_t* const at = to + j / kNr * stride + i * kNr + j % kNr * kGroup;
        interleave(source + i * b.stride_k + j, b.stride_k, at, at + (kNr >= 16 ? 8 * kGroup : stride));
      }
    }
  } else if (b.stride_k == 1) {
    constexpr int64_t width = 16 / kGroup;
    fast_rows = rows / 16 * 16;
    fast_columns = columns / width * width;
    for (int64_t j = 0; j < fast_columns; j += width) {
      int8_t* column = to + j / kNr * stride + j % kNr * kGroup;
      for (int64_t i = 0; i < fast_rows; i += 16) {
        transpose(source + i + j * b.stride_n, b.stride_n, column + i * kNr);
      }
    }
  }
  for (int64_t p = 0; p < count; ++p) {
    int8_t* panel = to + p * stride;
    const int64_t j = p * kNr, left = min(kNr, columns - j);
    pack_rest(b, source + j * b.stride_n, rows, left, fast_rows, min(left, max(0, fast_columns - j)), panel);
    add_column_sums(panel, depth, sums + j);
  }
}

// All of b: 4 * columns() bytes of sums, then the panels.
inline void pack_all(const SourceB& b, char* body, const Executor& executor) {
  const PackedB packed{b.k, b.n};
  const int64_t filled = packed.panels() * kNr;
  if (filled < packed.columns()) {
    std::memset(body + 4 * filled, 0, static_cast<size_t>(4 * (packed.columns() - filled)));
  }
  char* data = body + 4 * packed.columns();
  constexpr int64_t kTogether = 4;  // more would meet in one cache set
  const int64_t parts = ceil_div(packed.panels(), kTogether);
  const int64_t part_bytes = kTogether * kNr * packed.rows();
  parallel_for(executor, 0, parts, max(1, (1 << 18) / (part_bytes + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kTogether, count = min(kTogether, packed.panels() - first);
      int32_t sums[kTogether * kNr] = {};
      for (int64_t kb = 0; kb < packed.blocks(); ++kb) {
        auto* to = reinterpret_cast<int8_t*>(data + packed.offset(kb, first));
        pack_panels(b, kb, first, count, packed.depth(kb), to, packed.depth(kb) * kNr, sums);
      }
      std::memcpy(body + 4 * first * kNr, sums, static_cast<size_t>(4 * count * kNr));
    }
  });
  // Panels of columns that the ISA never reads, so that the same b gives the same bytes.
  for (int64_t kb = 0; kb < packed.blocks(); ++kb) {
    const int64_t unused = packed.depth(kb) * (packed.columns() - filled);
    std::memset(data + packed.offset(kb, packed.panels()), 0, static_cast<size_t>(unused));
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
