// The int8 family's ops, written once for every device.
#pragma once

#include <tuple>

#include "torch/tensors.h"
// tensors.h first: it names torch's headers.
#include "pykernels/int8_matmul.h"

namespace pk::binding {

// Device is where the tensors have to be: OnCpu or OnDevice. The other types are its kernel API's.
template <class Device, class MatmulArgs, class MatmulPlan, class PackingPlan, class QuantizePlan>
class Int8Ops {
  using MaybeTensor = std::optional<Tensor>;

 public:
  static Tensor matmul(const Tensor& a, const Tensor& b, const MaybeTensor& a_scale, const MaybeTensor& b_scale,
                       const MaybeTensor& a_zero_point, const MaybeTensor& bias, int64_t activation,
                       ScalarType out_dtype) {
    Call call("int8_matmul", a, "a");
    call.set_int8_a(a);
    call.set_b(b);
    return call.run(a_scale, b_scale, a_zero_point, bias, activation, out_dtype);
  }

  static Tensor matmul_packed(const Tensor& a, const Tensor& packed, int64_t n, const MaybeTensor& a_scale,
                              const MaybeTensor& b_scale, const MaybeTensor& a_zero_point, const MaybeTensor& bias,
                              int64_t activation, ScalarType out_dtype) {
    Call call("int8_matmul_packed", a, "a");
    call.set_int8_a(a);
    call.set_packed(packed, n);
    return call.run(a_scale, b_scale, a_zero_point, bias, activation, out_dtype);
  }

  static Tensor linear(const Tensor& x, const Tensor& b, const Tensor& b_scale, const MaybeTensor& bias,
                       int64_t activation) {
    Call call("int8_linear", x, "x");
    call.set_float_a(x);
    call.set_b(b);
    return call.run(std::nullopt, b_scale, std::nullopt, bias, activation, x.scalar_type());
  }

  static Tensor linear_packed(const Tensor& x, const Tensor& packed, int64_t n, const Tensor& b_scale,
                              const MaybeTensor& bias, int64_t activation) {
    Call call("int8_linear_packed", x, "x");
    call.set_float_a(x);
    call.set_packed(packed, n);
    return call.run(std::nullopt, b_scale, std::nullopt, bias, activation, x.scalar_type());
  }

  static Tensor pack(const Tensor& b) {
    const char* op = "int8_pack";
    const Device on(op, b, "b");
    check_dtype(b, ScalarType::Char, op, "b");
    check_matrix(b, op, "b");
    PackingPlan plan;
    check_status(make_packing_plan(b.size(0), b.size(1), &plan), op);
    const Tensor packed = on.empty_packed(plan.packed_bytes, ScalarType::Byte);
    on.pack_by(plan, static_cast<const int8_t*>(b.const_data_ptr()), plan.k > 1 ? b.stride(0) : 1, b.stride(1),
               packed.mutable_data_ptr());
    return packed;
  }

  // axis < 0: one scale for all of x, which is seen as (outer, channels, inner), with one channel then.
  static std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, int64_t axis, bool symmetric) {
    const char* op = "quantize_int8";
    const Device on(op, x, "x");
    QuantizeInt8Args args;
    args.x_dtype = on.float_dtype(x.scalar_type(), "x");
    check(axis < x.dim(), op, "axis", "expected less than ", x.dim(), " for shape ", shape_of(x), ", got ", axis);
    args.inner = 1;
    std::vector<int64_t> sizes, slices;
    for (int64_t i = 0; i < x.dim(); ++i) {
      sizes.push_back(x.size(i));
      // An empty tensor's other sizes may be of any size.
      int64_t& size = i < axis ? args.outer : i == axis ? args.channels : args.inner;
      check(!__builtin_mul_overflow(size, x.size(i), &size), op, "x", "expected a smaller shape, got ", shape_of(x));
    }
    if (axis >= 0) slices.push_back(args.channels);
    const Tensor source = dense(x), q = on.empty(sizes, ScalarType::Char), scale = on.empty(slices, ScalarType::Float),
                 zero_point = on.empty(slices, ScalarType::Int);
    args.x = source.const_data_ptr();
    args.symmetric = symmetric;
    args.q = static_cast<int8_t*>(q.mutable_data_ptr());
    args.scale = static_cast<float*>(scale.mutable_data_ptr());
    args.zero_point = static_cast<int32_t*>(zero_point.mutable_data_ptr());
    QuantizePlan plan;
    on.plan(args, &plan);
    on.run_by(plan);
    return {q, scale, zero_point};
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("int8_matmul", TORCH_BOX(&matmul));
    m.impl("int8_pack", TORCH_BOX(&pack));
    m.impl("int8_matmul_packed", TORCH_BOX(&matmul_packed));
    m.impl("int8_linear", TORCH_BOX(&linear));
    m.impl("int8_linear_packed", TORCH_BOX(&linear_packed));
    m.impl("quantize_int8", TORCH_BOX(&quantize));
  }

