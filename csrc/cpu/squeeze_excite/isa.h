// What the ISA sources of the family define for its table.
#pragma once

#include "cpu/squeeze_excite/kernels.h"

namespace pk {
namespace PK_ISA {

void squeeze_excite_int8(const SqueezeExciteArgs& args, float* workspace, const Executor& executor);

}  // namespace PK_ISA
}  // namespace pk
