// What an ISA offers for squeeze-and-excitation.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/squeeze_excite.h"

namespace pk {

struct SqueezeExciteKernels {
  void (*run)(const SqueezeExciteArgs& args, float* workspace, const Executor& executor);  // all has been checked
};

namespace {

// Maps whose channels are adjacent are summed in strips of rows: in the cache while one block of channels after the
// other is summed, and work for several threads. The shape alone decides, so that threads change no sum.
struct Strips {
  int64_t rows, count;  // the last one may have fewer rows

  explicit Strips(const SqueezeExciteArgs& a) {
    constexpr int64_t kElements = 16384, kMost = 64;
    const int64_t least = (a.h + kMost - 1) / kMost, row = a.w * a.c;
    rows = row > 0 && kElements / row > least ? kElements / row : least;
    count = (a.h + rows - 1) / rows;
  }
};

}  // namespace

PK_DECLARE_TABLES(SqueezeExciteKernels, squeeze_excite_kernels)

}  // namespace pk
