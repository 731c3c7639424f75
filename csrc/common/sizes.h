// Bounds on sizes, for the validation in api.cpp. With a size within them no later arithmetic can overflow.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace pk {
namespace {

// More bytes, elements or operations than any call can have, and 2^7 below the end of int64: room for the roundings and
// the small factors that a caller of product_fits leaves out.
constexpr int64_t kLargestProduct = int64_t{1} << 56;

// The sizes are at least 0.
constexpr bool product_fits(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product) || product > kLargestProduct) return false;
  }
  return true;
}

}  // namespace
}  // namespace pk
