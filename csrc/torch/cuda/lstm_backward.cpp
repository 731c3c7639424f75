// torch.ops.pykernels.lstm_backward and lstm_cell_backward on CUDA; their schemas are in csrc/torch/cpu/lstm.cpp.
#include "torch/cuda/lstm_call.h"

namespace pk::binding {
namespace {

using Call = CudaLstmCall;

// The gradients of x, h0, c0 and the weights.
std::tuple<Tensor, Tensor, Tensor, Tensors> run_backward(const Call& c, const MaybeTensor& grad_output,
                                                         const MaybeTensor& grad_h, const MaybeTensor& grad_c,
                                                         const MaybeTensor& output, const Tensor& given_reserve) {
  cuda::LstmBackward call;
  c.set_inputs(&call);
  Tensors kept;  // contiguous copies, until the kernels are in the stream
  const auto sequence = [&](const Tensor& t, const char* argument) {
    kept.push_back(c.sequence(t, argument));
    return c.input(kept.back());
  };
  const auto state = [&](const Tensor& t, const char* argument) {
    kept.push_back(c.state(t, argument));
    return kept.back().const_data_ptr();
  };
  if (grad_output) call.grad_output = sequence(*grad_output, "grad_output");
  if (grad_h) call.grad_h_n = state(*grad_h, c.cell ? "grad_h" : "grad_h_n");
  if (grad_c) call.grad_c_n = state(*grad_c, c.cell ? "grad_c" : "grad_c_n");
  if (output) call.output = sequence(*output, "output");

  const Call::Gradients to = c.make_gradients(&call);
  cuda::LstmBackwardPlan plan;
  check_status(cuda::make_plan(call, &plan), c.op);
  const int64_t saved = cuda::lstm_reserve_output(c.shape, c.shape.layers - 1);  // behind which there is nothing
  kept.push_back(dense(c.checked(given_reserve, c.dtype, {saved}, "reserve")));
  plan.call.reserve = kept.back().const_data_ptr();
  const Tensor workspace = c.on.workspace(plan.workspace_bytes);
  check_status(cuda::run(plan, workspace.mutable_data_ptr(), c.on.stream()), c.op);
  return {to.x, to.h0, to.c0, to.weights};
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell_backward(MaybeTensor grad_h,
                                                                                      MaybeTensor grad_c, Tensor x,
                                                                                      Tensor h, Tensor c, Tensor w_ih,
                                                                                      Tensor w_hh, Tensor reserve,
                                                                                      bool has_bias) {
  Call call("lstm_cell_backward", x, h, c);
  call.set_weights({w_ih, w_hh}, has_bias);
  // One step reads no output.
  auto [grad_x, grad_h0, grad_c0, grads] = run_backward(call, std::nullopt, grad_h, grad_c, std::nullopt, reserve);
  if (!has_bias) grads.insert(grads.end(), {call.empty({0}), call.empty({0})});
  return {grad_x, grad_h0, grad_c0, grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("lstm_backward", TORCH_BOX(&pk::binding::lstm_backward));
  m.impl("lstm_cell_backward", TORCH_BOX(&pk::binding::lstm_cell_backward));
}
