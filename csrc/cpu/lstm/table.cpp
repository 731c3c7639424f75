// The family's table for this ISA.
#include "cpu/lstm/isa.h"

namespace pk {
namespace PK_ISA {

extern const LstmKernels lstm_kernels;
const LstmKernels lstm_kernels = {PK_LANES,          lstm_pack_weights,   lstm_forward_bytes,
                                  lstm_forward_pass, lstm_backward_bytes, lstm_backward_pass};

}  // namespace PK_ISA
}  // namespace pk