 private:
  static void check_matrix(const Tensor& t, const char* op, const char* argument) {
    check(t.dim() == 2, op, argument, "expected a matrix, got shape ", shape_of(t));
  }

  // A product's arguments, and the tensors that they point into.
  struct Call {
    const char* op;
    Device on;
    MatmulArgs args;
    MaybeTensor rows, a_scale, b_scale, a_zero_point, bias;

    Call(const char* op, const Tensor& first, const char* argument) : op(op), on(op, first, argument) {}

    void set_int8_a(const Tensor& a) {
      check_dtype(a, ScalarType::Char, op, "a");
      check_matrix(a, op, "a");
      args.m = a.size(0);
      args.k = a.size(1);
      args.a = a.const_data_ptr();
      args.a_stride_m = a.stride(0);
      // A column of one element has no stride worth the name, and rows of stride 1 are the fast ones.
      args.a_stride_k = args.k > 1 ? a.stride(1) : 1;
    }

    // x with contiguous rows, to be quantised.
    void set_float_a(const Tensor& x) {
      args.a_dtype = on.float_dtype(x.scalar_type(), "x");
      check_matrix(x, op, "x");
      rows = last_contiguous(x);
      args.m = x.size(0);
      args.k = x.size(1);
      args.a = rows->const_data_ptr();
      args.a_stride_m = rows->stride(0);
      args.a_stride_k = 1;
    }

    void set_b(const Tensor& b) {
      on.check(b, "b");
      check_dtype(b, ScalarType::Char, op, "b");
      check_matrix(b, op, "b");
      check(b.size(0) == args.k, op, "b", "expected ", args.k, " rows, as the left side has columns, got shape ",
            shape_of(b));
      args.n = b.size(1);
      args.b = static_cast<const int8_t*>(b.const_data_ptr());
      args.b_stride_k = args.k > 1 ? b.stride(0) : 1;
      args.b_stride_n = b.stride(1);
    }

    void set_packed(const Tensor& packed, int64_t n) {
      on.check(packed, "packed");
      check_dtype(packed, ScalarType::Byte, op, "packed");
      check(packed.dim() == 1 && (packed.numel() <= 1 || packed.stride(0) == 1), op, "packed",
            "expected the contiguous 1-d tensor that int8_pack makes, got shape ", shape_of(packed));
      check(n >= 0, op, "n", "expected at least 0, got ", n);
      args.n = n;
      args.packed_bytes = packed.numel();
      args.packed = packed_data(packed);
    }

    // A vector of n, or of one element for all, with the stride 1 or 0 that the kernels want; `kept` owns it.
    template <class T>
    const T* vector(const MaybeTensor& t, int64_t n, ScalarType dtype, const char* argument, MaybeTensor* kept,
                    int64_t* stride) {
      if (!t) return nullptr;
      on.check(*t, argument);
      check_dtype(*t, dtype, op, argument);
      check(t->dim() <= 1 && (t->numel() == 1 || (t->dim() == 1 && t->size(0) == n)), op, argument,
            "expected one element, or shape (", n, "), got shape ", shape_of(*t));
      *stride = t->numel() == 1 ? 0 : 1;
      *kept = dense(*t);
      return static_cast<const T*>((*kept)->const_data_ptr());
    }

    Tensor run(const MaybeTensor& given_a_scale, const MaybeTensor& given_b_scale, const MaybeTensor& given_zero_point,
               const MaybeTensor& given_bias, int64_t activation, ScalarType out_dtype) {
      args.out_dtype = on.dtype(out_dtype, "out_dtype");
      args.activation = to_activation(activation, op);
      args.a_scale = vector<float>(given_a_scale, args.m, ScalarType::Float, "a_scale", &a_scale, &args.a_scale_stride);
      args.b_scale = vector<float>(given_b_scale, args.n, ScalarType::Float, "b_scale", &b_scale, &args.b_scale_stride);
      args.a_zero_point = vector<int32_t>(given_zero_point, args.m, ScalarType::Int, "a_zero_point", &a_zero_point,
                                          &args.a_zero_point_stride);
      if (given_bias) {
        on.check(*given_bias, "bias");
        check_dtype(*given_bias, ScalarType::Float, op, "bias");
        check_shape(*given_bias, {args.n}, op, "bias");
        bias = dense(*given_bias);
        args.bias = static_cast<const float*>(bias->const_data_ptr());
      }
      MatmulPlan plan;
      on.plan(args, &plan);
      const Tensor out = on.empty({args.m, args.n}, out_dtype);
      plan.args.out = out.mutable_data_ptr();
      on.run_by(plan);
      return out;
    }
  };
};

}  // namespace pk::binding
