// The checks of a call of squeeze_excite, for its own ops and for chains.
#pragma once

#include "pykernels/squeeze_excite.h"
#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {

// What a call of squeeze_excite or int8_squeeze_excite has; the weights that had to be copied live as long.
struct SqueezeCall {
  const char* op;
  ScalarType dtype;  // of the weights
  SqueezeExciteArgs args;
  SqueezeExcitePlan plan;
  Tensor reduce, expand;
  MaybeTensor reduce_bias, expand_bias;

  SqueezeCall(const char* name, bool int8, const Tensor& x, const Tensor& w1, const MaybeTensor& b1, const Tensor& w2,
              const MaybeTensor& b2, int64_t activation, int64_t gate)
      : op(name),
        dtype(int8 ? ScalarType::Float : x.scalar_type()),
        reduce(w1),
        expand(w2),
        reduce_bias(b1),
        expand_bias(b2) {
    check_cpu(x, op, "x");
    check_dim(x, 4, op, "x");
    if (int8) check_dtype(x, ScalarType::Char, op, "x");
    args.dtype = int8 ? DType::i8 : to_float_dtype(x.scalar_type(), op, "x");
    args.n = x.size(0), args.c = x.size(1), args.h = x.size(2), args.w = x.size(3);
    args.x = data_of(x);
    for (int64_t i = 0; i < 4; ++i) args.x_stride[i] = x.stride(i);
    args.activation = to_activation(activation, op);
    args.gate = to_activation(gate, op);
    args.m = w1.dim() > 0 ? w1.size(0) : 0;
    args.reduce = weight(&reduce, args.m, args.c, "reduce_weight");
    args.expand = weight(&expand, args.c, args.m, "expand_weight");
    args.reduce_bias = bias(&reduce_bias, args.m, "reduce_bias");
    args.expand_bias = bias(&expand_bias, args.c, "expand_bias");
  }

  // A matrix, or the filters of a 1 x 1 convolution.
  const void* weight(Tensor* t, int64_t rows, int64_t columns, const char* argument) const {
    check_cpu(*t, op, argument);
    check_dtype(*t, dtype, op, argument);
    if (t->dim() == 4) {
      check_shape(*t, {rows, columns, 1, 1}, op, argument);
    } else {
      check_shape(*t, {rows, columns}, op, argument);
    }
    *t = dense(*t);
    return data_of(*t);
  }

  const void* bias(MaybeTensor* t, int64_t size, const char* argument) const {
    if (!t->has_value()) return nullptr;
    check_cpu(**t, op, argument);
    check_dtype(**t, dtype, op, argument);
    check_shape(**t, {size}, op, argument);
    *t = dense(**t);
    return data_of(**t);
  }

  void set_grids(double x_scale, int64_t x_zero_point, double out_scale, int64_t out_zero_point) {
    const auto scale_of = [this](double scale, const char* argument) {
      check(scale >= 0x1p-126 && scale <= 0x1p126, op, argument, "expected a number of 2^-126 to 2^126, got ", scale);
      return scale;
    };
    const auto zero_of = [this](int64_t zero, const char* argument) {
      check(zero >= -128 && zero <= 127, op, argument, "expected an int in [-128, 127], got ", zero);
      return static_cast<int32_t>(zero);
    };
    args.x_scale = static_cast<float>(scale_of(x_scale, "x_scale"));
    args.y_inverse = static_cast<float>(1.0 / scale_of(out_scale, "out_scale"));
    args.x_zero = zero_of(x_zero_point, "x_zero_point");
    args.y_zero = zero_of(out_zero_point, "out_zero_point");
  }

  // And plans.
  void set_y(const Tensor& y) {
    args.y = y.mutable_data_ptr();
    for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = y.stride(i);
    check_status(make_plan(args, &plan), op);
  }

  void run(void* workspace) const { pk::run(plan, workspace, torch_executor()); }
};

}  // namespace pk::binding
