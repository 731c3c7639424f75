// What an ISA offers for squeeze-and-excitation.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/squeeze_excite.h"

namespace pk {

struct SqueezeExciteKernels {
  void (*run)(const SqueezeExciteArgs& args, float* workspace, const Executor& executor);  // all has been checked
};

PK_DECLARE_TABLES(SqueezeExciteKernels, squeeze_excite_kernels)

}  // namespace pk
