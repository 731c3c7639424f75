// squeeze_excite: see pykernels/ops/squeeze_excite for what it computes. squeeze_excite_out: the same into memory that
// is there, which may be x's own.
#include "torch/cpu/squeeze_call.h"

namespace pk::binding {
namespace {

// y's memory format is x's.
Tensor squeeze_excite_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                         MaybeTensor expand_bias, int64_t activation, int64_t gate) {
  SqueezeCall call("squeeze_excite", x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  const Tensor y = empty_image(x, call.args.h, call.args.w);
  call.set_y(y);
  call.run(Scratch(call.plan.workspace_bytes).data());
  return y;
}

void squeeze_excite_out_op(Tensor x, Tensor reduce_weight, MaybeTensor reduce_bias, Tensor expand_weight,
                           MaybeTensor expand_bias, int64_t activation, int64_t gate, Tensor out) {
  const char* op = "squeeze_excite_out";
  SqueezeCall call(op, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate);
  check_out(out, x.scalar_type(), {call.args.n, call.args.c, call.args.h, call.args.w}, op);
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
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite_op));
  m.impl("squeeze_excite_out", TORCH_BOX(&squeeze_excite_out_op));
}

}  // namespace pk::binding
