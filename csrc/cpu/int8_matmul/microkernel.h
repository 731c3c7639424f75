// sum[r][0..kNr) += sum over groups of a[r] . b: rows x kNr accumulators in registers over one block of k.
#pragma once

#include "cpu/int8_matmul/tiling.h"

namespace pk {
namespace PK_ISA {
namespace {

// One vector of b at group g, column vector v, of a panel as packed (bytes) or widened before (BValue = int16_t).
template <class BValue>
inline auto load_b(const BValue* b, int64_t g, int v) {
  const BValue* at = b + (g * kNr + v * kLanes) * kGroup;
  if constexpr (kDot4) {
    return load<I8>(at);
  } else if constexpr (sizeof(BValue) == 2) {
    return load<I16>(at);
  } else {
    return widen(load<I8Half>(at));
  }
}

inline I32 dot(I32 sum, Repeated a, I8 b) { return dot4(sum, a, b); }
inline I32 dot(I32 sum, I32 a, I16 b) { return dot2(sum, bit_cast<I16>(a), b); }

// sum[r] += the products of `groups` groups of row(r) and the first kVectors of b; ahead(g) fetches what is read later.
template <int kRows, int kVectors, class BValue, class RowOf, class Ahead>
[[gnu::always_inline]] inline void add_products(I32 (&sum)[kRows][kVectors], const RowOf& row, const BValue* b,
                                                int64_t groups, const Ahead& ahead) {
  for (int64_t g = 0; g < groups; ++g) {
    ahead(g);
    const auto b0 = load_b(b, g, 0), b1 = load_b(b, g, kVectors - 1);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t group;
      std::memcpy(&group, row(r) + g * kGroup, sizeof group);
      const auto ar = repeated(group);
      sum[r][0] = dot(sum[r][0], ar, b0);
      if constexpr (kVectors == 2) sum[r][1] = dot(sum[r][1], ar, b1);
    }
  }
}
template <int kRows, int kVectors, class BValue, class RowOf>
[[gnu::always_inline]] inline void add_products(I32 (&sum)[kRows][kVectors], const RowOf& row, const BValue* b,
                                                int64_t groups) {
  add_products<kRows>(sum, row, b, groups, [](int64_t) {});
}

static_assert(kNrVectors == 2);
static_assert(kGroup * sizeof(AValue) == 4);

// A packed panel to 16 bits, for tiles that read it many times.
inline void widen_panel(const int8_t* b, int64_t depth, int16_t* to) {
  for (int64_t i = 0; i < depth * kNr; i += 2 * kLanes) store(to + i, widen(load<I8Half>(b + i)));
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
