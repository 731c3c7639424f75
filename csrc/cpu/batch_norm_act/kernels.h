// What an ISA offers for batch norm + activation.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/batch_norm_act.h"

namespace pk {

struct BatchNormActKernels {
  void (*run)(const BatchNormActArgs& args, const Executor& executor);  // all arguments have been checked
};

PK_DECLARE_TABLES(BatchNormActKernels, batch_norm_act_kernels)

}  // namespace pk
