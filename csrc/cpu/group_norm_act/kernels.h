// The family's table of kernels, and the arithmetic of moments. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/group_norm_act.h"

namespace pk {
namespace {

// Of some numbers: their count, their mean, and the sum of the squares of their deviations from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(const Moments& other) {
    if (other.count == 0) return;
    const double all = count + other.count, between = other.mean - mean, share = other.count / all;
    mean += between * share;
    squares += other.squares + between * between * count * share;
    count = all;
  }
};

// Of `parts` sets of `count` numbers each, whose moments get(i) tells but for the count.
template <class Get>
Moments merged(int64_t parts, double count, const Get& get) {
  if (parts == 0) return {};
  Moments all;
  for (int64_t i = 0; i < parts; ++i) all.mean += get(i).mean;
  all.mean /= static_cast<double>(parts);
  for (int64_t i = 0; i < parts; ++i) {
    const Moments m = get(i);
    all.squares += m.squares + (m.mean - all.mean) * (m.mean - all.mean) * count;
  }
  all.count = static_cast<double>(parts) * count;
  return all;
}

}  // namespace

// Moments of one channel's pixels as float32, whose mean is shift + mean: neither loses what the other has.
struct ChannelMoments {
  float *shift, *mean, *squares;  // an array of channels each
};

struct GroupNormActKernels {
  // Of pixels [0, count), `step` elements apart, of `channels` adjacent channels.
  void (*channels)(DType dtype, const void* x, int64_t step, int64_t count, int64_t channels, ChannelMoments to);
  // Of `count` adjacent elements.
  void (*plane)(DType dtype, const void* x, int64_t count, double* mean, double* squares);
};

PK_DECLARE_TABLES(GroupNormActKernels, group_norm_act_kernels)

}  // namespace pk
