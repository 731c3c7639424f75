// Elements of an image in another order: y (n, c', h', w') of x (n, c, h, w), which may be several tensors, joined
// along their channels.
//
//   channels  y[j * k + g, h, w] = x[g * (c / k) + j, h, w]              channel_shuffle, k groups
//   up        y[c, h * k + i, w * k + j] = x[(c * k + i) * k + j, h, w]  pixel_shuffle
//   down      y[(c * k + i) * k + j, h, w] = x[c, h * k + i, w * k + j]  pixel_unshuffle
//
// It computes nothing: it weaves streams of adjacent elements into one, or unravels one into them.
#pragma once

#include <cstdint>

#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

enum class ShuffleKind : int32_t { channels, up, down };
inline constexpr int kShuffleKinds = 3;

// The most streams that are woven at once: groups, or the square of a factor.
inline constexpr int64_t kMostStreams = 64;

struct ShuffleArgs {
  ShuffleKind kind = ShuffleKind::channels;
  int64_t n = 0, c = 0, h = 0, w = 0;  // of x, all together
  int64_t k = 1;
  int64_t element_bytes = 4;  // 1, 2 or 4
  int64_t pieces = 1;         // of x: 1, or k for channels
  const void* x[kMostStreams] = {};
  int64_t x_stride[kMostStreams][4] = {};  // (n, c, h, w) of each; channels of all adjacent, and of y, or columns
  void* y = nullptr;                       // shares nothing with x
  int64_t y_stride[4] = {};
};

struct ShuffleKernels;

struct ShufflePlan {
  ShuffleArgs args;
  const ShuffleKernels* kernels = nullptr;
  bool by_channels = false;  // channels are adjacent
};

PK_API Status make_plan(const ShuffleArgs& args, ShufflePlan* plan);
PK_API void run(const ShufflePlan& plan, const Executor& executor);

}  // namespace pk
