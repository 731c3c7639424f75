// layer_norm: see pykernels/ops/layer_norm for what it computes. layer_norm_bound: the same without gradients, where
// `call` holds the numbers; layer_norm_out: for callers who have the memory too. They are those of a LayerNormCall
// (arguments.py): over the last `dims` dimensions, or over the channels of (N, C, H, W) where that is 0.
#include "pykernels/layer_norm.h"

#include "torch/tensors.h"

namespace pk::binding {
namespace {

using MaybeTensor = std::optional<Tensor>;

// The order is that of LayerNormCall.
struct NormNumbers {
  double dims, eps;
};

const void* vector_of(const char* op, const MaybeTensor& t, ScalarType dtype, const Tensor& x, int64_t first,
                      int64_t dims, const char* argument) {
  if (!t.has_value()) return nullptr;
  check_cpu(*t, op, argument);
  check_dtype(*t, dtype, op, argument);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < dims; ++i) shape.push_back(x.size(first + i));
  check_shape(*t, shape, op, argument);
  check(t->is_contiguous(), op, argument, "expected a contiguous tensor");
  return t->const_data_ptr();
}

void check_x(const char* op, const Tensor& x, const NormNumbers& call) {
  check_cpu(x, op, "x");
  to_float_dtype(x.scalar_type(), op, "x");
  if (call.dims == 0) {
    check(x.dim() == 4, op, "x", "expected 4 dimensions, got shape ", shape_of(x));
  } else {
    check(call.dims >= 1 && call.dims <= static_cast<double>(x.dim()), op, "dims",
          "expected an int of 0 to x's dimensions, got ", call.dims);
  }
}

// Fails, and writes nothing, unless x and y lie alike: what is normalised over, or the pixels, are adjacent in both.
// Rows are to be contiguous.
Status run_into(const char* op, const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                const NormNumbers& call, const Tensor& y) {
  LayerNormArgs args;
  args.dtype = to_float_dtype(x.scalar_type(), op, "x");
  args.eps = call.eps;
  const auto dims = static_cast<int64_t>(call.dims);
  if (dims == 0) {
    args.n = x.size(0), args.c = x.size(1), args.h = x.size(2), args.w = x.size(3);
    for (int64_t i = 0; i < 4; ++i) args.x_stride[i] = x.stride(i), args.y_stride[i] = y.stride(i);
  } else {
    args.n = args.c = args.h = args.w = 1;
    for (int64_t i = 0; i < x.dim(); ++i) (i < x.dim() - dims ? args.w : args.c) *= x.size(i);
    args.x_stride[1] = args.y_stride[1] = 1;
    args.x_stride[2] = args.y_stride[2] = args.x_stride[3] = args.y_stride[3] = args.c;
  }
  const bool alike = !weight.has_value() || !bias.has_value() || weight->scalar_type() == bias->scalar_type();
  check(alike, op, "bias", "expected the weight's dtype ", dtype_name((weight ? *weight : x).scalar_type()));
  const ScalarType given = weight ? weight->scalar_type() : bias ? bias->scalar_type() : ScalarType::Float;
  const ScalarType kept = given == x.scalar_type() ? given : ScalarType::Float;
  args.weight_dtype = to_float_dtype(kept, op, "weight");
  const int64_t first = dims == 0 ? 1 : x.dim() - dims, count = dims == 0 ? 1 : dims;
  args.weight = vector_of(op, weight, kept, x, first, count, "weight");
  args.bias = vector_of(op, bias, kept, x, first, count, "bias");
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  LayerNormPlan plan;
  PK_TRY(make_plan(args, &plan));
  pk::run(plan, torch_executor());
  return kOk;
}

// Not filled, as x, which is contiguous.
Tensor like_rows(const Tensor& x) {
  int64_t sizes[4];
  if (x.dim() > 4) return torch::stable::empty_like(x);
  for (int64_t i = 0; i < x.dim(); ++i) sizes[i] = x.size(i);
  return empty(sizes, static_cast<size_t>(x.dim()), x.scalar_type());
}

Tensor result(const char* op, const Tensor& given, const MaybeTensor& weight, const MaybeTensor& bias,
              const NormNumbers& call) {
  check_x(op, given, call);
  const auto like = [&](const Tensor& x) {
    return call.dims == 0 ? empty_image(x, x.size(2), x.size(3)) : like_rows(x);
  };
  if (call.dims == 0 || given.is_contiguous()) {
    const Tensor y = like(given);
    if (run_into(op, given, weight, bias, call, y)) return y;
  }
  const Tensor x = torch::stable::contiguous(given), y = like(x);
  check_status(run_into(op, x, weight, bias, call, y), op);
  return y;
}

Tensor layer_norm_op(Tensor x, MaybeTensor weight, MaybeTensor bias, int64_t dims, double eps) {
  return result("layer_norm", x, weight, bias, {static_cast<double>(dims), eps});
}

Tensor layer_norm_bound_op(Tensor x, MaybeTensor weight, MaybeTensor bias, Tensor call) {
  const char* op = "layer_norm_bound";
  return result(op, x, weight, bias, numbers_in<NormNumbers, double>(op, call));
}

void layer_norm_out_op(Tensor x, MaybeTensor weight, MaybeTensor bias, Tensor call, Tensor out) {
  const char* op = "layer_norm_out";
  const auto numbers = numbers_in<NormNumbers, double>(op, call);
  check_x(op, x, numbers);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  check_out(out, x.scalar_type(), shape, op);
  const bool rows = numbers.dims > 0, whole = !rows || (x.is_contiguous() && out.is_contiguous());
  if (whole && run_into(op, x, weight, bias, numbers, out)) return;
  torch::stable::copy_(out, result(op, x, weight, bias, numbers));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, int dims, float eps) -> Tensor");
  m.def("layer_norm_bound(Tensor x, Tensor? weight, Tensor? bias, Tensor call) -> Tensor");
  m.def("layer_norm_out(Tensor x, Tensor? weight, Tensor? bias, Tensor call, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm_op));
  m.impl("layer_norm_bound", TORCH_BOX(&layer_norm_bound_op));
  m.impl("layer_norm_out", TORCH_BOX(&layer_norm_out_op));
}

}  // namespace pk::binding
