// What the ISA sources of the family call in each other.
#pragma once

#include "cpu/lstm/kernels.h"

namespace pk {
namespace PK_ISA {

void lstm_pack_weights(const LstmShape& shape, const void* const* weights, void* packed, const Executor& executor);
void lstm_plan_forward(LstmForwardPlan* plan);
void lstm_forward(const LstmForwardPlan& plan, void* workspace);
void lstm_plan_backward(LstmBackwardPlan* plan);
void lstm_backward(const LstmBackwardPlan& plan, void* workspace);

}  // namespace PK_ISA
}  // namespace pk
