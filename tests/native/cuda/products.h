// Operands of matrix products, made of normal numbers, and the products of them in double.
#pragma once

#include <type_traits>
#include <vector>

#include "cuda/numeric.cuh"
#include "test.h"

namespace pk::cuda {

template <class T>
double value(T x) {
  if constexpr (std::is_same_v<T, int8_t>) {
    return x;
  } else {
    return to_float(x);
  }
}

// int8 saturates now and then, so that the extremes take part.
template <class T>
std::vector<T> operand(size_t n, unsigned seed) {
  const auto values = test::normal(n, seed, std::is_same_v<T, int8_t> ? 90.0f : 1.0f);
  std::vector<T> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = from_float<T>(values[i]);
  return v;
}

// d (m x n) = the sums over l from `first` to `last` of a(i, l) * b(j, l), which give doubles.
template <class A, class B>
std::vector<double> product_of(int m, int n, int first, int last, A a, B b) {
  std::vector<double> d;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int l = first; l < last; ++l) sum += a(i, l) * b(j, l);
      d.push_back(sum);
    }
  }
  return d;
}
// The same of rows of K in memory.
template <class V>
std::vector<double> product_of(const V& a, const V& b, int m, int n, int k, int first, int last) {
  const auto rows = [k](const V& v) {
    return [&v, k](int i, int l) {
      return value(v[static_cast<size_t>(i) * static_cast<size_t>(k) + static_cast<size_t>(l)]);
    };
  };
  return product_of(m, n, first, last, rows(a), rows(b));
}

// |got - d| / |d| at most: integers are exact, floats err by their sums.
template <class Sum>
constexpr double kProductError = std::is_same_v<Sum, int32_t> ? 0.0 : 5e-7;

}  // namespace pk::cuda
