// int8_quantize, int8_dequantize, int8_add, int8_lookup, int8_affine: see pykernels/ops/int8_pointwise for what they
// compute. With _out: into memory that is there, in any memory format; `call` of int8_add_out and int8_affine_out holds
// the numbers of an AddCall and of an AffineCall (arguments.py).
#include "pykernels/int8_pointwise.h"

#include "torch/boxed.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

using MemoryFormat = torch::headeronly::MemoryFormat;
using Kind = Int8PointwiseKind;
using Args = Int8PointwiseArgs;

bool has_channels_last(const Tensor& x) { return x.dim() == 4 && is_channels_last(x); }

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

// In x's memory format where x has four dimensions, else contiguous.
Tensor empty_as(const Tensor& x, ScalarType dtype) {
  const std::vector<int64_t> sizes = sizes_of(x);
  if (!has_channels_last(x) && sizes.size() > 4) return torch::stable::empty(sizes, dtype);
  if (x.dim() == 4) {
    const auto least_1 = [](int64_t size) { return size > 1 ? size : int64_t{1}; };
    const int64_t c = least_1(sizes[1]), h = least_1(sizes[2]), w = least_1(sizes[3]);
    const int64_t last[4] = {c * h * w, 1, w * c, c}, planes[4] = {c * h * w, h * w, w, 1};
    return empty_strided(sizes.data(), has_channels_last(x) ? last : planes, 4, dtype);
  }
  return empty(sizes.data(), sizes.size(), dtype);
}

// Fails, and writes nothing, where the elements of a tensor are not adjacent. b: of `add`, or x.
Status run_where_adjacent(Args args, const Tensor& x, const Tensor& b, const Tensor& y) {
  args.x = x.const_data_ptr();
  if (args.kind == Kind::add) args.b = b.const_data_ptr();
  args.y = y.mutable_data_ptr();
  if (x.is_contiguous() && b.is_contiguous() && y.is_contiguous()) {  // of any number of dimensions
    args.dim = 1, args.size[0] = x.numel(), args.x_stride[0] = args.b_stride[0] = args.y_stride[0] = 1;
  } else {
    if (x.dim() > kInt8PointwiseDims) return {"x: expected at most 8 dimensions"};
    args.dim = x.dim();
    for (int64_t d = 0; d < args.dim; ++d) {
      args.size[d] = x.size(d);
      args.x_stride[d] = x.stride(d), args.b_stride[d] = b.stride(d), args.y_stride[d] = y.stride(d);
    }
  }
  Int8PointwisePlan plan;
  PK_TRY(make_plan(args, &plan));
  pk::run(plan, torch_executor());
  return kOk;
}

void run_into(const char* op, const Args& args, const Tensor& x, const Tensor& b, const Tensor& y) {
  if (run_where_adjacent(args, x, b, y)) return;
  const auto format = has_channels_last(y) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor dense_x = torch::stable::contiguous(x, format), dense_b = torch::stable::contiguous(b, format);
  if (run_where_adjacent(args, dense_x, dense_b, y)) return;
  const Tensor dense_y = empty_as(dense_x, y.scalar_type());
  check_status(run_where_adjacent(args, dense_x, dense_b, dense_y), op);
  Tensor to = y;
  torch::stable::copy_(to, dense_y);
}
void run_into(const char* op, const Args& args, const Tensor& x, const Tensor& y) { run_into(op, args, x, x, y); }

int32_t zero_point_of(double zero_point, const char* op, const char* argument = "zero_point") {
  check(zero_point >= -128 && zero_point <= 127, op, argument, "expected an int in [-128, 127], got ", zero_point);
  return static_cast<int32_t>(zero_point);
}

// Such that neither it nor its inverse is a subnormal number.
float scale_of(double scale, const char* op, const char* argument = "scale") {
  check(scale >= 0x1p-126 && scale <= 0x1p126, op, argument, "expected a number of 2^-126 to 2^126, got ", scale);
  return static_cast<float>(scale);
}

