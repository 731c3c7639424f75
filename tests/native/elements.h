// Memory of numbers of any element type, as the tests fill and read it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pykernels/dtype.h"

namespace pk::test {

using Doubles = std::vector<double>;
#if defined(__aarch64__)
using Half = __fp16;  // g++ 12 has no _Float16 there
#else
using Half = _Float16;
#endif

// To 16 bits, to nearest even, and back.
inline uint16_t narrow(float x, DType dtype) {
  if (dtype == DType::f16) return std::bit_cast<uint16_t>(static_cast<Half>(x));
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float widen(uint16_t x, DType dtype) {
  if (dtype == DType::f16) return static_cast<float>(std::bit_cast<Half>(x));
  return std::bit_cast<float>(uint32_t{x} << 16);
}
// To nearest even, saturated.
inline int8_t to_i8(float x) { return static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(x, -128.0f), 127.0f))); }

// `n` elements, not a byte more. Bytes: std::vector<char>, or simt::Guarded<char> with an unmapped page behind it.
template <class Bytes>
class Elements {
 public:
  // first: how many elements behind an aligned address they begin.
  Elements(DType dtype, size_t n, size_t first = 0)
      : dtype_(dtype), first_(first), bytes_((n + first) * size_of(dtype)) {}
  Elements(DType dtype, const std::vector<float>& values, size_t first = 0) : Elements(dtype, values.size(), first) {
    for (size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }
  void* data() { return bytes_.data() + first_ * size_of(dtype_); }
  size_t size() const { return bytes() / size_of(dtype_); }
  size_t bytes() const { return bytes_.size() - first_ * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  float operator[](size_t i) const {
    if (dtype_ == DType::f32) return load<float>(i);
    if (dtype_ == DType::i8) return load<int8_t>(i);
    return widen(load<uint16_t>(i), dtype_);
  }
  void set(size_t i, float x) {
    if (dtype_ == DType::f32)
      store(i, x);
    else if (dtype_ == DType::i8)
      store(i, to_i8(x));
    else
      store(i, narrow(x, dtype_));
  }
  std::vector<float> floats() const {
    std::vector<float> v(size());
    for (size_t i = 0; i < v.size(); ++i) v[i] = (*this)[i];
    return v;
  }

 private:
  template <class T>
  T load(size_t i) const {
    T x;
    std::memcpy(&x, bytes_.data() + (first_ + i) * sizeof x, sizeof x);
    return x;
  }
  template <class T>
  void store(size_t i, T x) {
    std::memcpy(bytes_.data() + (first_ + i) * sizeof x, &x, sizeof x);
  }

  DType dtype_;
  size_t first_;
  Bytes bytes_;
};

}  // namespace pk::test
