// torch.ops.pykernels.lstm*: schemas, and the CPU kernels behind them.
#include "torch/lstm.h"

namespace pk::binding {
namespace {

struct OnCpu {
  const char* op;

  OnCpu(const char* op, const Tensor& first, const char* argument) : op(op) { check(first, argument); }
  void check(const Tensor& t, const char* argument) const { check_cpu(t, op, argument); }
  static DType dtype(const char* op, ScalarType t) {
    binding::check(t == ScalarType::Float || t == ScalarType::BFloat16, op, "x",
                   "the CPU kernels take float32 and bfloat16, got ", dtype_name(t));
    return to_dtype(t, op, "x");
  }
};
using Call = LstmCall<OnCpu>;

// Outputs of a cell: only h_n and c_n are there.
struct Forward {
  MaybeTensor output, reserve;
  Tensor h_n, c_n;
};

Forward run_forward(const Call& c, LstmForward call) {
  c.set_inputs(&call);
  LstmForwardPlan plan;
  check_status(make_plan(call, torch_executor(), &plan), c.op);
  Forward to{{}, {}, c.empty(c.state_shape()), c.empty(c.state_shape())};
  plan.call.h_n = to.h_n.mutable_data_ptr();
  plan.call.c_n = to.c_n.mutable_data_ptr();
  if (!c.cell) {
    to.output = c.empty(c.sequence_shape(c.width()));
    plan.call.output = c.output(*to.output);
  }
  if (!call.packed) {
    to.reserve = c.empty({plan.reserve_floats}, ScalarType::Float);
    plan.call.reserve = to.reserve->mutable_data_ptr();
  }
  run(plan, Scratch(plan.workspace_bytes).data());
  return to;
}

Forward run_forward(const Call& c, bool save) {
  LstmForward call;
  call.save = save;
  return run_forward(c, call);
}

Forward run_packed(const Call& c, const Tensor& given, int64_t input_size, int64_t hidden_size) {
  c.check_packed_sizes(input_size, hidden_size);
  c.on.check(given, "packed");
  check_dtype(given, ScalarType::Byte, c.op, "packed");
  check(given.dim() == 1, c.op, "packed", "expected 1 dimension, got shape ", shape_of(given));
  const Tensor packed = dense(given);
  // An empty tensor has no address, and a null one means "not packed".
  static const char nothing = 0;
  LstmForward call;
  call.packed_bytes = packed.numel();
  call.packed = call.packed_bytes ? packed.const_data_ptr() : &nothing;
  return run_forward(c, call);
}

// The gradients of x, h0, c0 and the weights.
std::tuple<Tensor, Tensor, Tensor, Tensors> run_backward(const Call& c, MaybeTensor grad_output, MaybeTensor grad_h_n,
                                                         MaybeTensor grad_c_n, const Tensor& output,
                                                         const Tensor& given_reserve) {
  LstmBackward call;
  c.set_inputs(&call);
  if (grad_output) {
    grad_output = c.sequence(*grad_output, "grad_output");
    call.grad_output = c.input(*grad_output);
  }
  if (grad_h_n) {
    grad_h_n = c.state(*grad_h_n, c.cell ? "grad_h" : "grad_h_n");
    call.grad_h_n = grad_h_n->const_data_ptr();
  }
  if (grad_c_n) {
    grad_c_n = c.state(*grad_c_n, c.cell ? "grad_c" : "grad_c_n");
    call.grad_c_n = grad_c_n->const_data_ptr();
  }
  const Tensor y = c.sequence(output, "output");
  call.output = c.input(y);
  const Call::Gradients to = c.make_gradients(&call);
  LstmBackwardPlan plan;
  check_status(make_plan(call, torch_executor(), &plan), c.op);
  const Tensor reserve = dense(c.checked(given_reserve, ScalarType::Float, {plan.reserve_floats}, "reserve"));
  plan.call.reserve = reserve.const_data_ptr();
  run(plan, Scratch(plan.workspace_bytes).data());
  return {to.x, to.h0, to.c0, to.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(Tensor x, Tensor h0, Tensor c0, Tensors weights,
                                                MaybeTensor batch_sizes, int64_t num_layers, bool bidirectional,
                                                bool batch_first, bool has_bias, bool save) {
  Call call("lstm", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
  call.set_weights(weights, has_bias);
  Forward r = run_forward(call, save);
  return {*r.output, r.h_n, r.c_n, *r.reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward(MaybeTensor grad_output, MaybeTensor grad_h_n,
                                                          MaybeTensor grad_c_n, Tensor x, Tensor h0, Tensor c0,
                                                          Tensors weights, MaybeTensor batch_sizes, Tensor output,
                                                          Tensor reserve, int64_t num_layers, bool bidirectional,
                                                          bool batch_first, bool has_bias) {
  Call call("lstm_backward", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
  call.set_weights(weights, has_bias);
  return run_backward(call, grad_output, grad_h_n, grad_c_n, output, reserve);
}

Tensor lstm_pack(Tensors weights, int64_t num_layers, bool bidirectional, bool has_bias) {
  Call call = packing_call<Call>("lstm_pack", weights, num_layers, bidirectional);
  call.set_weights(weights, has_bias);
  int64_t bytes;
  check_status(lstm_packed_bytes(call.shape, &bytes), call.op);
  Tensor packed = call.empty({bytes}, ScalarType::Byte);
  check_status(pk::lstm_pack(call.shape, call.pointers.data(), packed.mutable_data_ptr(), bytes, torch_executor()),
               call.op);
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> lstm_packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int64_t input_size,
                                               int64_t hidden_size, MaybeTensor batch_sizes, int64_t num_layers,
                                               bool bidirectional, bool batch_first) {
  const Call call("lstm_packed", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
  Forward r = run_packed(call, packed, input_size, hidden_size);
  return {*r.output, r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, MaybeTensor b_ih,
                                             MaybeTensor b_hh, bool save) {
  Call call("lstm_cell", x, h, c);
  call.set_cell_weights(w_ih, w_hh, b_ih, b_hh);
  Forward r = run_forward(call, save);
  return {r.h_n, r.c_n, *r.reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell_backward(MaybeTensor grad_h,
                                                                                      MaybeTensor grad_c, Tensor x,
                                                                                      Tensor h, Tensor c, Tensor w_ih,
                                                                                      Tensor w_hh, Tensor reserve,
                                                                                      bool has_bias) {
  Call call("lstm_cell_backward", x, h, c);
  call.set_weights({w_ih, w_hh}, has_bias);
  // One step reads no output.
  const Tensor output = call.empty(call.sequence_shape(call.width()));
  auto [grad_x, grad_h0, grad_c0, grads] = run_backward(call, std::nullopt, grad_h, grad_c, output, reserve);
  if (!has_bias) grads.insert(grads.end(), {call.empty({0}), call.empty({0})});
  return {grad_x, grad_h0, grad_c0, grads[0], grads[1], grads[2], grads[3]};
}

std::tuple<Tensor, Tensor> lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int64_t input_size,
                                            int64_t hidden_size) {
  Forward r = run_packed(Call("lstm_cell_packed", x, h, c), packed, input_size, hidden_size);
  return {r.h_n, r.c_n};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "lstm(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? batch_sizes, int num_layers, bool bidirectional, "
      "bool batch_first, bool has_bias, bool save) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)");
  m.def(
      "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor h0, Tensor c0, "
      "Tensor[] weights, Tensor? batch_sizes, Tensor output, Tensor reserve, int num_layers, bool bidirectional, "
      "bool batch_first, bool has_bias) -> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");
  m.def("lstm_pack(Tensor[] weights, int num_layers, bool bidirectional, bool has_bias) -> Tensor");
  m.def(
      "lstm_packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int input_size, int hidden_size, "
      "Tensor? batch_sizes, int num_layers, bool bidirectional, bool batch_first) "
      "-> (Tensor output, Tensor h_n, Tensor c_n)");
  m.def(
      "lstm_cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, bool save) "
      "-> (Tensor h_out, Tensor c_out, Tensor reserve)");
  m.def(
      "lstm_cell_backward(Tensor? grad_h, Tensor? grad_c, Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, "
      "Tensor reserve, bool has_bias) -> (Tensor grad_x, Tensor grad_h_in, Tensor grad_c_in, Tensor grad_w_ih, "
      "Tensor grad_w_hh, Tensor grad_b_ih, Tensor grad_b_hh)");
  m.def(
      "lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int input_size, int hidden_size) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("lstm", TORCH_BOX(&pk::binding::lstm));
  m.impl("lstm_backward", TORCH_BOX(&pk::binding::lstm_backward));
  m.impl("lstm_pack", TORCH_BOX(&pk::binding::lstm_pack));
  m.impl("lstm_packed", TORCH_BOX(&pk::binding::lstm_packed));
  m.impl("lstm_cell", TORCH_BOX(&pk::binding::lstm_cell));
  m.impl("lstm_cell_backward", TORCH_BOX(&pk::binding::lstm_cell_backward));
  m.impl("lstm_cell_packed", TORCH_BOX(&pk::binding::lstm_cell_packed));
}