Args quantize_args(const char* op, const Tensor& x, double scale, int64_t zero_point) {
  check_cpu(x, op, "x");
  Args args;
  args.kind = Kind::quantize;
  args.dtype = to_float_dtype(x.scalar_type(), op, "x");
  scale_of(scale, op);
  args.y_inverse = static_cast<float>(1.0 / scale);
  args.y_zero = zero_point_of(static_cast<double>(zero_point), op);
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
  args.x_zero = zero_point_of(static_cast<double>(zero_point), op);
  return args;
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

// What int8_add takes besides its tensors; in the order of AddCall, of which int8_add_out's `call` has all as numbers.
struct AddNumbers {
  double a_scale, b_scale, out_scale, a_zero_point, b_zero_point, out_zero_point, activation, negative_slope;
};
struct AddCall {
  double a_scale, b_scale, out_scale;
  int64_t a_zero_point, b_zero_point, out_zero_point, activation;
  double negative_slope;

  void each(auto&& field) {
    field("a_scale", a_scale), field("b_scale", b_scale), field("out_scale", out_scale);
    field("a_zero_point", a_zero_point), field("b_zero_point", b_zero_point), field("out_zero_point", out_zero_point);
    field("activation", activation), field("negative_slope", negative_slope);
  }
  AddNumbers numbers() const {
    const auto d = [](int64_t i) { return static_cast<double>(i); };
    return {a_scale,         b_scale,           out_scale,     d(a_zero_point),
            d(b_zero_point), d(out_zero_point), d(activation), negative_slope};
  }
};

Args add_args(const char* op, const Tensor& a, const Tensor& b, const AddNumbers& call) {
  check_cpu(a, op, "a");
  check_dtype(a, ScalarType::Char, op, "a");
  check_cpu(b, op, "b");
  check_dtype(b, ScalarType::Char, op, "b");
  check_shape(b, sizes_of(a), op, "b");
  Args args;
  args.kind = Kind::add;
  args.x_scale = scale_of(call.a_scale, op, "a_scale");
  args.b_scale = scale_of(call.b_scale, op, "b_scale");
  scale_of(call.out_scale, op, "out_scale");
  args.y_inverse = static_cast<float>(1.0 / call.out_scale);
  args.x_zero = zero_point_of(call.a_zero_point, op, "a_zero_point");
  args.b_zero = zero_point_of(call.b_zero_point, op, "b_zero_point");
  args.y_zero = zero_point_of(call.out_zero_point, op, "out_zero_point");
  args.activation = to_activation(static_cast<int64_t>(call.activation), op);
  args.negative_slope = static_cast<float>(call.negative_slope);
  return args;
}

Tensor int8_add_op(Tensor a, Tensor b, AddCall call) {
  const char* op = "int8_add";
  const Args args = add_args(op, a, b, call.numbers());
  const Tensor y = empty_as(a, ScalarType::Char);
  run_into(op, args, a, b, y);
  return y;
}

void int8_add_out_op(Tensor a, Tensor b, Tensor call, Tensor out) {
  const char* op = "int8_add_out";
  const Args args = add_args(op, a, b, numbers_in<AddNumbers, double>(op, call));
  check_out(out, ScalarType::Char, sizes_of(a), op);
  run_into(op, args, a, b, out);
}

// `keep` holds the table that the arguments point to.
Args lookup_args(const char* op, const Tensor& q, const Tensor& table, Tensor* keep) {
  check_cpu(q, op, "q");
  check_dtype(q, ScalarType::Char, op, "q");
  check_cpu(table, op, "table");
  check_dtype(table, ScalarType::Char, op, "table");
  check_shape(table, {256}, op, "table");
  *keep = dense(table);
  Args args;
  args.kind = Kind::lookup;
  args.table = static_cast<const int8_t*>(keep->const_data_ptr());
  return args;
}

Tensor int8_lookup_op(Tensor q, Tensor table) {
  const char* op = "int8_lookup";
  Tensor keep = table;
  const Args args = lookup_args(op, q, table, &keep);
  const Tensor y = empty_as(q, ScalarType::Char);
  run_into(op, args, q, y);
  return y;
}

void int8_lookup_out_op(Tensor q, Tensor table, Tensor out) {
  const char* op = "int8_lookup_out";
  Tensor keep = table;
  const Args args = lookup_args(op, q, table, &keep);
  check_out(out, ScalarType::Char, sizes_of(q), op);
  run_into(op, args, q, out);
}

// What int8_affine takes besides its tensors, in the order of its schema.
struct AffineNumbers {
  double out_scale, out_zero_point, activation, negative_slope;
};

// A call but for y.
struct Affine {
  std::vector<Int8Piece> pieces;
  std::vector<int64_t> sizes;  // y's
  Tensor scale, shift;         // contiguous
  Int8AffineArgs args;

  Affine(const char* op, const std::vector<Tensor>& xs, const Tensor& scale_of_channels,
         const Tensor& shift_of_channels, const AffineNumbers& call)
      : scale(scale_of_channels), shift(shift_of_channels) {
    check(!xs.empty(), op, "x", "expected at least one tensor");
    const Tensor& first = xs[0];
    check(first.dim() >= 2 && first.dim() <= 4, op, "x", "expected (N, C), (N, C, L) or (N, C, H, W), got shape ",
          shape_of(first));
    sizes = sizes_of(first);
    sizes[1] = 0;
    for (const Tensor& x : xs) {
      check_cpu(x, op, "x");
      check_dtype(x, ScalarType::Char, op, "x");
      bool alike = x.dim() == first.dim();
      for (int64_t d = 0; alike && d < x.dim(); ++d) alike = d == 1 || x.size(d) == first.size(d);
      check(alike, op, "x", "expected tensors that differ only in their channels, got shapes ", shape_of(first),
            " and ", shape_of(x));
      sizes[1] += x.size(1);
      pieces.push_back({static_cast<const int8_t*>(x.const_data_ptr()), x.size(1), {}});
      put_strides(x, pieces.back().stride);
    }
    args.n = sizes[0], args.c = sizes[1];
    args.h = sizes.size() == 4 ? sizes[2] : 1;
    args.w = sizes.size() > 2 ? sizes.back() : 1;
    args.x = pieces.data();
    args.pieces = static_cast<int64_t>(pieces.size());
    args.scale = vector(&scale, op, "scale");
    args.shift = vector(&shift, op, "shift");
    pk::binding::scale_of(call.out_scale, op, "out_scale");
    args.y_inverse = static_cast<float>(1.0 / call.out_scale);
    args.y_zero = zero_point_of(call.out_zero_point, op, "out_zero_point");
    args.activation = to_activation(static_cast<int64_t>(call.activation), op);
    args.negative_slope = static_cast<float>(call.negative_slope);
  }
  Affine(const Affine&) = delete;  // args point into it

  void run_into(const char* op, const Tensor& y) {
    args.y = static_cast<int8_t*>(y.mutable_data_ptr());
    put_strides(y, args.y_stride);
    Int8AffinePlan plan;
    check_status(make_plan(args, &plan), op);
    pk::run(plan, torch_executor());
  }

 private:
  // Those of two to four dimensions as four.
  static void put_strides(const Tensor& t, int64_t (&stride)[4]) {
    stride[0] = t.stride(0), stride[1] = t.stride(1), stride[2] = stride[3] = 0;
    for (int64_t d = t.dim(), to = 4; d-- > 2;) stride[--to] = t.stride(d);
  }

  const float* vector(Tensor* t, const char* op, const char* argument) const {
    check_cpu(*t, op, argument);
    check_dtype(*t, ScalarType::Float, op, argument);
    check_shape(*t, {args.c}, op, argument);
    *t = dense(*t);
    return static_cast<const float*>(t->const_data_ptr());
  }
};

Tensor int8_affine_op(std::vector<Tensor> x, Tensor scale, Tensor shift, double out_scale, int64_t out_zero_point,
                      int64_t activation, double negative_slope) {
  const char* op = "int8_affine";
  Affine call(op, x, scale, shift,
              {out_scale, static_cast<double>(out_zero_point), static_cast<double>(activation), negative_slope});
  const bool last = has_channels_last(x[0]);
  int64_t strides[4] = {}, step = 1;
  const int64_t orders[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};  // from the innermost dimension on
  for (const int64_t d : orders[last]) {
    if (d >= static_cast<int64_t>(call.sizes.size())) continue;
    strides[d] = step;
    step *= call.sizes[static_cast<size_t>(d)] > 1 ? call.sizes[static_cast<size_t>(d)] : 1;
  }
  const Tensor y = empty_strided(call.sizes.data(), strides, call.sizes.size(), ScalarType::Char);
  call.run_into(op, y);
  return y;
}

void int8_affine_out_op(std::vector<Tensor> x, Tensor scale, Tensor shift, Tensor call, Tensor out) {
  const char* op = "int8_affine_out";
  Affine affine(op, x, scale, shift, numbers_in<AffineNumbers, double>(op, call));
  check_out(out, ScalarType::Char, affine.sizes, op);
  affine.run_into(op, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("int8_quantize(Tensor x, float scale, int zero_point) -> Tensor");
  m.def("int8_quantize_out(Tensor x, float scale, int zero_point, Tensor(a!) out) -> ()");
  m.def("int8_dequantize(Tensor q, float scale, int zero_point, ScalarType dtype) -> Tensor");
  m.def("int8_dequantize_out(Tensor q, float scale, int zero_point, Tensor(a!) out) -> ()");
  define<AddCall>(m, "int8_add(Tensor a, Tensor b, {}) -> Tensor");
  m.def("int8_add_out(Tensor a, Tensor b, Tensor call, Tensor(a!) out) -> ()");
  m.def("int8_lookup(Tensor q, Tensor table) -> Tensor");
  m.def("int8_lookup_out(Tensor q, Tensor table, Tensor(a!) out) -> ()");
  m.def(
      "int8_affine(Tensor[] x, Tensor scale, Tensor shift, float out_scale, int out_zero_point, int activation, "
      "float negative_slope) -> Tensor");
  m.def("int8_affine_out(Tensor[] x, Tensor scale, Tensor shift, Tensor call, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("int8_quantize", TORCH_BOX(&int8_quantize_op));
  m.impl("int8_quantize_out", TORCH_BOX(&int8_quantize_out_op));
  m.impl("int8_dequantize", TORCH_BOX(&int8_dequantize_op));
  m.impl("int8_dequantize_out", TORCH_BOX(&int8_dequantize_out_op));
  m.impl("int8_add", &boxed<&int8_add_op>);
  m.impl("int8_add_out", TORCH_BOX(&int8_add_out_op));
  m.impl("int8_lookup", TORCH_BOX(&int8_lookup_op));
  m.impl("int8_lookup_out", TORCH_BOX(&int8_lookup_out_op));
  m.impl("int8_affine", TORCH_BOX(&int8_affine_op));
  m.impl("int8_affine_out", TORCH_BOX(&int8_affine_out_op));
}

}  // namespace pk::binding
