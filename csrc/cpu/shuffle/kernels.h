// The family's table of kernels. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/shuffle.h"

namespace pk {

// `streams` streams of `count` adjacent elements, and one in which these stand in turn; `times` of each, whose steps
// are in bytes.
struct Weave {
  int64_t bytes, streams, count, times;  // bytes of an element
  char* stream[kMostStreams];
  int64_t step[kMostStreams];
  char* whole;
  int64_t whole_step;
};

struct ShuffleKernels {
  void (*weave)(const Weave& call);    // whole[i * streams + s] = stream[s][i]
  void (*unravel)(const Weave& call);  // stream[s][i] = whole[i * streams + s]
};

PK_DECLARE_TABLES(ShuffleKernels, shuffle_kernels)

}  // namespace pk
