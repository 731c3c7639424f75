// The same product on an ISA that multiplies bytes in fours: a row of x becomes integers of 24 bits, relative to its
// largest magnitude, in three signed digits of 8 bits. Their products with q are exact in int32, and put together in
// float32 only at the end. So 64 weights take three instructions, where widening and multiplying takes twelve, and what
// is rounded is x, to 2^-24 of the largest of its row: as a rule less than float32's sums round.
//
//   v = round(x * most / max|x|), most = 127 * 2^16;   v = 2^16 d0 + 2^8 d1 + d2, each in [-128, 127]
//   y = (2^16 (d0 q) + 2^8 (d1 q) + d2 q) * (max|x| / most) * s + bias
//
// A row with a NaN or an infinity is summed in float, number by number.
#pragma once

#include "cpu/int8_lstm/pack.h"
#include "cpu/int8_lstm/tile.h"
#include "cpu/int8_matmul/rounding.h"
#include "cpu/weight_only_linear/product.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int64_t kDigits = 3;
inline constexpr float kMost = 127 * 65536.0f;

// Of a row of digits: a cache line more, so that rows don't share cache sets.
inline int64_t digit_row(int64_t k) { return round_up(k, 4) + 64; }

// How a row is scaled: v = x * up * inverse, and x = v * scale * down.
struct RowScale {
  float scale, down;
  bool is_finite;
};

inline int64_t digits_bytes(int64_t m, int64_t k) {
  return m * (kDigits * digit_row(k) * static_cast<int64_t>(sizeof(AValue)) + static_cast<int64_t>(sizeof(RowScale)));
}

// The digits of a row to three rows, `stride` apart.
inline RowScale split(const float* x, int64_t k, int64_t stride, AValue* to) {
  const float largest = __builtin_bit_cast(float, largest_magnitude(x, k));
  std::memset(to, kAOffset, static_cast<size_t>(kDigits * stride) * sizeof(AValue));  // digits of 0
  if (!(largest <= 3.402823466e38f)) return {1.0f, 1.0f, false};
  if (largest == 0.0f) return {1.0f, 1.0f, true};
  // kMost / largest would overflow for tiny rows.
  const float up = largest < 1e-25f ? 0x1p64f : 1.0f, inverse = kMost / (largest * up);
  for (int64_t i = 0; i < k; i += kLanes) {
    const int64_t count = min(kLanes, k - i);
    const F32 y = (count == kLanes ? load<F32>(x + i) : load_partial(x + i, count)) * up * inverse;
    // Digits + 128: those of v + 0x808080 without signs.
    const I32 v = truncate(y + (y < 0.0f ? F32{} - 0.5f : F32{} + 0.5f)) + 0x808080;
    for (int64_t d = 0; d < kDigits; ++d) {
      const I8Quarter digit = to_i8(v >> static_cast<int32_t>(16 - 8 * d)) ^ static_cast<int8_t>(-128);
      const I8Quarter bytes = with_offset(digit);
      std::memcpy(to + d * stride + i, &bytes, static_cast<size_t>(count));
    }
  }
  return {largest * up / kMost, 1.0f / up, true};
}

struct Digits {
  const Product& p;
  const uint32_t* surplus;
  int64_t depth, stride;
  const AValue* rows;
  const RowScale* scales;
};

// X rows of x from `row` on, times P panels.
template <int X, int P>
inline void digit_tile(const Digits& d, int64_t row, int64_t panel) {
  constexpr int64_t kRow = P * kNr;
  const Product& p = d.p;
  const int64_t column = panel * kNr;
  int32_t sums[kDigits * X * kRow];
  float y[X * kRow];
  sums_tile<kDigits * X, P>(d.rows + row * kDigits * d.stride, d.stride, p.panels + column * d.depth, kNr * d.depth,
                            d.depth / kGroup, sums, kRow);
  for (int x = 0; x < X; ++x) {
    const RowScale& s = d.scales[row + x];
    for (int64_t v = 0; v < kRow; v += kLanes) {
      const U32 surplus = load<U32>(d.surplus + column + v);
      const auto digit = [&](int64_t i) {
        return to_f32(bit_cast<I32>(load<U32>(sums + (kDigits * x + i) * kRow + v) - surplus));
      };
      const F32 t = fma(digit(0), broadcast(65536.0f), fma(digit(1), broadcast(256.0f), digit(2)));
      store(y + x * kRow + v,
            fma(t * s.scale * s.down, load<F32>(p.scale + column + v), load<F32>(p.bias + column + v)));
    }
    if (s.is_finite) continue;
    const float* const from = p.x + (row + x) * p.x_row;
    for (int64_t j = 0; j < kRow; ++j) {
      const int8_t* const w = p.panels + (column + j / kNr * kNr) * d.depth + j % kNr * kGroup;
      float sum = 0;
      for (int64_t k = 0; k < p.args.k; ++k)
        sum += from[k] * static_cast<float>(w[k / kGroup * kNr * kGroup + k % kGroup]);
      y[x * kRow + j] = sum * p.scale[column + j] + p.bias[column + j];
    }
  }
  p.finish(row, X, column, kRow, y, kRow);
}

