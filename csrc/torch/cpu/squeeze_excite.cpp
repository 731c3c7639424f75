// squeeze_excite: see pykernels/ops/squeeze_excite for what it computes. squeeze_excite_out: the same into memory that
// is there, which may be x's own. int8_squeeze_excite, int8_squeeze_excite_out: of int8 maps.
#include "torch/cpu/squeeze_call.h"

namespace pk::binding {
namespace {

// y's memory format is x's.
Tensor squeeze_excite_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                         MaybeTensor expand_bias, int64_t activation, int64_t gate) {
  SqueezeCall call("squeeze_excite", false, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation,
                   gate);
  const Tensor y = empty_image(x, call.args.h, call.args.w);
  call.set_y(y);
  call.run(Scratch(call.plan.workspace_bytes).data());
  return y;
}

void squeeze_excite_out_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                           MaybeTensor expand_bias, int64_t activation, int64_t gate, Tensor out) {
  const char* op = "squeeze_excite_out";
  SqueezeCall call(op, false, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  check_out(out, x.scalar_type(), {call.args.n, call.args.c, call.args.h, call.args.w}, op);
  call.set_y(out);
  call.run(Scratch(call.plan.workspace_bytes).data());
}

Tensor int8_squeeze_excite_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                              MaybeTensor expand_bias, double x_scale, double out_scale, int64_t x_zero_point,
                              int64_t out_zero_point, int64_t activation, int64_t gate) {
  SqueezeCall call("int8_squeeze_excite", true, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation,
                   gate);
  call.set_grids(x_scale, x_zero_point, out_scale, out_zero_point);
  const Tensor y = empty_image(x, call.args.h, call.args.w);
  call.set_y(y);
  call.run(Scratch(call.plan.workspace_bytes).data());
  return y;
}

void int8_squeeze_excite_out_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                                MaybeTensor expand_bias, double x_scale, double out_scale, int64_t x_zero_point,
                                int64_t out_zero_point, int64_t activation, int64_t gate, Tensor out) {
  const char* op = "int8_squeeze_excite_out";
  SqueezeCall call(op, true, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  call.set_grids(x_scale, x_zero_point, out_scale, out_zero_point);
  check_out(out, ScalarType::Char, {call.args.n, call.args.c, call.args.h, call.args.w}, op);
  call.set_y(out);
  call.run(Scratch(call.plan.workspace_bytes).data());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "squeeze_excite(Tensor x, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, Tensor? expand_bias, "
      "int activation, int gate) -> Tensor");
  m.def(
      "squeeze_excite_out(Tensor x, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, "
      "Tensor? expand_bias, int activation, int gate, Tensor(a!) out) -> ()");
  m.def(
      "int8_squeeze_excite(Tensor x, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, "
      "Tensor? expand_bias, float x_scale, float out_scale, int x_zero_point, int out_zero_point, int activation, "
      "int gate) -> Tensor");
  m.def(
      "int8_squeeze_excite_out(Tensor x, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, "
      "Tensor? expand_bias, float x_scale, float out_scale, int x_zero_point, int out_zero_point, int activation, "
      "int gate, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite_op));
  m.impl("squeeze_excite_out", TORCH_BOX(&squeeze_excite_out_op));
  m.impl("int8_squeeze_excite", TORCH_BOX(&int8_squeeze_excite_op));
  m.impl("int8_squeeze_excite_out", TORCH_BOX(&int8_squeeze_excite_out_op));
}

}  // namespace pk::binding
