// Activations that are a pair of bounds. They may come after the multiplication by the grid's inverse as well, because
// rounding keeps order, and so become part of the saturation. Internal linkage: ISA sources include it.
#pragma once

#include "common/activation.h"
#include "cpu/bytes.h"

namespace pk {
namespace PK_ISA {
namespace {

inline bool is_bounds(Activation activation) {
  return activation == Activation::none || activation == Activation::relu || activation == Activation::relu6;
}

// The rounding of act(t) * inverse, where the activation is_bounds; else of what is given.
inline Rounding rounding_within(int32_t zero_point, Activation activation, F32 inverse) {
  Rounding rounding(zero_point);
  if (!is_bounds(activation) || activation == Activation::none) return rounding;
  rounding.low = max(rounding.low, F32{});
  if (activation == Activation::relu6) rounding.high = min(rounding.high, broadcast(6.0f) * inverse);
  return rounding;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
