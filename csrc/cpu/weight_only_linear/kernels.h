// The family's table of kernels. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/weight_only_linear.h"

namespace pk {

// `block` is a packed block behind its header.
struct WeightOnlyLinearKernels {
  int64_t panel, group;  // columns of a panel, and adjacent rows of it: which packed form it reads
  void (*pack)(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* bias, char* block,
               const Executor& executor);
  // Sets the plan's workspace; then the product itself, of m, n > 0.
  void (*plan)(WeightOnlyLinearPlan* plan);
  void (*run)(const WeightOnlyLinearPlan& plan, char* workspace, const Executor& executor);
};

PK_DECLARE_TABLES(WeightOnlyLinearKernels, weight_only_linear_kernels)
PK_DECLARE_DOT4_TABLE(WeightOnlyLinearKernels, weight_only_linear_kernels)

}  // namespace pk
