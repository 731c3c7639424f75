// The family's table of kernels.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/pool2d.h"

namespace pk {

// Each takes a plan whose kind is its own; see the files for the layouts that they want.
struct Pool2dKernels {
  void (*channels)(const Pool2dPlan& plan, const Executor& executor);  // vectors of channels, which may lie apart
  void (*planes)(const Pool2dPlan& plan, const Executor& executor);    // vectors of adjacent columns
  void (*mean_channels)(const Pool2dPlan& plan, const Executor& executor);
  void (*mean_planes)(const Pool2dPlan& plan, const Executor& executor);
  void (*int8)(const Pool2dPlan& plan, const Executor& executor);  // of any layout
};

// `planes` holds this many columns at a time; its window and its stride are less than half of it.
inline constexpr int64_t kPoolSpan = 1024;

PK_DECLARE_TABLES(Pool2dKernels, pool2d_kernels)

}  // namespace pk
