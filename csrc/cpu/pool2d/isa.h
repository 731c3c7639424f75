// What the ISA sources of the family define for its table.
#pragma once

#include "cpu/pool2d/kernels.h"

namespace pk {
namespace PK_ISA {

void pool2d_channels(const Pool2dPlan& plan, const Executor& executor);
void pool2d_planes(const Pool2dPlan& plan, const Executor& executor);
void pool2d_mean_channels(const Pool2dPlan& plan, const Executor& executor);
void pool2d_mean_planes(const Pool2dPlan& plan, const Executor& executor);
void pool2d_int8(const Pool2dPlan& plan, const Executor& executor);

}  // namespace PK_ISA
}  // namespace pk
