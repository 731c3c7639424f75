// The family's table for this ISA.
#include "cpu/lstm/isa.h"

namespace pk {
namespace PK_ISA {

extern const LstmKernels lstm_kernels;
const LstmKernels lstm_kernels = {PK_LANES,     lstm_pack_weights,  lstm_pack_int8, lstm_plan_forward,
                                  lstm_forward, lstm_plan_backward, lstm_backward};

}  // namespace PK_ISA
}  // namespace pk
