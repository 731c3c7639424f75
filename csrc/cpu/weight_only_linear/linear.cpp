// The family's table for this ISA: tiles of float sums (tiles.h), or, where four bytes are multiplied at once, exact
// products of x in three digits (digits.h). Shares are cut by the sizes alone, so the bits don't depend on the number
// of threads.
#include "cpu/weight_only_linear/digits.h"
#include "cpu/weight_only_linear/kernels.h"
#include "cpu/weight_only_linear/tiles.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int64_t kWidth = kDot4 ? kNr : kPanel, kAdjacent = kDot4 ? 4 : 1;

WeightOnlyLinearOffsets offsets_of(int64_t n, int64_t k) { return weight_only_linear_offsets(n, k, kWidth, kAdjacent); }

void pack_weight(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* bias, char* block,
                 const Executor& executor) {
  (kDot4 ? pack_for_digits : pack_tiles)(n, k, weight, scale, bias, block, executor);
}

// Is the weight to be read as it lies?
bool is_unpacked(const WeightOnlyLinearArgs& a) { return !a.packed && a.m <= kUnpackedRows; }

void complete(WeightOnlyLinearPlan* plan) {
  const WeightOnlyLinearArgs& a = plan->args;
  Arena arena;
  const bool as_it_lies = is_unpacked(a);
  plan->x_at = arena.take_if<float>(a.dtype != DType::f32, a.m * a.k);
  const WeightOnlyLinearOffsets rest = weight_only_linear_offsets(a.n % kPanel, a.k, kPanel, 1);
  plan->packed_at = arena.take_if<char>(!a.packed, as_it_lies ? rest.end : offsets_of(a.n, a.k).end);
  plan->digits_at = arena.take_if<char>(kDot4 && !as_it_lies, digits_bytes(a.m, a.k));
  plan->workspace_bytes = arena.used;
}

void run_product(const WeightOnlyLinearPlan& plan, char* workspace, const Executor& executor) {
  const WeightOnlyLinearArgs& a = plan.args;
  Product p{a, static_cast<const float*>(a.x), a.x_stride, nullptr, nullptr, nullptr};
  if (float* const wide = part<float>(workspace, plan.x_at)) {
    parallel_for(executor, 0, a.m, 1 + 32768 / (a.k + 1), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) read_row(a.x, a.dtype, r * a.x_stride, a.k, wide + r * a.k);
    });
    p.x = wide, p.x_row = a.k;
  }
  char* const own = part<char>(workspace, plan.packed_at);
  if (is_unpacked(a)) return unpacked(p, own, executor);
  if (own) pack_weight(a.n, a.k, a.weight, a.scale, a.bias, own, executor);
  const char* const packed = own ? own : static_cast<const char*>(a.packed) + kWeightOnlyLinearHeaderBytes;
  p.set_packed(packed, offsets_of(a.n, a.k));
  if (kDot4) {
    const auto* const surplus = reinterpret_cast<const uint32_t*>(packed + offsets_of(a.n, a.k).surplus);
    run_digits(p, surplus, part<char>(workspace, plan.digits_at), executor);
  } else {
    run_tiles(p, executor);
  }
}

}  // namespace

extern const WeightOnlyLinearKernels weight_only_linear_kernels;
const WeightOnlyLinearKernels weight_only_linear_kernels = {kWidth, kAdjacent, pack_weight, complete, run_product};

}  // namespace PK_ISA
}  // namespace pk
