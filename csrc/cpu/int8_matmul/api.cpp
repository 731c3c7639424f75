// The int8 entry points: validation and the plan, then the table of the ISA in force.
#include <cstring>

#include "common/sizes.h"
#include "cpu/int8_matmul/choose.h"

namespace pk {
namespace {

Status kernels_in_force(const Int8Kernels** kernels) {
  Isa isa;
  if (Status s = active_isa(&isa); !s) return s;
  *kernels = PK_VNNI_TABLE_OF(int8_kernels, isa);
  return kOk;
}

// The packed form's size, of k and n that have been checked.
int64_t packed_size(int64_t k, int64_t n) {
  return static_cast<int64_t>(sizeof(PackedHeader)) + packed_body_bytes(k, n);
}

Status check_b(int64_t k, int64_t n) {
  if (k < 0 || n < 0) return {"b: expected sizes of at least 0"};
  if (k > kInt8MaxK) return {"b: expected at most 131071 rows, beyond which int32 sums may wrap"};
  if (n > kInt8MaxN) return {"b: expected at most 2^36 columns"};
  return kOk;
}

Status check_packed(const Int8Kernels& kernels, const Int8Matmul& p) {
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

bool is_float(DType t) { return t == DType::f32 || t == DType::bf16; }

Status check(const Int8Kernels& kernels, const Int8Matmul& p) {
  if (p.m < 0 || p.n < 0 || p.k < 0) return {"m, n, k: expected sizes of at least 0"};
  if (p.k > kInt8MaxK) return {"k: expected at most 131071 = 2^31 / 2^14 - 1, beyond which int32 sums may wrap"};
  if (p.n > kInt8MaxN) return {"n: expected at most 2^36 columns"};
  if (p.m > int64_t{1} << 48 || !product_fits({p.m + 64, p.n + 64, 4}) || !product_fits({p.m + 64, p.k + 4096, 2}))
    return {"m, n, k: the sizes are too large"};
  if (p.a_dtype == DType::i32 || p.a_dtype == DType::f16) return {"a: expected int8, float32 or bfloat16"};
  if (p.out_dtype == DType::f16) return {"out_dtype: the CPU kernels have no float16"};
  if (is_float(p.a_dtype) && p.a_stride_k != 1 && p.k > 1) return {"a: expected contiguous rows of floats"};
  if (is_float(p.a_dtype) && (p.a_scale != nullptr || p.a_zero_point != nullptr)) {
    return {"a_scale, a_zero_point: expected none for a float a, which is quantised here"};
  }
  const bool plain = p.a_scale == nullptr && p.b_scale == nullptr && p.bias == nullptr &&
                     p.activation == Activation::none && p.a_dtype == DType::i8;
  if (p.out_dtype == DType::i32 && !plain) {
    return {"out_dtype: int32 is the plain sum; expected a float dtype or int8 with scales, bias or activation"};
  }
  if (p.a_zero_point != nullptr) {
    if (p.k > kInt8MaxKWithZeroPoint) {
      return {"k: expected at most 65793 = 2^31 / (255 * 128) with a zero point, beyond which int32 sums may wrap"};
    }
    for (int64_t i = 0; i < (p.a_zero_point_stride == 0 ? (p.m > 0 ? 1 : 0) : p.m); ++i) {
      const int32_t z = p.a_zero_point[i * p.a_zero_point_stride];
      if (z < -128 || z > 127) return {"a_zero_point: expected values in [-128, 127]"};
    }
  }
  return p.packed != nullptr ? check_packed(kernels, p) : kOk;
}

}  // namespace

Status int8_packed_bytes(int64_t k, int64_t n, int64_t* bytes) {
  if (Status s = check_b(k, n); !s) return s;
  *bytes = packed_size(k, n);
  return kOk;
}

Status make_plan(const Int8Matmul& problem, int threads, Int8MatmulPlan* plan) {
  const Int8Kernels* kernels;
  if (Status s = kernels_in_force(&kernels); !s) return s;
  if (Status s = check(*kernels, problem); !s) return s;
  fill_plan(problem, *kernels, threads, plan);
  return kOk;
}

void run(const Int8MatmulPlan& plan, void* workspace, const Executor& executor) {
  if (plan.problem.m == 0 || plan.problem.n == 0) return;
  plan.kernels->matmul(plan, static_cast<char*>(workspace), executor);
}

Status int8_pack(const int8_t* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, void* packed,
                 const Executor& executor) {
  const Int8Kernels* kernels;
  if (Status s = kernels_in_force(&kernels); !s) return s;
  if (Status s = check_b(k, n); !s) return s;
  PackedHeader header{{}, kPackedVersion, kernels->layout, k, n, {}};
  std::memcpy(header.magic, kPackedMagic, sizeof header.magic);
  std::memcpy(packed, &header, sizeof header);
  kernels->pack(b, k, n, stride_k, stride_n, static_cast<char*>(packed) + sizeof header, executor);
  return kOk;
}

Status quantize_int8(const QuantizeInt8& problem, const Executor& executor) {
  Isa isa;
  if (Status s = active_isa(&isa); !s) return s;
  if (!is_float(problem.x_dtype)) return {"x: expected float32 or bfloat16"};
  if (problem.outer < 0 || problem.channels < 0 || problem.inner < 0) return {"x: expected sizes of at least 0"};
  if (!product_fits({problem.outer, problem.channels, problem.inner, 4})) return {"x: the sizes are too large"};
  PK_VNNI_TABLE_OF(quantize_kernels, isa)->quantize(problem, executor);
  return kOk;
}

}  // namespace pk
