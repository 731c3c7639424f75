// A tile: rows x kNr sums in registers over one pass, which is one or several blocks of k, then to memory or, where the
// pass is the last one and the epilogue is simple, straight to the output.
#pragma once

#include "cpu/int8_matmul/epilogue.h"
#include "cpu/int8_matmul/microkernel.h"

namespace pk {
namespace PK_ISA {
namespace {

// The most blocks of k in a pass.
constexpr int kPassBlocks = 8;

// Some blocks of k of a panel of b, and of the rows of a block of a.
template <class BValue>
struct Pass {
  const BValue* b[kPassBlocks];
  int64_t groups[kPassBlocks];
  int blocks;
  const AValue* a;  // of the first block of k
  int64_t a_step;   // from a block of k to the next
  bool is_first;
  const int8_t* next[kPassBlocks];  // what is read after this pass, as many bytes as its blocks

  // A panel's bytes are read through once; a widened panel's are not, but its source has been.
  static constexpr bool kFetches = sizeof(BValue) == 1;
};

template <int kRows, Way way, class BValue>
inline void tile(const Pass<BValue>& pass, int64_t local, bool fetches, int32_t* c, const Columns* columns,
                 int64_t row) {
  constexpr int64_t kGroupBytes = kNr * kGroup, kLine = 64;
  I32 sum[kRows][kNrVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kNrVectors; ++v) sum[r][v] = pass.is_first ? I32{} : load<I32>(c + r * kNr + v * kLanes);
  }
  if constexpr (way != Way::memory) columns->fetch(row, kRows);
  const AValue* a = pass.a + local * kARow;
  for (int i = 0; i < pass.blocks; ++i, a += pass.a_step) {
    const auto* const ahead = fetches ? pass.next[i] : reinterpret_cast<const int8_t*>(pass.b[i]);
    add_products<kRows>(
        sum, [&](int r) { return a + r * kARow; }, pass.b[i], pass.groups[i],
        [&](int64_t g) {
          // One or two rows are done with a line sooner than it takes to ask for the next.
          if constexpr (Pass<BValue>::kFetches && kRows > 2) {
#pragma GCC unroll 2
            for (int64_t at = 0; at < kGroupBytes; at += kLine) __builtin_prefetch(ahead + g * kGroupBytes + at, 0, 2);
          }
        });
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kNrVectors; ++v) {
      if constexpr (way == Way::memory) {
        store(c + r * kNr + v * kLanes, sum[r][v]);
      } else {
        columns->put<way>(sum[r][v], row + r, v);
      }
    }
  }
}

// rows in [1, kMr], `local` of them before these in a's block; `columns` where the pass is the last one.
template <class BValue, int kRows = kMr>
inline void run_tile(int64_t rows, const Pass<BValue>& pass, int64_t local, bool fetches, int32_t* c,
                     const Columns* columns, int64_t row) {
  if (rows == kRows) {
    switch (columns != nullptr ? columns->way() : Way::memory) {
      case Way::memory:
        tile<kRows, Way::memory>(pass, local, fetches, c, columns, row);
        if (columns != nullptr) columns->finish(c, row, kRows);
        return;
      case Way::int32:
        return tile<kRows, Way::int32>(pass, local, fetches, c, columns, row);
      case Way::float32:
        return tile<kRows, Way::float32>(pass, local, fetches, c, columns, row);
    }
  } else if constexpr (kRows > 1) {
    run_tile<BValue, kRows - 1>(rows, pass, local, fetches, c, columns, row);
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
