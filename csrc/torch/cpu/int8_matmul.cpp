// The int8 family's schemas and CPU implementations.
#include "torch/int8_matmul.h"

#include "torch/tensors.h"

namespace pk::binding {
namespace {

// The element type of a float x on the CPU.
DType cpu_float(const Tensor& x, const char* op) {
  check_cpu(x, op, "x");
  check(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, op, "x",
        "expected torch.float32 or torch.bfloat16, got ", dtype_name(x.scalar_type()));
  return to_dtype(x.scalar_type(), op, "x");
}

// A vector of n, or of one element for all; its stride is 0 then.
template <class T>
const T* vector_of(const MaybeTensor& t, int64_t n, ScalarType dtype, const char* op, const char* argument,
                   int64_t* stride) {
  if (!t) return nullptr;
  check_cpu(*t, op, argument);
  check_vector(*t, n, dtype, op, argument);
  *stride = t->numel() == 1 ? 0 : t->stride(0);
  return static_cast<const T*>(t->const_data_ptr());
}

// Fills in what both forms share, runs, returns the output.
Tensor multiply(const char* op, Int8Matmul& p, const EpilogueArguments& e, ScalarType out_dtype) {
  p.out_dtype = to_dtype(out_dtype, op, "out_dtype");
  p.activation = to_activation(e.activation, op);
  p.a_scale = vector_of<float>(e.a_scale, p.m, ScalarType::Float, op, "a_scale", &p.a_scale_stride);
  p.b_scale = vector_of<float>(e.b_scale, p.n, ScalarType::Float, op, "b_scale", &p.b_scale_stride);
  p.a_zero_point = vector_of<int32_t>(e.a_zero_point, p.m, ScalarType::Int, op, "a_zero_point", &p.a_zero_point_stride);
  // The kernels read both by vectors of columns.
  Tensor bias, b_scale;
  if (e.bias) {
    check_cpu(*e.bias, op, "bias");
    check_dtype(*e.bias, ScalarType::Float, op, "bias");
    check_shape(*e.bias, {p.n}, op, "bias");
    bias = torch::stable::contiguous(*e.bias);
    p.bias = static_cast<const float*>(bias.const_data_ptr());
  }
  if (p.b_scale_stride > 1) {
    b_scale = torch::stable::contiguous(*e.b_scale);
    p.b_scale = static_cast<const float*>(b_scale.const_data_ptr());
  }
  const Executor executor = torch_executor();
  Int8MatmulPlan plan;
  check_status(make_plan(p, executor.threads, &plan), op);
  const Tensor out = empty({p.m, p.n}, out_dtype);
  plan.problem.out = out.mutable_data_ptr();
  pk::run(plan, Scratch(plan.workspace_bytes).data(), executor);
  return out;
}

Tensor matmul(const Tensor& a, const Tensor& b, const MaybeTensor& a_scale, const MaybeTensor& b_scale,
              const MaybeTensor& a_zero_point, const MaybeTensor& bias, int64_t activation, ScalarType out_dtype) {
  const char* op = "int8_matmul";
  Int8Matmul p;
  check_cpu(a, op, "a");
  set_int8_a(op, a, &p);
  check_cpu(b, op, "b");
  set_b(op, b, &p);
  return multiply(op, p, {a_scale, b_scale, a_zero_point, bias, activation}, out_dtype);
}

Tensor matmul_packed(const Tensor& a, const Tensor& packed, int64_t n, const MaybeTensor& a_scale,
                     const MaybeTensor& b_scale, const MaybeTensor& a_zero_point, const MaybeTensor& bias,
                     int64_t activation, ScalarType out_dtype) {
  const char* op = "int8_matmul_packed";
  Int8Matmul p;
  check_cpu(a, op, "a");
  set_int8_a(op, a, &p);
  check_cpu(packed, op, "packed");
  set_packed(op, packed, n, &p);
  return multiply(op, p, {a_scale, b_scale, a_zero_point, bias, activation}, out_dtype);
}

Tensor linear(const Tensor& x, const Tensor& b, const Tensor& b_scale, const MaybeTensor& bias, int64_t activation) {
  const char* op = "int8_linear";
  Int8Matmul p;
  const Tensor rows = set_float_a(op, x, cpu_float(x, op), &p);
  check_cpu(b, op, "b");
  set_b(op, b, &p);
  return multiply(op, p, {std::nullopt, b_scale, std::nullopt, bias, activation}, x.scalar_type());
}

Tensor linear_packed(const Tensor& x, const Tensor& packed, int64_t n, const Tensor& b_scale, const MaybeTensor& bias,
                     int64_t activation) {
  const char* op = "int8_linear_packed";
  Int8Matmul p;
  const Tensor rows = set_float_a(op, x, cpu_float(x, op), &p);
  check_cpu(packed, op, "packed");
  set_packed(op, packed, n, &p);
  return multiply(op, p, {std::nullopt, b_scale, std::nullopt, bias, activation}, x.scalar_type());
}

Tensor pack(const Tensor& b) {
  const char* op = "int8_pack";
  check_cpu(b, op, "b");
  check_dtype(b, ScalarType::Char, op, "b");
  check_matrix(b, op, "b");
  const int64_t k = b.size(0), n = b.size(1);
  int64_t bytes = 0;
  check_status(int8_packed_bytes(k, n, &bytes), op);
  const Tensor packed = empty({bytes}, ScalarType::Byte);
  check_status(int8_pack(static_cast<const int8_t*>(b.const_data_ptr()), k, n, b.stride(0), b.stride(1),
                         packed.mutable_data_ptr(), torch_executor()),
               op);
  return packed;
}

// axis < 0: one scale for all of x.
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, int64_t axis, bool symmetric) {
  const char* op = "quantize_int8";
  QuantizeInt8 p;
  p.x_dtype = cpu_float(x, op);
  const std::vector<int64_t> sizes = set_slices(op, x, axis, &p);
  const Tensor source = torch::stable::contiguous(x);
  p.x = source.const_data_ptr();
  p.symmetric = symmetric;
  const Tensor q = torch::stable::empty(sizes, ScalarType::Char);
  const std::vector<int64_t> slices = axis < 0 ? std::vector<int64_t>{} : std::vector<int64_t>{p.channels};
  const Tensor scale = torch::stable::empty(slices, ScalarType::Float);
  const Tensor zero_point = torch::stable::empty(slices, ScalarType::Int);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.zero_point = static_cast<int32_t*>(zero_point.mutable_data_ptr());
  check_status(quantize_int8(p, torch_executor()), op);
  return {q, scale, zero_point};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "int8_matmul(Tensor a, Tensor b, Tensor? a_scale, Tensor? b_scale, Tensor? a_zero_point, Tensor? bias, "
      "int activation, ScalarType out_dtype) -> Tensor");
  m.def("int8_pack(Tensor b) -> Tensor");
  m.def(
      "int8_matmul_packed(Tensor a, Tensor packed, SymInt n, Tensor? a_scale, Tensor? b_scale, Tensor? a_zero_point, "
      "Tensor? bias, int activation, ScalarType out_dtype) -> Tensor");
  m.def("int8_linear(Tensor x, Tensor b, Tensor b_scale, Tensor? bias, int activation) -> Tensor");
  m.def(
      "int8_linear_packed(Tensor x, Tensor packed, SymInt n, Tensor b_scale, Tensor? bias, int activation) -> Tensor");
  m.def("quantize_int8(Tensor x, int axis, bool symmetric) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("int8_matmul", TORCH_BOX(&pk::binding::matmul));
  m.impl("int8_pack", TORCH_BOX(&pk::binding::pack));
  m.impl("int8_matmul_packed", TORCH_BOX(&pk::binding::matmul_packed));
  m.impl("int8_linear", TORCH_BOX(&pk::binding::linear));
  m.impl("int8_linear_packed", TORCH_BOX(&pk::binding::linear_packed));
  m.impl("quantize_int8", TORCH_BOX(&pk::binding::quantize));
}
