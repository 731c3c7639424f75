// Winograd's transforms F(4 x 4, 3 x 3) and F(2 x 2, 3 x 3), in one dimension, and how tiles lie (winograd.cpp has the
// formula).
#pragma once

#include "common/rounding.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int kTaps = 9;

// The transforms of one dimension, on vectors: B^T d, G g and A^T m.
struct F4 {
  static constexpr int kOut = 4, kIn = 6;
  static constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;  // the points are 0, +-kA, +-kB

  static inline void input(const F32* d, F32* u) {
    const F32 even_a = d[4] - 2.0f * d[2], odd_a = d[3] - 2.0f * d[1];
    const F32 even_b = d[4] - 0.5f * d[2], odd_b = d[3] - 0.5f * d[1];
    u[0] = d[0] + (d[4] - 2.5f * d[2]);
    u[1] = even_a + kA * odd_a;
    u[2] = even_a - kA * odd_a;
    u[3] = even_b + kB * odd_b;
    u[4] = even_b - kB * odd_b;
    u[5] = d[1] + (d[5] - 2.5f * d[3]);
  }
  static inline void weight(const F32* g, F32* w) {
    const F32 even_a = g[0] + 0.5f * g[2], even_b = g[0] + 2.0f * g[2];
    w[0] = g[0];
    w[1] = (even_a + kA * g[1]) * (-2.0f / 3.0f);
    w[2] = (even_a - kA * g[1]) * (-2.0f / 3.0f);
    w[3] = (even_b + kB * g[1]) * (1.0f / 6.0f);
    w[4] = (even_b - kB * g[1]) * (1.0f / 6.0f);
    w[5] = g[2];
  }
  // No product that an addition may follow is left to the compiler: which of them it would fuse depends on the caller,
  // and so would the bits.
  static inline void output(const F32* m, F32* y) {
    const F32 even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const F32 even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = fma(broadcast(kA), fma(broadcast(2.0f), odd_b, odd_a), F32{});
    y[2] = fma(broadcast(0.5f), even_a, even_b + even_b);
    y[3] = fma(broadcast(0.5f * kA), fma(broadcast(8.0f), odd_b, odd_a), m[5]);
  }
};

struct F2 {
  static constexpr int kOut = 2, kIn = 4;

  static inline void input(const F32* d, F32* u) {
    u[0] = d[0] - d[2];
    u[1] = d[1] + d[2];
    u[2] = d[2] - d[1];
    u[3] = d[3] - d[1];
  }
  static inline void weight(const F32* g, F32* w) {
    const F32 even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    w[0] = g[0];
    w[1] = even + odd;
    w[2] = even - odd;
    w[3] = g[2];
  }
  static inline void output(const F32* m, F32* y) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[1] - m[2] + m[3];
  }
};

template <class F>
inline constexpr int kPositions = F::kIn * F::kIn;

// What shape and ISA alone decide. Panels are counted through all groups.
struct Form {
  int64_t groups;
  int64_t c, k;    // of one group
  int64_t row;     // of u: channels of a tile at one position, whole vectors
  int64_t panels;  // of one group
  int64_t k_padded;

  explicit Form(const ConvShape& shape)
      : groups(shape.groups),
        c(shape.c / groups),
        k(shape.k / groups),
        row(round_up(c, kLanes)),
        panels(ceil_div(k, kPanel)),
        k_padded(round_up(k, kLanes)) {}

  int64_t padded_channel(int64_t panel) const { return panel / panels * k_padded + panel % panels * kPanel; }
  int64_t first_channel(int64_t panel) const { return panel / panels * k + panel % panels * kPanel; }
  int64_t panel_width(int64_t panel) const { return min(kPanel, k_padded - panel % panels * kPanel); }
  int64_t channels(int64_t panel) const { return min(kPanel, k - panel % panels * kPanel); }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
