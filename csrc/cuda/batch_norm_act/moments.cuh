// Count, mean and sum of squared deviations of a set of numbers, and how two sets are joined (Chan, Golub, LeVeque).
#pragma once

#include "cuda/platform.cuh"

namespace pk::cuda::bn {

struct Moments {
  float n, mean, m2;

  PK_DEVICE float first() const { return mean; }
  PK_DEVICE float second() const { return m2; }
  PK_DEVICE void add(const Moments& other) {
    const float both = n + other.n;
    if (both == 0.0f) return;
    const float share = other.n / both, difference = other.mean - mean;
    mean = fmaf(difference, share, mean);
    m2 = m2 + other.m2 + difference * difference * (n * share);
    n = both;
  }
};

// The moments of n numbers from the sums of their differences to `anchor`, one of them, and of the squares of these.
//
// Why not a running mean: this needs three operations a number instead of five, and rounds relative to the distance
// from the anchor, not to the mean. It cancels only if the anchor is an outlier; but then its own square is a share of
// at least (n - 1) / n of m2's, so the relative error stays below n roundings.
PK_DEVICE Moments moments_around(float anchor, float n, float sum, float squares) {
  if (n == 0.0f) return {0.0f, 0.0f, 0.0f};
  const float shift = sum / n, m2 = squares - sum * shift;
  return {n, anchor + shift, m2 < 0.0f ? 0.0f : m2};
}

}  // namespace pk::cuda::bn
