// The int8 family's CUDA implementations; the schemas are in csrc/torch/int8_matmul.cpp.
#include "torch/cuda/checks.h"
// checks.h first: it names torch's headers.
#include "pykernels/cuda/int8_matmul.h"

namespace pk::binding {
namespace {

using MaybeTensor = std::optional<Tensor>;

void check_matrix(const Tensor& t, const char* op, const char* argument) {
  check(t.dim() == 2, op, argument, "expected a matrix, got shape ", shape_of(t));
}

// A vector of n, or of one element for all, with the stride 1 or 0 that the kernels want; `kept` owns it.
template <class T>
const T* vector_of(const OnDevice& on, const MaybeTensor& t, int64_t n, ScalarType dtype, const char* op,
                   const char* argument, Tensor* kept, int64_t* stride) {
  if (!t) return nullptr;
  on.check(*t, argument);
  check_dtype(*t, dtype, op, argument);
  check(t->dim() <= 1 && (t->numel() == 1 || (t->dim() == 1 && t->size(0) == n)), op, argument,
        "expected one element, or shape (", n, "), got shape ", shape_of(*t));
  *stride = t->numel() == 1 ? 0 : 1;
  *kept = torch::stable::contiguous(*t);
  return static_cast<const T*>(kept->const_data_ptr());
}

struct EpilogueArguments {
  const MaybeTensor &a_scale, &b_scale, &a_zero_point, &bias;
  int64_t activation;
};

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
  size_t bytes = 0;
  check_status(cuda::int8_matmul_workspace(p, {}, &bytes), op);
  const Tensor out = on.empty({p.m, p.n}, out_dtype);
  const Tensor workspace = on.workspace(bytes);
  p.out = out.mutable_data_ptr();
  check_status(cuda::int8_matmul(p, {}, workspace.mutable_data_ptr(), bytes, on.stream()), op);
  return out;
}

void set_int8_a(const char* op, const Tensor& a, Int8Matmul* p) {
  check_dtype(a, ScalarType::Char, op, "a");
  check_matrix(a, op, "a");
  p->m = a.size(0);
  p->k = a.size(1);
  p->a = a.const_data_ptr();
  p->a_stride_m = a.stride(0);
  // A column of one element has no stride worth the name, and rows of stride 1 are the fast ones.
  p->a_stride_k = p->k > 1 ? a.stride(1) : 1;
}

// x with contiguous rows, which the problem then has as an a to be quantised.
Tensor set_float_a(const char* op, const Tensor& x, Int8Matmul* p) {
  p->a_dtype = to_cuda_float(x.scalar_type(), op, "x");
  check_matrix(x, op, "x");
  const Tensor rows = x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  p->m = rows.size(0);
  p->k = rows.size(1);
  p->a = rows.const_data_ptr();
  p->a_stride_m = rows.stride(0);
  p->a_stride_k = 1;
  return rows;
}

void set_b(const char* op, const OnDevice& on, const Tensor& b, Int8Matmul* p) {
  on.check(b, "b");
  check_dtype(b, ScalarType::Char, op, "b");
  check_matrix(b, op, "b");
  check(b.size(0) == p->k, op, "b", "expected ", p->k, " rows, as the left side has columns, got shape ", shape_of(b));
  p->n = b.size(1);
  p->b = static_cast<const int8_t*>(b.const_data_ptr());
  p->b_stride_k = p->k > 1 ? b.stride(0) : 1;
  p->b_stride_n = b.stride(1);
}

void set_packed(const char* op, const OnDevice& on, const Tensor& packed, int64_t n, Int8Matmul* p) {
  on.check(packed, "packed");
  check_dtype(packed, ScalarType::Byte, op, "packed");
  check(packed.dim() == 1 && (packed.numel() <= 1 || packed.stride(0) == 1), op, "packed",
        "expected the contiguous 1-d tensor that int8_pack makes, got shape ", shape_of(packed));
  check(n >= 0, op, "n", "expected at least 0, got ", n);
  p->n = n;
  p->packed = packed.const_data_ptr();
  p->packed_bytes = packed.numel();
  // An empty tensor has no address, and a null one means "not packed".
  alignas(16) static const char nothing = 0;
  if (p->packed_bytes == 0) p->packed = &nothing;
}

Tensor matmul(const Tensor& a, const Tensor& b, const MaybeTensor& a_scale, const MaybeTensor& b_scale,
              const MaybeTensor& a_zero_point, const MaybeTensor& bias, int64_t activation, ScalarType out_dtype) {
  const char* op = "int8_matmul";
  const OnDevice on(op, a, "a");
  Int8Matmul p;
  set_int8_a(op, a, &p);
  set_b(op, on, b, &p);
  return run(op, on, p, {a_scale, b_scale, a_zero_point, bias, activation}, out_dtype);
}

Tensor matmul_packed(const Tensor& a, const Tensor& packed, int64_t n, const MaybeTensor& a_scale,
                     const MaybeTensor& b_scale, const MaybeTensor& a_zero_point, const MaybeTensor& bias,
                     int64_t activation, ScalarType out_dtype) {
  const char* op = "int8_matmul_packed";
  const OnDevice on(op, a, "a");
  Int8Matmul p;
  set_int8_a(op, a, &p);
  set_packed(op, on, packed, n, &p);
  return run(op, on, p, {a_scale, b_scale, a_zero_point, bias, activation}, out_dtype);
}

Tensor linear(const Tensor& x, const Tensor& b, const Tensor& b_scale, const MaybeTensor& bias, int64_t activation) {
  const char* op = "int8_linear";
  const OnDevice on(op, x, "x");
  Int8Matmul p;
  const Tensor rows = set_float_a(op, x, &p);
  set_b(op, on, b, &p);
  return run(op, on, p, {std::nullopt, b_scale, std::nullopt, bias, activation}, x.scalar_type());
}

Tensor linear_packed(const Tensor& x, const Tensor& packed, int64_t n, const Tensor& b_scale, const MaybeTensor& bias,
                     int64_t activation) {
  const char* op = "int8_linear_packed";
  const OnDevice on(op, x, "x");
  Int8Matmul p;
  const Tensor rows = set_float_a(op, x, &p);
  set_packed(op, on, packed, n, &p);
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
  check(axis < x.dim(), op, "axis", "expected less than ", x.dim(), " for shape ", shape_of(x), ", got ", axis);
  const Tensor source = torch::stable::contiguous(x);
  p.x = source.const_data_ptr();
  p.symmetric = symmetric;
  p.inner = 1;
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) {
    sizes.push_back(x.size(i));
    // An empty tensor's other sizes may be of any size.
    int64_t& size = i < axis ? p.outer : i == axis ? p.channels : p.inner;
    check(!__builtin_mul_overflow(size, x.size(i), &size), op, "x", "expected a smaller shape, got ", shape_of(x));
  }
  const Tensor q = on.empty(sizes, ScalarType::Char);
  const std::vector<int64_t> slices = axis < 0 ? std::vector<int64_t>{} : std::vector<int64_t>{p.channels};
  const Tensor scale = on.empty(slices, ScalarType::Float);
  const Tensor zero_point = on.empty(slices, ScalarType::Int);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  p.zero_point = static_cast<int32_t*>(zero_point.mutable_data_ptr());
  size_t bytes = 0;
  check_status(cuda::quantize_int8_workspace(p, &bytes), op);
  const Tensor workspace = on.workspace(bytes);
  check_status(cuda::quantize_int8(p, workspace.mutable_data_ptr(), bytes, on.stream()), op);
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
