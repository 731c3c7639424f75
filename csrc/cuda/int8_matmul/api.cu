// The int8 entry points: the plans, which check; their runs, which bring the operands into the form that the products
// want and dispatch.
#include "common/int8_checks.h"
#include "common/rounding.h"
#include "cuda/int8_matmul/kernels.h"
#include "cuda/platform.cuh"
#include "pykernels/cuda/int8_matmul.h"

namespace pk::cuda {
namespace {

using int8::kMaxStride;

int64_t packed_stride(int64_t k) { return round_up(k, 32); }
int64_t packed_size(int64_t k, int64_t n) { return n * packed_stride(k) + 4 * n + k % 32; }

Status check(const Int8MatmulArgs& p, const Device& device) {
  const Int8Choice& asked = p.asked;
  if (p.a_dtype == DType::i32) return {"a: expected int8, float32, bfloat16 or float16"};
  PK_TRY(check_matmul(p));
  if (p.packed != nullptr) {
    if (p.packed_bytes != packed_size(p.k, p.n)) {
      return {"packed: its size is not that of int8_pack for a's columns and n, on a CUDA device"};
    }
    if (reinterpret_cast<uintptr_t>(p.packed) % 16 != 0)
      return {"packed: expected an address that is a multiple of 16"};
  }
  if (asked.split < 0 || asked.split > int8::kMaxSplit) return {"plan: expected a split of at most 16"};
  switch (asked.algorithm) {
    case Int8Algorithm::gemv:
      if (p.m != 1) return {"plan: gemv is for a single row"};
      break;
    case Int8Algorithm::skinny:
      if (p.m > int8::kSkinnyRows) return {"plan: skinny is for at most 16 rows"};
      break;
    case Int8Algorithm::hopper_swapped:
      if (p.m > int8::kSwappedRows) return {"plan: hopper_swapped is for at most 64 rows"};
      break;
    default:
      break;
  }
  if (int8::is_hopper(asked.algorithm) && device.capability != 90) {
    return {"plan: the device does not run the kernels for Hopper"};
  }
  return kOk;
}

// May the kernels read these rows where they lie? (TMA wants a stride: no row that is read again and again.)
bool in_place(const void* data, int64_t rows, int64_t k, int64_t stride_row, int64_t stride_k) {
  const bool row_fits = rows <= 1 || (stride_row % 16 == 0 && stride_row > 0 && stride_row < kMaxStride);
  return k == 0 || (stride_k == 1 && k % 16 == 0 && row_fits && reinterpret_cast<uintptr_t>(data) % 16 == 0);
}

// How the product is computed, and what that takes of the workspace.
void fill_plan(const Device& device, Int8MatmulPlan* plan) {
  const Int8MatmulArgs& p = plan->args;
  plan->choice = int8::choose(p.m, p.n, p.k > 0 ? p.k : 1, device, p.asked);
  if (p.k == 0 && int8::is_hopper(plan->choice.algorithm)) plan->choice = {Int8Algorithm::tile_64x64, 1};  // no map
  plan->k = round_up(p.k, 16);
  plan->multiprocessors = device.multiprocessors;
  const auto take = [&](bool wanted, int64_t bytes) {
    const int64_t at = plan->workspace_bytes;
    if (wanted) plan->workspace_bytes += round_up(bytes, 256);
    return at;
  };
  const bool quantise = is_float(p.a_dtype);
  plan->copy_a = !quantise && !in_place(p.a, p.m, p.k, p.a_stride_m, p.a_stride_k);
  plan->copy_b = p.packed == nullptr && !in_place(p.b, p.n, p.k, p.b_stride_n, p.b_stride_k);
  plan->sum_b = p.packed == nullptr && p.a_zero_point != nullptr;
  plan->a = take(quantise || plan->copy_a, p.m * plan->k);
  plan->a_scale = take(quantise, p.m * 4);
  plan->b = take(plan->copy_b, p.n * plan->k);
  plan->sums = take(plan->sum_b, p.n * 4);
  plan->slices = plan->choice.split > 1 || plan->choice.algorithm == Int8Algorithm::hopper_swapped;
  plan->partial = take(plan->slices, plan->choice.split * p.m * round_up(p.n, 4) * 4);
}

Status check(const QuantizeInt8Args& p) {
  if (!is_float(p.x_dtype)) return {"x: expected float32, bfloat16 or float16"};
  if (!product_fits({p.channels, 1 << 16})) return {"x: the sizes are too large"};
  return check_quantize(p);
}

}  // namespace

Status make_plan(const Int8MatmulArgs& args, Int8MatmulPlan* plan) {
  Device device;
  PK_TRY(current_device(&device));
  PK_TRY(check(args, device));
  *plan = {};
  plan->args = args;
  if (args.m > 0 && args.n > 0) fill_plan(device, plan);
  return kOk;
}

Status run(const Int8MatmulPlan& plan, void* given_workspace, void* stream) {
  const Int8MatmulArgs& p = plan.args;
  if (p.m == 0 || p.n == 0) return kOk;
  auto* const workspace = static_cast<char*>(given_workspace);
  int8::Product product{
      .m = p.m, .n = p.n, .k = plan.k, .a = nullptr, .a_stride = plan.k, .b = nullptr, .b_stride = plan.k};
  product.split = plan.choice.split;
  product.partial = reinterpret_cast<int32_t*>(workspace + plan.partial);
  int8::Epilogue e = {.a_scale = p.a_scale,
                      .b_scale = p.b_scale,
                      .bias = p.bias,
                      .a_zero_point = p.a_zero_point,
                      .column_sums = nullptr,
                      .a_scale_stride = p.a_scale_stride == 0 ? 0 : 1,
                      .b_scale_stride = p.b_scale_stride == 0 ? 0 : 1,
                      .a_zero_point_stride = p.a_zero_point_stride == 0 ? 0 : 1,
                      .activation = p.activation,
                      .negative_slope = p.negative_slope,
                      .out_dtype = p.out_dtype,
                      .out_size = static_cast<int>(size_of(p.out_dtype)),
                      .out = p.out,
                      .m = p.m,
                      .n = p.n,
                      .wide = p.n % 4 == 0 && reinterpret_cast<uintptr_t>(p.out) % (4 * size_of(p.out_dtype)) == 0};

  auto* a_rows = reinterpret_cast<int8_t*>(workspace + plan.a);
  if (is_float(p.a_dtype)) {
    auto* scale = reinterpret_cast<float*>(workspace + plan.a_scale);
    PK_TRY(int8::quantize_rows(p.a_dtype, p.a, p.m, p.k, p.a_stride_m, true, a_rows, plan.k, scale, nullptr, stream));
    product.a = a_rows;
    e.a_scale = scale;
    e.a_scale_stride = 1;
  } else if (plan.copy_a) {
    PK_TRY(
        int8::copy_rows(static_cast<const int8_t*>(p.a), p.m, p.k, p.a_stride_m, p.a_stride_k, a_rows, plan.k, stream));
    product.a = a_rows;
  } else {
    product.a = static_cast<const int8_t*>(p.a);
    if (p.m > 1) product.a_stride = p.a_stride_m;
  }

  if (p.packed != nullptr) {
    product.b = static_cast<const int8_t*>(p.packed);
    product.b_stride = packed_stride(p.k);
    e.column_sums = reinterpret_cast<const int32_t*>(product.b + p.n * product.b_stride);
  } else if (plan.copy_b) {
    auto* b_rows = reinterpret_cast<int8_t*>(workspace + plan.b);
    PK_TRY(int8::copy_rows(p.b, p.n, p.k, p.b_stride_n, p.b_stride_k, b_rows, plan.k, stream));
    product.b = b_rows;
  } else {
    product.b = p.b;
    if (p.n > 1) product.b_stride = p.b_stride_n;
  }
  if (plan.sum_b) {
    auto* sums = reinterpret_cast<int32_t*>(workspace + plan.sums);
    PK_TRY(int8::sum_rows(product.b, p.n, plan.k, product.b_stride, sums, stream));
    e.column_sums = sums;
  }

  Status done = kOk;
  switch (plan.choice.algorithm) {
    case Int8Algorithm::gemv:
      done = int8::gemv(product, e, plan.multiprocessors, stream);
      break;
    case Int8Algorithm::skinny:
      done = int8::skinny(product, e, stream);
      break;
    default:
      done = int8::is_hopper(plan.choice.algorithm)
                 ? int8::hopper_tiles(product, e, plan.choice.algorithm, plan.multiprocessors, stream)
                 : int8::tiles(product, e, plan.choice.algorithm, stream);
      break;
  }
  return done && plan.slices ? int8::add_slices(product, e, stream) : done;
}

Status make_packing_plan(int64_t k, int64_t n, Int8PackingPlan* plan) {
  PK_TRY(check_b(k, n));
  *plan = {k, n, packed_size(k, n)};
  return kOk;
}

Status pack(const Int8PackingPlan& plan, const int8_t* b, int64_t stride_k, int64_t stride_n, void* packed,
            void* stream) {
  const int64_t k = plan.k, n = plan.n, stride = packed_stride(k);
  auto* rows = static_cast<int8_t*>(packed);
  PK_TRY(int8::copy_rows(b, n, k, stride_n, stride_k, rows, stride, stream));
  return int8::sum_rows(rows, n, stride, stride, reinterpret_cast<int32_t*>(rows + n * stride), stream);
}

Status make_plan(const QuantizeInt8Args& args, QuantizeInt8Plan* plan) {
  Device device;
  PK_TRY(current_device(&device));
  PK_TRY(check(args));
  *plan = {};
  plan->args = args;
  if (args.channels > 0) int8::plan_quantize(device, plan);
  return kOk;
}

Status run(const QuantizeInt8Plan& plan, void* workspace, void* stream) {
  return plan.args.channels == 0 ? kOk : int8::quantize(plan, workspace, stream);
}

}  // namespace pk::cuda
