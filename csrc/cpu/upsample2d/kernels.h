// The family's table of kernels.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/upsample2d.h"

namespace pk {

struct Upsample2dKernels {
  void (*run)(const Upsample2dArgs& args, const Executor& executor);  // all arguments have been checked
};

PK_DECLARE_TABLES(Upsample2dKernels, upsample2d_kernels)

}  // namespace pk
