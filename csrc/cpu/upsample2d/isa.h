// What the ISA sources of the family define for its table.
#pragma once

#include "cpu/upsample2d/kernels.h"

namespace pk {
namespace PK_ISA {

void upsample2d_bilinear_int8(const Upsample2dArgs& args, const Executor& executor);

}  // namespace PK_ISA
}  // namespace pk
