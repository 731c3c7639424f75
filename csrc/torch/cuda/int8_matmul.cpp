// The int8 family's CUDA implementations; the schemas are in csrc/torch/cpu/int8_matmul.cpp.
#include "torch/int8_matmul.h"

#include "pykernels/cuda/int8_matmul.h"
#include "torch/cuda/checks.h"

namespace pk::binding {
namespace {

// A vector of n, or of one element for all, with the stride 1 or 0 that the kernels want; `kept` owns it.
template <class T>
const T* vector_of(const OnDevice& on, const MaybeTensor& t, int64_t n, ScalarType dtype, const char* op,
                   const char* argument, Tensor* kept, int64_t* stride) {
  if (!t) return nullptr;
  on.check(*t, argument);
  check_vector(*t, n, dtype, op, argument);
  *stride = t->numel() == 1 ? 0 : 1;
  *kept = torch::stable::contiguous(*t);
  return static_cast<const T*>(kept->const_data_ptr());
}

// Fills in what both forms share, runs, returns the output.
Tensor run(const char* op, const OnDevice& on, Int8Matmul p, const EpilogueArguments& e, ScalarType out_dtype) {
  p.out_dtype = to_cuda_dtype(out_dtype, op, "out_dtype");
  p.activation = to_activation(e.activation, op);
  Tensor a_scale, b_scale, zero_point, bias;
  p.a_scale = vector_of<float>(on, e.a_scale, p.m, ScalarType::Float, op, "a_scale", &a_scale, &p.a_scale_stride);
  p.b_scale = vector_of<float>(on, e.b_scale, p.n, ScalarType::Float, op, "b_scale", &b_scale, &p.b_scale_stride);
  p.a_zero_point = vector_of<int32_t>(on, e.a_zero_point, p.m, ScalarType::Int, op, "a_zero_point", &zero_point,
                                      &p.a_zero_point_stride);
  if (e.bias) {
    on.check(*e.bias, "bias");
    check_dtype(*e.bias, ScalarType::Float, op, "bias");
    check_shape(*e.bias, {p.n}, op, "bias");
    bias = torch::stable::contiguous(*e.bias);
    p.bias = static_cast<const float*>(bias.const_data_ptr());
  }
  cuda::Int8MatmulPlan plan;
  check_status(cuda::make_plan(p, {}, &plan), op);
  const Tensor out = on.empty({p.m, p.n}, out_dtype);
  const Tensor workspace = on.workspace(plan.workspace_bytes);
  plan.problem.out = out.mutable_data_ptr();
  check_status(cuda::run(plan, workspace.mutable_data_ptr(), on.stream()), op);
  return out;
}

Tensor matmul(const Tensor& a, const Tensor& b, const MaybeTensor& a_scale, const MaybeTensor& b_scale,
              const MaybeTensor& a_zero_point, const MaybeTensor& bias, int64_t activation, ScalarType out_dtype) {
  const char* op = "int8_matmul";
  const OnDevice on(op, a, "a");
  Int8Matmul p;
  set_int8_a(op, a, &p);
  on.check(b, "b");
  set_b(op, b, &p);
  return run(op, on, p, {a_scale, b_scale, a_zero_point, bias, activation}, out_dtype);
}

Tensor matmul_packed(const Tensor& a, const Tensor& packed, int64_t n, const MaybeTensor& a_scale,
                     const MaybeTensor& b_scale, const MaybeTensor& a_zero_point, const MaybeTensor& bias,
                     int64_t activation, ScalarType out_dtype) {
  const char* op = "int8_matmul_packed";
  const OnDevice on(op, a, "a");
  Int8Matmul p;
  set_int8_a(op, a, &p);
  on.check(packed, "packed");
  set_packed(op, packed, n, &p);
  return run(op, on, p, {a_scale, b_scale, a_zero_point, bias, activation}, out_dtype);
}

Tensor linear(const Tensor& x, const Tensor& b, const Tensor& b_scale, const MaybeTensor& bias, int64_t activation) {
  const char* op = "int8_linear";
  const OnDevice on(op, x, "x");
  Int8Matmul p;
  const Tensor rows = set_float_a(op, x, to_cuda_float(x.scalar_type(), op, "x"), &p);
  on.check(b, "b");
  set_b(op, b, &p);
  return run(op, on, p, {std::nullopt, b_scale, std::nullopt, bias, activation}, x.scalar_type());
}

Tensor linear_packed(const Tensor& x, const Tensor& packed, int64_t n, const Tensor& b_scale, const MaybeTensor& bias,
                     int64_t activation) {
  const char* op = "int8_linear_packed";
  const OnDevice on(op, x, "x");
  Int8Matmul p;
  const Tensor rows = set_float_a(op, x, to_cuda_float(x.scalar_type(), op, "x"), &p);
  on.check(packed, "packed");
  set_packed(op, packed, n, &p);
  return run(op, on, p, {std::nullopt, b_scale, std::nullopt, bias, activation}, x.scalar_type());
}

Tensor pack(const Tensor& b) {
  const char* op = "int8_pack";
  const OnDevice on(op, b, "b");
  check_dtype(b, ScalarType::Char, op, "b");
  check_matrix(b, op, "b");
  const int64_t k = b.size(0), n = b.size(1);
  int64_t bytes = 0;
  check_status(cuda::int8_packed_bytes(k, n, &bytes), op);
  const Tensor packed = on.empty({bytes}, ScalarType::Byte);
  check_status(cuda::int8_pack(static_cast<const int8_t*>(b.const_data_ptr()), k, n, k > 1 ? b.stride(0) : 1,
                               b.stride(1), packed.mutable_data_ptr(), on.stream()),
               op);
  return packed;
}

// axis < 0: one scale for all of x.
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, int64_t axis, bool symmetric) {
  const char* op = "quantize_int8";
  const OnDevice on(op, x, "x");
  QuantizeInt8 p;
  p.x_dtype = to_cuda_float(x.scalar_type(), op, "x");
  const std::vector<int64_t> sizes = set_slices(op, x, axis, &p);
  const Tensor source = torch::stable::contiguous(x);
  p.x = source.const_data_ptr();
  p.symmetric = symmetric;
  const Tensor q = on.empty(sizes, ScalarType::Char);
  const std::vector<int64_t> slices = axis < 0 ? std::vector<int64_t>{} : std::vector<int64_t>{p.channels};
  const Tensor scale = on.empty(slices, ScalarType::Float);
  const Tensor zero_point = on.empty(slices, ScalarType::Int);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.zero_point = static_cast<int32_t*>(zero_point.mutable_data_ptr());
  cuda::QuantizeInt8Plan plan;
  check_status(cuda::make_plan(p, &plan), op);
  const Tensor workspace = on.workspace(plan.workspace_bytes);
  check_status(cuda::run(plan, workspace.mutable_data_ptr(), on.stream()), op);
  return {q, scale, zero_point};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("int8_matmul", TORCH_BOX(&pk::binding::matmul));
  m.impl("int8_pack", TORCH_BOX(&pk::binding::pack));
  m.impl("int8_matmul_packed", TORCH_BOX(&pk::binding::matmul_packed));
  m.impl("int8_linear", TORCH_BOX(&pk::binding::linear));
  m.impl("int8_linear_packed", TORCH_BOX(&pk::binding::linear_packed));
  m.impl("quantize_int8", TORCH_BOX(&pk::binding::quantize));
}