// X rows of x times panels [first, last), P side by side.
template <int X, int P>
inline void digit_panels(const Digits& d, int64_t row, int64_t first, int64_t last) {
  for (; first + P <= last; first += P) digit_tile<X, P>(d, row, first);
  for (; first < last; ++first) digit_tile<X, 1>(d, row, first);
}

// Rows [row, row + rows) times panels [first, last): tiles of as many sums as there are registers for.
inline void digit_block(const Digits& d, int64_t row, int64_t rows, int64_t first, int64_t last) {
  constexpr int kMostRows = kMr / kDigits, kTogether = kRegisters >= 32 ? 4 : 1;
  if (rows == 1) return digit_panels<1, kTogether>(d, row, first, last);
  if (rows == 2) return digit_panels<2, (kTogether + 1) / 2>(d, row, first, last);
  const int64_t tiles = ceil_div(rows, int64_t{kMostRows});
  for (int64_t n = first; n < last; ++n) {
    for (int64_t t = 0, r = 0; t < tiles; ++t) {
      const int64_t height = ceil_div(rows - r, tiles - t);
      if (height == 4) {
        if constexpr (kMostRows >= 4) digit_tile<4, 1>(d, row + r, n);
      } else if (height == 3) {
        if constexpr (kMostRows >= 3) digit_tile<3, 1>(d, row + r, n);
      } else if (height == 2) {
        digit_tile<2, 1>(d, row + r, n);
      } else {
        digit_tile<1, 1>(d, row + r, n);
      }
      r += height;
    }
  }
}

inline void pack_for_digits(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* bias,
                            char* block, const Executor& executor) {
  const WeightOnlyLinearOffsets o = weight_only_linear_offsets(n, k, kNr, 4);
  const int64_t panels = ceil_div(n, int64_t{kNr}), depth = round_up(k, 4);
  pad(scale, n, panels * kNr, reinterpret_cast<float*>(block + o.scale));
  pad(bias, n, panels * kNr, reinterpret_cast<float*>(block + o.bias));
  auto* const to = reinterpret_cast<int8_t*>(block + o.panels);
  auto* const surplus = reinterpret_cast<int32_t*>(block + o.surplus);
  parallel_for(executor, 0, panels, grain_of(kNr * k), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      int8_t* const panel = to + p * kNr * depth;
      const int64_t columns = min(int64_t{kNr}, n - p * kNr);
      if (columns < kNr || k < depth) std::memset(panel, 0, static_cast<size_t>(kNr * depth));
      pack_rows(weight + p * kNr * k, k, columns, panel);
      int32_t sums[kNr] = {};
      add_column_sums(panel, depth, sums);
      for (int64_t j = 0; j < kNr; ++j) surplus[p * kNr + j] = kAOffset * sums[j];
    }
  });
}

inline void run_digits(const Product& p, const uint32_t* surplus, char* workspace, const Executor& executor) {
  constexpr int64_t kRows = 48, kPanels = 8;
  const WeightOnlyLinearArgs& a = p.args;
  const int64_t stride = digit_row(a.k);
  auto* const scales = reinterpret_cast<RowScale*>(workspace);
  auto* const rows = reinterpret_cast<AValue*>(scales + a.m);
  parallel_for(executor, 0, a.m, 1 + 32768 / (a.k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      scales[r] = split(p.x + r * p.x_row, a.k, stride, rows + r * kDigits * stride);
  });
  const Digits d{p, surplus, round_up(a.k, 4), stride, rows, scales};
  const int64_t panels = ceil_div(a.n, int64_t{kNr}), groups = ceil_div(panels, kPanels);
  const int64_t blocks = ceil_div(a.m, kRows), work = kPanels * kNr * a.k * min(a.m, kRows);
  parallel_for(executor, 0, blocks * groups, grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / groups, first = task % groups * kPanels;
      const int64_t row = a.m * b / blocks, count = a.m * (b + 1) / blocks - row;
      digit_block(d, row, count, first, min(first + kPanels, panels));
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
