// The ISA's table.
#include "cpu/conv_bn_act/kernels.h"

namespace pk {
namespace PK_ISA {

extern const ConvMethod conv_direct, conv_narrow, conv_merged, conv_winograd4, conv_winograd2;

extern const ConvKernels conv_kernels;
const ConvKernels conv_kernels = {PK_LANES,
                                  {&conv_direct, &conv_narrow, &conv_merged, &conv_winograd4, &conv_winograd2}};

}  // namespace PK_ISA
}  // namespace pk
