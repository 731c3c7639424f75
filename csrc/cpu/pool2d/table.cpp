// The family's table for this ISA.
#include "cpu/pool2d/isa.h"

namespace pk {
namespace PK_ISA {

extern const Pool2dKernels pool2d_kernels;
const Pool2dKernels pool2d_kernels = {pool2d_channels, pool2d_planes, pool2d_mean_channels, pool2d_mean_planes,
                                      pool2d_int8};

}  // namespace PK_ISA
}  // namespace pk
