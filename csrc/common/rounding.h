// Rounding up, for the CPU and for both sides of CUDA. Templates, in an unnamed namespace: nothing here has a symbol
// that the objects of two ISAs could share.
#pragma once

#include <type_traits>

#ifdef __CUDACC__
#define PK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PK_HOST_DEVICE inline
#endif

namespace pk {
namespace {

// a / b and a to a multiple of b, rounded up, in a's type. a is at least 0, b at least 1.
template <class T>
PK_HOST_DEVICE constexpr T ceil_div(T a, std::type_identity_t<T> b) {
  return (a + b - 1) / b;
}
template <class T>
PK_HOST_DEVICE constexpr T round_up(T a, std::type_identity_t<T> b) {
  return ceil_div(a, b) * b;
}

}  // namespace
}  // namespace pk
