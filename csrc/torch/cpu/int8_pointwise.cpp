// int8_quantize, int8_dequantize: see pykernels/ops/int8_pointwise for what they compute. With _out: into memory that
// is there, in any memory format.
#include "pykernels/int8_pointwise.h"

#include <cmath>

#include "torch/tensors.h"

namespace pk::binding {
namespace {

using MemoryFormat = torch::headeronly::MemoryFormat;
using Kind = Int8PointwiseKind;
using Args = Int8PointwiseArgs;

bool has_channels_last(const Tensor& x) { return x.dim() == 4 && is_channels_last(x); }

// In x's memory format where x has four dimensions, else contiguous.
Tensor empty_as(const Tensor& x, ScalarType dtype) {
  std::vector<int64_t> sizes, strides;
  for (int64_t d = 0; d < x.dim(); ++d) sizes.push_back(x.size(d));
  if (!has_channels_last(x) && sizes.size() > 4) return torch::stable::empty(sizes, dtype);
  if (x.dim() == 4) {
    const auto least_1 = [](int64_t size) { return size > 1 ? size : int64_t{1}; };
    const int64_t c = least_1(sizes[1]), h = least_1(sizes[2]), w = least_1(sizes[3]);
    const int64_t last[4] = {c * h * w, 1, w * c, c}, planes[4] = {c * h * w, h * w, w, 1};
    return empty_strided(sizes.data(), has_channels_last(x) ? last : planes, 4, dtype);
  }
  return empty(sizes.data(), sizes.size(), dtype);
}

// Fails, and writes nothing, where the elements of x or of y are not adjacent.
Status run_where_adjacent(Args args, const Tensor& x, const Tensor& y) {
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  if (x.is_contiguous() && y.is_contiguous()) {  // of any number of dimensions
    args.dim = 1, args.size[0] = x.numel(), args.x_stride[0] = args.y_stride[0] = 1;
  } else {
    if (x.dim() > kInt8PointwiseDims) return {"x: expected at most 8 dimensions"};
    args.dim = x.dim();
    for (int64_t d = 0; d < args.dim; ++d) {
      args.size[d] = x.size(d), args.x_stride[d] = x.stride(d), args.y_stride[d] = y.stride(d);
    }
  }
  Int8PointwisePlan plan;
  PK_TRY(make_plan(args, &plan));
  pk::run(plan, torch_executor());
  return kOk;
}

void run_into(const char* op, const Args& args, const Tensor& x, const Tensor& y) {
  if (run_where_adjacent(args, x, y)) return;
  const auto format = has_channels_last(y) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor dense_x = torch::stable::contiguous(x, format);
  if (run_where_adjacent(args, dense_x, y)) return;
  const Tensor dense_y = empty_as(dense_x, y.scalar_type());
  check_status(run_where_adjacent(args, dense_x, dense_y), op);
  Tensor to = y;
  torch::stable::copy_(to, dense_y);
}

int32_t zero_point_of(int64_t zero_point, const char* op) {
  check(zero_point >= -128 && zero_point <= 127, op, "zero_point", "expected an int in [-128, 127], got ", zero_point);
  return static_cast<int32_t>(zero_point);
}

// Such that neither it nor its inverse is a subnormal number.
float scale_of(double scale, const char* op) {
  check(scale >= 0x1p-126 && scale <= 0x1p126, op, "scale", "expected a number of 2^-126 to 2^126, got ", scale);
  return static_cast<float>(scale);
}

Args quantize_args(const char* op, const Tensor& x, double scale, int64_t zero_point) {
  check_cpu(x, op, "x");
  Args args;
  args.kind = Kind::quantize;
  args.dtype = to_float_dtype(x.scalar_type(), op, "x");
  scale_of(scale, op);
  args.y_inverse = static_cast<float>(1.0 / scale);
  args.y_zero = zero_point_of(zero_point, op);
  return args;
}

Args dequantize_args(const char* op, const Tensor& q, double scale, int64_t zero_point, ScalarType dtype,
                     const char* argument) {
  check_cpu(q, op, "q");
  check_dtype(q, ScalarType::Char, op, "q");
  Args args;
  args.kind = Kind::dequantize;
  args.dtype = to_float_dtype(dtype, op, argument);
  args.x_scale = scale_of(scale, op);
  args.x_zero = zero_point_of(zero_point, op);
  return args;
}

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

Tensor int8_quantize_op(Tensor x, double scale, int64_t zero_point) {
  const char* op = "int8_quantize";
  const Args args = quantize_args(op, x, scale, zero_point);
  const Tensor y = empty_as(x, ScalarType::Char);
  run_into(op, args, x, y);
  return y;
}

void int8_quantize_out_op(Tensor x, double scale, int64_t zero_point, Tensor out) {
  const char* op = "int8_quantize_out";
  const Args args = quantize_args(op, x, scale, zero_point);
  check_out(out, ScalarType::Char, sizes_of(x), op);
  run_into(op, args, x, out);
}

Tensor int8_dequantize_op(Tensor q, double scale, int64_t zero_point, ScalarType dtype) {
  const char* op = "int8_dequantize";
  const Args args = dequantize_args(op, q, scale, zero_point, dtype, "dtype");
  const Tensor y = empty_as(q, dtype);
  run_into(op, args, q, y);
  return y;
}

void int8_dequantize_out_op(Tensor q, double scale, int64_t zero_point, Tensor out) {
  const char* op = "int8_dequantize_out";
  const Args args = dequantize_args(op, q, scale, zero_point, out.scalar_type(), "out");
  check_out(out, out.scalar_type(), sizes_of(q), op);
  run_into(op, args, q, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("int8_quantize(Tensor x, float scale, int zero_point) -> Tensor");
  m.def("int8_quantize_out(Tensor x, float scale, int zero_point, Tensor(a!) out) -> ()");
  m.def("int8_dequantize(Tensor q, float scale, int zero_point, ScalarType dtype) -> Tensor");
  m.def("int8_dequantize_out(Tensor q, float scale, int zero_point, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("int8_quantize", TORCH_BOX(&int8_quantize_op));
  m.impl("int8_quantize_out", TORCH_BOX(&int8_quantize_out_op));
  m.impl("int8_dequantize", TORCH_BOX(&int8_dequantize_op));
  m.impl("int8_dequantize_out", TORCH_BOX(&int8_dequantize_out_op));
}

}  // namespace pk::binding
