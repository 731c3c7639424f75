// Windows in one dimension. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/elements.h"
#include "pykernels/pool2d.h"

namespace pk {
namespace PK_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Taps [begin, end) of the window at `start` lie inside [0, size); `counted` is what an average counts of it.
struct Window {
  int64_t start, begin, end, counted;
};
inline Window window_at(int64_t i, int64_t taps, int64_t stride, int64_t pad, int64_t dilation, int64_t size,
                        bool include_pad) {
  const int64_t start = i * stride - pad;
  const int64_t begin = start < 0 ? least((-start + dilation - 1) / dilation, taps) : 0;
  const int64_t end = start < size ? least((size - 1 - start) / dilation + 1, taps) : 0;
  const int64_t inside = most(end - begin, 0);
  return {start, begin, most(begin, end), include_pad ? least(start + taps, size + pad) - start : inside};
}
inline Window row_window(const Pool2dArgs& a, int64_t i) {
  return window_at(i, a.r, a.stride_h, a.pad_h, a.dilation_h, a.h, a.count_include_pad);
}
inline Window column_window(const Pool2dArgs& a, int64_t j) {
  return window_at(j, a.s, a.stride_w, a.pad_w, a.dilation_w, a.w, a.count_include_pad);
}

template <PoolKind kKind>
inline F32 nothing() {
  return kKind == PoolKind::max ? broadcast(-__builtin_inff()) : F32{};
}

// A NaN on either side comes back: `max` keeps one in its second argument, the mask makes one of one in the first.
template <PoolKind kKind>
inline F32 combine(F32 so_far, F32 v) {
  if constexpr (kKind == PoolKind::average) return so_far + v;
  return bit_cast<F32>(bit_cast<I32>(max(v, so_far)) | (v != v));
}

// Calls body<kind, element type>().
template <class Body>
void by_type(const Pool2dPlan& plan, const Body& body) {
  const bool f32 = plan.args.dtype == DType::f32;
  if (plan.args.kind == PoolKind::max) {
    f32 ? body.template operator()<PoolKind::max, float>() : body.template operator()<PoolKind::max, bf16_t>();
  } else {
    f32 ? body.template operator()<PoolKind::average, float>() : body.template operator()<PoolKind::average, bf16_t>();
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
