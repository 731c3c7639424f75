// What libpykernels_cuda was built for and with.
#pragma once

#include "pykernels/isa.h"

// "key=value" pairs joined by ';': archs ("80+ptx 90a": machine code for each, PTX where it says so) and nvcc's
// version.
extern "C" PK_API const char* pykernels_cuda_build();
