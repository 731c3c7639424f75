// The checks of a call of squeeze_excite, for its own ops and for chains.
#pragma once

#include "pykernels/squeeze_excite.h"
#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {

// A call of squeeze_excite; the weights that had to be copied live as long.
struct SqueezeCall {
  const char* op;
  SqueezeExciteArgs args;
  SqueezeExcitePlan plan;
  Tensor reduce, expand;
  MaybeTensor reduce_bias, expand_bias;

  SqueezeCall(const char* name, const Tensor& x, const Tensor& w1, const MaybeTensor& b1, const Tensor& w2,
              const MaybeTensor& b2, int64_t activation, int64_t gate)
      : op(name), reduce(w1), expand(w2), reduce_bias(b1), expand_bias(b2) {
    check_cpu(x, op, "x");
    check_dim(x, 4, op, "x");
    args.dtype = to_float_dtype(x.scalar_type(), op, "x");
    args.n = x.size(0), args.c = x.size(1), args.h = x.size(2), args.w = x.size(3);
    args.x = data_of(x);
    for (int64_t i = 0; i < 4; ++i) args.x_stride[i] = x.stride(i);
    args.activation = to_activation(activation, op);
    args.gate = to_activation(gate, op);
    args.m = w1.dim() > 0 ? w1.size(0) : 0;
    args.reduce = weight(x, &reduce, args.m, args.c, "reduce_weight");
    args.expand = weight(x, &expand, args.c, args.m, "expand_weight");
    args.reduce_bias = bias(x, &reduce_bias, args.m, "reduce_bias");
    args.expand_bias = bias(x, &expand_bias, args.c, "expand_bias");
  }

  // A matrix, or the filters of a 1 x 1 convolution.
  const void* weight(const Tensor& x, Tensor* t, int64_t rows, int64_t columns, const char* argument) const {
    check_cpu(*t, op, argument);
    check_dtype(*t, x.scalar_type(), op, argument);
    if (t->dim() == 4) {
      check_shape(*t, {rows, columns, 1, 1}, op, argument);
    } else {
      check_shape(*t, {rows, columns}, op, argument);
    }
    *t = dense(*t);
    return data_of(*t);
  }

  const void* bias(const Tensor& x, MaybeTensor* t, int64_t size, const char* argument) const {
    if (!t->has_value()) return nullptr;
    check_cpu(**t, op, argument);
    check_dtype(**t, x.scalar_type(), op, argument);
    check_shape(**t, {size}, op, argument);
    *t = dense(**t);
    return data_of(**t);
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
