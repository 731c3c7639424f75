// The entries of pykernels/weight_only_linear.h: a plan validates the call and picks the ISA, whose kernels then run.
#include <cstring>

#include "common/sizes.h"
#include "cpu/weight_only_linear/kernels.h"
#include "cpu/weight_only_linear/layout.h"
#include "pykernels/int8_matmul.h"

namespace pk {
namespace {

Status pick(const WeightOnlyLinearKernels** kernels) {
  Isa isa;
  PK_TRY(active_isa(&isa));
  *kernels = PK_DOT4_TABLE_OF(weight_only_linear_kernels, isa);
  return kOk;
}

Status check_weight(int64_t n, int64_t k) {
  if (k > kInt8MaxK) return {"weight: expected 131071 columns at the most"};
  if (n < 0 || k < 0 || !product_fits({n + 64, k + 64, 8})) return {"weight: the sizes are too large"};
  return kOk;
}

int64_t packed_bytes_of(int64_t n, int64_t k, const WeightOnlyLinearKernels& kernels) {
  return kWeightOnlyLinearHeaderBytes + weight_only_linear_offsets(n, k, kernels.panel, kernels.group).end;
}

Status check_packed(const WeightOnlyLinearArgs& a, const WeightOnlyLinearKernels& kernels) {
  WeightOnlyLinearHeader h;
  if (a.packed_bytes < kWeightOnlyLinearHeaderBytes)
    return {"packed: too short to be a weight of weight_only_linear_pack"};
  std::memcpy(&h, a.packed, sizeof h);
  if (std::memcmp(h.magic, kWeightOnlyLinearMagic, sizeof h.magic) != 0)
    return {"packed: expected a weight of weight_only_linear_pack, but the first bytes are others"};
  if (h.version != 1) return {"packed: packed by another version of pykernels; pack the weight again"};
  if (h.panel != kernels.panel || h.group != kernels.group)
    return {"packed: packed for another instruction set; pack the weight again"};
  if (h.k != a.k) return {"packed: its number of columns is not that of x"};
  if (h.n != a.n) return {"packed: its number of rows is not n"};
  if (h.bytes != a.packed_bytes || a.packed_bytes != packed_bytes_of(a.n, a.k, kernels))
    return {"packed: cut short or extended: its size is wrong"};
  return kOk;
}

}  // namespace

Status make_plan(const WeightOnlyLinearArgs& args, WeightOnlyLinearPlan* plan) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  PK_TRY(check_weight(args.n, args.k));
  if (args.m < 0 || !product_fits({args.m + 1, args.k + 64, 8}) || !product_fits({args.m + 1, args.n + 64, 8}) ||
      !product_fits({args.m + 1, args.n + 64, args.k + 64}))
    return {"x: the sizes are too large"};
  *plan = {};
  PK_TRY(pick(&plan->kernels));
  if (args.packed != nullptr) PK_TRY(check_packed(args, *plan->kernels));
  plan->args = args;
  plan->kernels->plan(plan);
  return kOk;
}

void run(const WeightOnlyLinearPlan& plan, void* workspace, const Executor& executor) {
  if (plan.args.m == 0 || plan.args.n == 0) return;
  plan.kernels->run(plan, static_cast<char*>(workspace), executor);
}

Status make_packing_plan(int64_t n, int64_t k, WeightOnlyLinearPackingPlan* plan) {
  *plan = {n, k, nullptr, 0};
  PK_TRY(pick(&plan->kernels));
  PK_TRY(check_weight(n, k));
  plan->packed_bytes = packed_bytes_of(n, k, *plan->kernels);
  return kOk;
}

void pack(const WeightOnlyLinearPackingPlan& plan, const int8_t* weight, const float* scale, const float* bias,
          void* packed, const Executor& executor) {
  WeightOnlyLinearHeader header{};
  header.version = 1;
  header.panel = static_cast<int32_t>(plan.kernels->panel);
  header.group = static_cast<int32_t>(plan.kernels->group);
  header.n = plan.n, header.k = plan.k, header.bytes = plan.packed_bytes;
  std::memcpy(header.magic, kWeightOnlyLinearMagic, sizeof header.magic);
  std::memset(packed, 0, kWeightOnlyLinearHeaderBytes);
  std::memcpy(packed, &header, sizeof header);
  char* const block = static_cast<char*>(packed) + kWeightOnlyLinearHeaderBytes;
  plan.kernels->pack(plan.n, plan.k, weight, scale, bias, block, executor);
}

}  // namespace pk
