// The functions that the ISA sources of the family call in each other.
#pragma once

#include "cpu/lstm/kernels.h"

namespace pk {
namespace PK_ISA {

void lstm_pack_weights(const LstmShape& shape, const void* const* weights, void* packed, const Executor& executor);
void lstm_pack_int8(const LstmShape& shape, const Int8LstmWeights* weights, void* packed, const Executor& executor);
void lstm_plan_forward(LstmForwardPlan* plan, int threads);
void lstm_forward(const LstmForwardPlan& plan, void* workspace, const Executor& executor);
void lstm_plan_backward(LstmBackwardPlan* plan, int threads);
void lstm_backward(const LstmBackwardPlan& plan, void* workspace, const Executor& executor);

}  // namespace PK_ISA
}  // namespace pk
