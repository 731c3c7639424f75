// The plans of batch norm: they check, and divide the tensors among blocks. Each pass's run is beside its kernels.
#include "cuda/batch_norm_act/choose.h"
#include "cuda/device.h"

namespace pk::cuda {
namespace {

using namespace bn;  // NOLINT

// Checks what all have, and divides the tensor for each of `blocks` blocks of a multiprocessor.
template <int kCount>
Status divide(const BatchNormShape& s, DType dtype, const int (&blocks)[kCount], Slabs* const (&slabs)[kCount]) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 4096;
  if (s.n < 0 || s.c < 0 || s.hw < 0) return {"shape: expected sizes that are not negative"};
  if (s.c >= kMost || s.hw >= kMost || s.n >= kMost) return {"shape: expected n, c and h * w below 2^31 - 4096"};
  if (s.c && s.hw && s.n && s.n > (int64_t{1} << 62) / s.c / s.hw) return {"shape: expected less than 2^62 elements"};
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) {
    return {"dtype: expected f32, f16 or bf16"};
  }
  Device device;
  PK_TRY(current_device(&device));
  for (int i = 0; i < kCount; ++i) *slabs[i] = choose_slabs(s, int64_t{device.multiprocessors} * blocks[i]);
  return kOk;
}

// Two floats of each channel and slab.
int64_t partial_bytes(const BatchNormShape& s, const Slabs& slabs) {
  return slabs.slabs * 2 * s.c * static_cast<int64_t>(sizeof(float));
}

int64_t mask_bytes(const BatchNormActArgs& a, const Slabs& slabs) {
  return is_signed(a.activation) ? a.shape.n * (a.shape.channels_last ? a.shape.hw : a.shape.c) * slabs.groups : 0;
}

}  // namespace

Status make_plan(const BatchNormShape& shape, DType dtype, BatchNormStatisticsPlan* plan) {
  *plan = {shape, dtype, 0, {}};
  const Status status = divide(shape, dtype, {kMomentsBlocks}, {&plan->slabs});
  plan->workspace_bytes = partial_bytes(shape, plan->slabs);
  return status;
}

Status make_plan(const BatchNormActArgs& args, BatchNormActPlan* plan) {
  *plan = {args, 0, {}};
  const Status status = divide(args.shape, args.dtype, {kPointwiseBlocks}, {&plan->slabs});
  if (args.residual) plan->mask_bytes = mask_bytes(args, plan->slabs);
  return status;
}

Status make_plan(const BatchNormActBackwardArgs& args, BatchNormActBackwardPlan* plan) {
  const BatchNormActArgs& f = args.forward;
  *plan = {args, 0, 0, {}, {}};
  PK_TRY(divide(f.shape, f.dtype, {kSumsBlocks, kPointwiseBlocks}, {&plan->sums, &plan->pointwise}));
  plan->workspace_bytes = partial_bytes(f.shape, plan->sums);
  plan->mask_bytes = mask_bytes(f, plan->sums);
  if (plan->sums.slabs == 0) return kOk;
  if (f.mask && !is_signed(f.activation)) return {"mask: expected null for this activation"};
  if (!f.mask && is_signed(f.activation) && f.residual) return {"mask: expected a pointer, got null"};
  return kOk;
}

}  // namespace pk::cuda
