// weight_only_linear: see pykernels/ops/weight_only_linear for what it computes.
#include "pykernels/weight_only_linear.h"

#include "torch/cpu/on_cpu.h"

namespace pk::binding {
namespace {

using MaybeTensor = std::optional<Tensor>;

// A weight with its scales and its bias, checked and contiguous.
struct Weight {
  Tensor weight, scale;
  MaybeTensor bias;

  Weight(const char* op, const OnCpu& on, const Tensor& w, const Tensor& s, const MaybeTensor& b)
      : weight(matrix(op, on, w)), scale(vector(op, on, s, "scale")) {
    if (b) bias = vector(op, on, *b, "bias");
  }

  const int8_t* data() const { return static_cast<const int8_t*>(weight.const_data_ptr()); }
  const float* scales() const { return static_cast<const float*>(scale.const_data_ptr()); }
  const float* biases() const { return bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr; }

 private:
  static Tensor matrix(const char* op, const OnCpu& on, const Tensor& w) {
    on.check(w, "weight");
    check_dtype(w, ScalarType::Char, op, "weight");
    check(w.dim() == 2, op, "weight", "expected a matrix, got shape ", shape_of(w));
    return dense(w);
  }
  Tensor vector(const char* op, const OnCpu& on, const Tensor& t, const char* argument) const {
    on.check(t, argument);
    check_dtype(t, ScalarType::Float, op, argument);
    check_shape(t, {weight.size(0)}, op, argument);
    return dense(t);
  }
};

// x, with contiguous rows, and what is computed of it.
struct Call {
  const char* op;
  OnCpu on;
  Tensor rows;
  WeightOnlyLinearArgs args;

  Call(const char* op, const Tensor& x, int64_t activation) : op(op), on(op, x, "x"), rows(matrix(op, x)) {
    args.dtype = on.float_dtype(x.scalar_type(), "x");
    args.m = rows.size(0);
    args.k = rows.size(1);
    args.x = rows.const_data_ptr();
    args.x_stride = rows.stride(0);
    args.activation = to_activation(activation, op);
  }

  Tensor run() const {
    WeightOnlyLinearPlan plan;
    on.plan(args, &plan);
    const Tensor y = on.empty({args.m, args.n}, rows.scalar_type());
    plan.args.y = y.mutable_data_ptr();
    on.run_by(plan);
    return y;
  }

 private:
  static Tensor matrix(const char* op, const Tensor& x) {
    check(x.dim() == 2, op, "x", "expected a matrix, got shape ", shape_of(x));
    return last_contiguous(x);
  }
};

Tensor weight_only_linear(Tensor x, Tensor weight, Tensor scale, MaybeTensor bias, int64_t activation) {
  Call call("weight_only_linear", x, activation);
  const Weight w(call.op, call.on, weight, scale, bias);
  check(w.weight.size(1) == call.args.k, call.op, "weight", "expected ", call.args.k, " columns, as x has, got shape ",
        shape_of(weight));
  call.args.n = w.weight.size(0);
  call.args.weight = w.data(), call.args.scale = w.scales(), call.args.bias = w.biases();
  return call.run();
}

Tensor weight_only_linear_pack(Tensor weight, Tensor scale, MaybeTensor bias) {
  const char* op = "weight_only_linear_pack";
  const OnCpu on(op, weight, "weight");
  const Weight w(op, on, weight, scale, bias);
  WeightOnlyLinearPackingPlan plan;
  check_status(make_packing_plan(w.weight.size(0), w.weight.size(1), &plan), op);
  const Tensor packed = on.empty_packed(plan.packed_bytes, ScalarType::Byte);
  on.pack_by(plan, w.data(), w.scales(), w.biases(), packed.mutable_data_ptr());
  return packed;
}

Tensor weight_only_linear_packed(Tensor x, Tensor packed, int64_t n, int64_t activation) {
  Call call("weight_only_linear_packed", x, activation);
  call.on.check(packed, "packed");
  check_dtype(packed, ScalarType::Byte, call.op, "packed");
  check(packed.dim() == 1 && (packed.numel() <= 1 || packed.stride(0) == 1), call.op, "packed",
        "expected the contiguous 1-d tensor that weight_only_linear_pack makes, got shape ", shape_of(packed));
  check(n >= 0, call.op, "n", "expected at least 0, got ", n);
  call.args.n = n;
  call.args.packed = packed_data(packed);
  call.args.packed_bytes = packed.numel();
  return call.run();
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("weight_only_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int activation) -> Tensor");
  m.def("weight_only_linear_pack(Tensor weight, Tensor scale, Tensor? bias) -> Tensor");
  m.def("weight_only_linear_packed(Tensor x, Tensor packed, SymInt n, int activation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  using namespace pk::binding;
  m.impl("weight_only_linear", TORCH_BOX(&weight_only_linear));
  m.impl("weight_only_linear_pack", TORCH_BOX(&weight_only_linear_pack));
  m.impl("weight_only_linear_packed", TORCH_BOX(&weight_only_linear_packed));
}
