// The int8 entry points: validation and the plan, then the table of the ISA in force.
#include <cstring>

#include "common/int8_checks.h"
#include "cpu/int8_matmul/choose.h"

namespace pk {
namespace {

Status kernels_in_force(const Int8Kernels** kernels) {
  Isa isa;
  PK_TRY(active_isa(&isa));
  *kernels = PK_DOT4_TABLE_OF(int8_kernels, isa);
  return kOk;
}

// The packed form's size, of k and n that have been checked.
int64_t packed_size(int64_t k, int64_t n) {
  return static_cast<int64_t>(sizeof(PackedHeader)) + packed_body_bytes(k, n);
}

Status check_packed(const Int8Kernels& kernels, const Int8MatmulArgs& p) {
  PackedHeader header;
  if (p.packed_bytes < static_cast<int64_t>(sizeof header)) return {"packed: too short to be a weight of int8_pack"};
  std::memcpy(&header, p.packed, sizeof header);
  if (std::memcmp(header.magic, kPackedMagic, sizeof header.magic) != 0) {
    return {"packed: no weight of int8_pack: its first bytes are others"};
  }
  if (header.version != kPackedVersion) return {"packed: made by another version of pykernels; pack again"};
  if (header.layout != kernels.layout) return {"packed: made for another instruction set; pack again on this one"};
  if (header.k != p.k) return {"packed: its number of rows is not a's number of columns"};
  if (header.n != p.n) return {"packed: its number of columns is not n"};
  if (p.packed_bytes != packed_size(p.k, p.n)) return {"packed: cut short or extended: its size is wrong"};
  return kOk;
}

Status check(const Int8Kernels& kernels, const Int8MatmulArgs& p) {
  if (p.a_dtype == DType::i32 || p.a_dtype == DType::f16) return {"a: expected int8, float32 or bfloat16"};
  if (p.out_dtype == DType::f16) return {"out_dtype: the CPU kernels have no float16"};
  PK_TRY(check_matmul(p));
  if (p.a_zero_point != nullptr) {
    for (int64_t i = 0; i < (p.a_zero_point_stride == 0 ? (p.m > 0 ? 1 : 0) : p.m); ++i) {
      const int32_t z = p.a_zero_point[i * p.a_zero_point_stride];
      if (z < -128 || z > 127) return {"a_zero_point: expected values in [-128, 127]"};
    }
  }
  return p.packed != nullptr ? check_packed(kernels, p) : kOk;
}

}  // namespace

Status make_plan(const Int8MatmulArgs& args, int threads, Int8MatmulPlan* plan) {
  const Int8Kernels* kernels;
  PK_TRY(kernels_in_force(&kernels));
  PK_TRY(check(*kernels, args));
  fill_plan(args, *kernels, threads, plan);
  return kOk;
}

void run(const Int8MatmulPlan& plan, void* workspace, const Executor& executor) {
  if (plan.args.m == 0 || plan.args.n == 0) return;
  plan.kernels->matmul(plan, static_cast<char*>(workspace), executor);
}

Status make_packing_plan(int64_t k, int64_t n, Int8PackingPlan* plan) {
  *plan = {k, n, nullptr, 0};
  PK_TRY(kernels_in_force(&plan->kernels));
  PK_TRY(check_b(k, n));
  plan->packed_bytes = packed_size(k, n);
  return kOk;
}

void pack(const Int8PackingPlan& plan, const int8_t* b, int64_t stride_k, int64_t stride_n, void* packed,
          const Executor& executor) {
  PackedHeader header{{}, kPackedVersion, plan.kernels->layout, plan.k, plan.n, {}};
  std::memcpy(header.magic, kPackedMagic, sizeof header.magic);
  std::memcpy(packed, &header, sizeof header);
  plan.kernels->pack(b, plan.k, plan.n, stride_k, stride_n, static_cast<char*>(packed) + sizeof header, executor);
}

Status make_plan(const QuantizeInt8Args& args, QuantizeInt8Plan* plan) {
  Isa isa;
  PK_TRY(active_isa(&isa));
  if (args.x_dtype != DType::f32 && args.x_dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  PK_TRY(check_quantize(args));
  *plan = {args, PK_DOT4_TABLE_OF(quantize_kernels, isa)};
  return kOk;
}

void run(const QuantizeInt8Plan& plan, const Executor& executor) { plan.kernels->quantize(plan.args, executor); }

}  // namespace pk
