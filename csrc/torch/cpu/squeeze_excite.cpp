// squeeze_excite: see pykernels/ops/squeeze_excite for what it computes. squeeze_excite_out: the same into memory that
// is there, which may be x's own.
#include "pykernels/squeeze_excite.h"

#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

// What a call of either has besides y; the weights that had to be copied live as long.
struct SqueezeCall {
  const char* op;
  SqueezeExciteArgs args;
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

  void run_into(const Tensor& y) {
    args.y = y.mutable_data_ptr();
    for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = y.stride(i);
    SqueezeExcitePlan plan;
    check_status(make_plan(args, &plan), op);
    pk::run(plan, Scratch(plan.workspace_bytes).data(), torch_executor());
  }
};

// y's memory format is x's.
Tensor squeeze_excite_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                         MaybeTensor expand_bias, int64_t activation, int64_t gate) {
  SqueezeCall call("squeeze_excite", x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  const Tensor y = empty_image(x, call.args.h, call.args.w);
  call.run_into(y);
  return y;
}

void squeeze_excite_out_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                           MaybeTensor expand_bias, int64_t activation, int64_t gate, Tensor out) {
  const char* op = "squeeze_excite_out";
  SqueezeCall call(op, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  check_out(out, x.scalar_type(), {call.args.n, call.args.c, call.args.h, call.args.w}, op);
  call.run_into(out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "squeeze_excite(Tensor x, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, Tensor? expand_bias, "
      "int activation, int gate) -> Tensor");
  m.def(
      "squeeze_excite_out(Tensor x, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, "
      "Tensor? expand_bias, int activation, int gate, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite_op));
  m.impl("squeeze_excite_out", TORCH_BOX(&squeeze_excite_out_op));
}

}  // namespace pk::binding
