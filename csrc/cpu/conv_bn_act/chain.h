// What the methods offer to chains of convolutions, see chain.cpp.
#pragma once

#include "cpu/conv_bn_act/kernels.h"

namespace pk {
namespace PK_ISA {

// Runs the first of `count` plans together with those after it, each of which reads what the one before it wrote and
// is the only one to. Returns how many it ran: 0 where they make no chain, or none that pays.
int64_t run_conv_chain(const ConvPlan* plans, int64_t count, const Executor& executor);

// Does `plan` read x where it lies (depthwise.h)?
bool is_depthwise_in_place(const ConvPlan& plan);

// Rows [begin, end) of y of such a plan, the first of them to args.y. Row h of x lies at h % x_rows.
void depthwise_rows(const ConvPlan& plan, const ConvArgs& args, int64_t begin, int64_t end, int64_t x_rows);

namespace {

inline const float* weight_of(const ConvPlan& plan) {
  return reinterpret_cast<const float*>(static_cast<const char*>(plan.args.packed) + sizeof(ConvHeader));
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
