// What the ISA sources of the family call in each other.
#pragma once

#include "cpu/lstm/kernels.h"

namespace pk {
namespace PK_ISA {

void lstm_pack_weights(const LstmShape& shape, const void* const* weights, void* packed, const Executor& executor);
int64_t lstm_forward_bytes(const LstmForward& call, int threads);
void lstm_forward_pass(const LstmForward& call, const Executor& executor);
int64_t lstm_backward_bytes(const LstmBackward& call, int threads);
void lstm_backward_pass(const LstmBackward& call, const Executor& executor);

}  // namespace PK_ISA
}  // namespace pk
