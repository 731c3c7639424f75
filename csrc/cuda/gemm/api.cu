// The dense product: checks, the way its operands are read, the choice of tile and slices, and the sum of the slices.
#include "cuda/gemm/dense.cuh"
#include "pykernels/cuda/gemm.h"

namespace pk::cuda {
namespace {

// out = the slices' sums, added in order, then finished as a single slice would be. A thread finishes eight columns.
template <class T>
__global__ void __launch_bounds__(256) add_slices(const float* partial, int split, const DenseOut to) {
  const int64_t columns = partial_columns(to.n), groups = columns / kDenseColumns;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * 256 + static_cast<int64_t>(threadIdx.x);
  if (group >= groups * to.m) return;
  float v[kDenseColumns] = {};
  for (int slice = 0; slice < split; ++slice) {
    const float4* from = reinterpret_cast<const float4*>(partial + slice * to.m * columns + group * kDenseColumns);
    PK_UNROLL
    for (int i = 0; i < kDenseColumns / 4; ++i) {
      const float4 four = from[i];
      v[4 * i] += four.x, v[4 * i + 1] += four.y, v[4 * i + 2] += four.z, v[4 * i + 3] += four.w;
    }
  }
  finish_row<T>(to, static_cast<int>(group / groups), static_cast<int>(group % groups) * kDenseColumns, v);
}

Status launch_add_slices(const GemmArgs& g, const Dense& p, void* stream) {
  const int64_t groups = partial_columns(p.n) / kDenseColumns * p.m;
  const Launch how = {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(groups, 256))), .block = dim3(256)};
  const float* const partial = p.partial;
  return with_type(g.dtype,
                   [&](auto t) { return launch(add_slices<decltype(t)>, how, stream, partial, p.split, p.out); });
}

Status check(const GemmArgs& g) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 256;
  if (g.m < 0 || g.n < 0 || g.k < 0 || g.m >= kMost || g.n >= kMost || g.k >= kMost) {
    return {"gemm: m, n, k: expected 0 or more and less than 2^31 - 256"};
  }
  if (g.dtype != DType::f32 && g.dtype != DType::bf16 && g.dtype != DType::f16) {
    return {"gemm: dtype: expected f32, bf16 or f16"};
  }
  if (g.out_dtype != g.dtype && g.out_dtype != DType::f32) return {"gemm: out_dtype: expected dtype or f32"};
  if (g.asked.tile < 0 || g.asked.tile > 3) return {"gemm: asked.tile: expected 0 to 3"};
  if (g.asked.split < 0 || g.asked.split > 65535) return {"gemm: asked.split: expected 0 to 65535"};
  return kOk;
}

// Whether Hopper's kernel may serve: its copies want both operands contiguous along K and strides of 16 bytes.
bool suits_hopper(const GemmArgs& g, const Device& device) {
  return device.capability == 90 && g.dtype != DType::f32 && g.a_stride_k == 1 && g.b_stride_k == 1 &&
         g.a_stride_m > 0 && g.a_stride_m % 8 == 0 && g.b_stride_n > 0 && g.b_stride_n % 8 == 0 && g.k > 0;
}

// Whether lines `stride` apart at p can be copied in 16 bytes, each line having `length` elements.
bool wide(const void* p, int64_t stride, int64_t length, int64_t size) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride * size % 16 == 0 && length * size % 16 == 0;
}

// Lines along K must be whole copies long, since both operands' copies end together there.
Reading reading(const GemmArgs& g) {
  const auto size = static_cast<int64_t>(size_of(g.dtype));
  const bool a_rows = g.a_stride_k == 1 && wide(g.a, g.a_stride_m, g.k, size);
  const bool b_rows = g.b_stride_k == 1 && wide(g.b, g.b_stride_n, g.k, size);
  const bool a_columns = g.a_stride_m == 1 && wide(g.a, g.a_stride_k, g.m, size);
  const bool b_columns = g.b_stride_n == 1 && wide(g.b, g.b_stride_k, g.n, size);
  if (a_rows && b_rows) return Reading::rows;
  if (a_rows && b_columns) return Reading::mixed;
  if (a_columns && b_columns) return Reading::columns;
  return Reading::strided;
}

}  // namespace

Status make_plan(const GemmArgs& g, GemmPlan* plan) {
  PK_TRY(check(g));
  Device device;
  PK_TRY(current_device(&device));
  const bool hopper = suits_hopper(g, device);
  GemmChoice choice = choose_gemm(g.m, g.n, g.k, g.dtype, g.tf32, hopper, device);
  if (g.asked.tile) choice.tile = g.asked.tile;
  if (choice.tile == 3 && !hopper) return {"gemm: asked.tile: 3 is Hopper's, for 16-bit operands contiguous along K"};
  // Slices of whole k tiles, of which Hopper's are the longest, none of them empty.
  const int64_t unit = 128 / static_cast<int64_t>(size_of(g.dtype));
  const int64_t units = ceil_div<int64_t>(g.k, unit);
  const int64_t wanted =
      std::clamp<int64_t>(g.asked.split ? g.asked.split : choice.split, 1, std::max<int64_t>(units, 1));
  const int64_t of_slice = std::max<int64_t>(ceil_div(units, wanted), 1);
  choice.split = static_cast<int>(std::max<int64_t>(ceil_div(units, of_slice), 1));
  const int64_t partial = choice.split * g.m * partial_columns(static_cast<int>(g.n)) * 4;
  *plan = {g, choice, static_cast<int>(of_slice * unit), device.multiprocessors, choice.split == 1 ? 0 : partial};
  return kOk;
}

Status run(const GemmPlan& plan, void* workspace, void* stream) {
  const GemmArgs& g = plan.args;
  if (g.m == 0 || g.n == 0) return kOk;
  const Reading how = reading(g);
  Dense p = {};
  p.a = g.a, p.a_stride = g.a_stride_m, p.a_stride_k = g.a_stride_k;
  p.b = g.b, p.b_stride = g.b_stride_n, p.b_stride_k = g.b_stride_k;
  if (how == Reading::columns) p.a_stride = g.a_stride_k;
  if (how == Reading::columns || how == Reading::mixed) p.b_stride = g.b_stride_k;
  p.m = static_cast<int>(g.m), p.n = static_cast<int>(g.n), p.k = static_cast<int>(g.k);
  p.split = plan.choice.split, p.k_of_slice = plan.k_of_slice;
  p.partial = static_cast<float*>(workspace);
  const bool is_float = g.out_dtype == DType::f32;
  const auto out_size = static_cast<int64_t>(size_of(g.out_dtype));
  p.out = {
      g.bias, g.bias2, g.out, g.out_stride, p.m, p.n, is_float, g.accumulate, wide(g.out, g.out_stride, 0, out_size)};

  Status status = kOk;
  // Hopper's reads rows of any length, but not from anywhere: `wide` of no length asks about pointer and stride alone.
  if (plan.choice.tile == 3 && wide(g.a, g.a_stride_m, 0, 2) && wide(g.b, g.b_stride_n, 0, 2)) {
    status = dense_sm90(p, g.dtype, plan.multiprocessors, stream);
  } else if (g.dtype == DType::f16) {
    status = dense_f16(p, how, plan.choice.tile, stream);
  } else if (g.dtype == DType::bf16) {
    status = dense_bf16(p, how, plan.choice.tile, stream);
  } else if (g.tf32) {
    status = dense_tf32(p, how, plan.choice.tile, stream);
  } else {
    status = dense_f32(p, how, plan.choice.tile, stream);
  }
  if (!status || p.split == 1) return status;
  return launch_add_slices(g, p, stream);
}

}  // namespace pk::cuda
