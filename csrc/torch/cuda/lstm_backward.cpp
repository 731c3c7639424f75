// torch.ops.pykernels.lstm_backward and lstm_cell_backward on CUDA; their schemas are in csrc/torch/cpu/lstm.cpp.
#include "torch/cuda/lstm_call.h"

namespace pk::binding {
namespace {

// A backward op's call and its results.
class BackwardCall : public LstmCall {
 public:
  using LstmCall::LstmCall;

  void run(const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_h,
           const std::optional<Tensor>& grad_c, const std::optional<Tensor>& output, const Tensor& given_reserve) {
    cuda::LstmBackward call;
    call.shape = shape_;
    Tensors kept;  // contiguous copies, until the kernels are in the stream
    const auto sequence = [&](const Tensor& t, const char* argument) {
      kept.push_back(last_contiguous(checked(t, sequence_shape(shape_.directions * shape_.hidden), argument)));
      return read(kept.back());
    };
    const auto state = [&](const Tensor& t, const char* argument) {
      kept.push_back(dense(checked(t, state_shape(), argument)));
      return kept.back().const_data_ptr();
    };
    if (grad_output) call.grad_output = sequence(*grad_output, "grad_output");
    if (grad_h) call.grad_h_n = state(*grad_h, cell_ ? "grad_h" : "grad_h_n");
    if (grad_c) call.grad_c_n = state(*grad_c, cell_ ? "grad_c" : "grad_c_n");
    if (output) call.output = sequence(*output, "output");

    grad_x = on_.empty(sequence_shape(shape_.input), dtype_);
    grad_h0 = on_.empty(state_shape(), dtype_);
    grad_c0 = on_.empty(state_shape(), dtype_);
    std::vector<void*> grad_pointers;
    for (size_t i = 0; i < pointers_.size(); ++i) {
      grad_weights.push_back(on_.empty(weight_shape(i), dtype_));
      grad_pointers.push_back(grad_weights.back().mutable_data_ptr());
    }
    call.x = read(*x_);
    call.h0 = h0_->const_data_ptr();
    call.c0 = c0_->const_data_ptr();
    call.weights = pointers_.data();
    call.grad_x = sequence_of(*grad_x, grad_x->mutable_data_ptr());
    call.grad_h0 = grad_h0->mutable_data_ptr();
    call.grad_c0 = grad_c0->mutable_data_ptr();
    call.grad_weights = grad_pointers.data();
    check_status(cuda::lstm_backward_workspace(call, &call.workspace_bytes), op_);  // and checks the shape
    const int64_t saved = cuda::lstm_reserve_output(shape_, shape_.layers - 1);     // behind which there is nothing
    kept.push_back(dense(checked(given_reserve, {saved}, "reserve")));
    call.reserve = kept.back().const_data_ptr();
    const Tensor workspace = on_.workspace(static_cast<size_t>(call.workspace_bytes));
    call.workspace = workspace.mutable_data_ptr();
    check_status(cuda::lstm_backward(call, on_.stream()), op_);
  }

  Tensor empty() const { return on_.empty({0}, dtype_); }

  std::optional<Tensor> grad_x, grad_h0, grad_c0;
  Tensors grad_weights;
};

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward(std::optional<Tensor> grad_output,
                                                          std::optional<Tensor> grad_h_n,
                                                          std::optional<Tensor> grad_c_n, Tensor x, Tensor h0,
                                                          Tensor c0, Tensors weights, std::optional<Tensor> batch_sizes,
                                                          Tensor output, Tensor reserve, int64_t num_layers,
                                                          bool bidirectional, bool batch_first, bool has_bias) {
  BackwardCall call("lstm_backward", x, h0, c0, batch_sizes, num_layers, bidirectional, batch_first);
  call.set_weights(weights, has_bias);
  call.run(grad_output, grad_h_n, grad_c_n, output, reserve);
  return {*call.grad_x, *call.grad_h0, *call.grad_c0, call.grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell_backward(std::optional<Tensor> grad_h,
                                                                                      std::optional<Tensor> grad_c,
                                                                                      Tensor x, Tensor h, Tensor c,
                                                                                      Tensor w_ih, Tensor w_hh,
                                                                                      Tensor reserve, bool has_bias) {
  BackwardCall call("lstm_cell_backward", x, h, c);
  call.set_weights({w_ih, w_hh}, has_bias);
  call.run(std::nullopt, grad_h, grad_c, std::nullopt, reserve);  // one step reads no output
  Tensors& grads = call.grad_weights;
  if (!has_bias) grads.insert(grads.end(), {call.empty(), call.empty()});
  return {*call.grad_x, *call.grad_h0, *call.grad_c0, grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("lstm_backward", TORCH_BOX(&pk::binding::lstm_backward));
  m.impl("lstm_cell_backward", TORCH_BOX(&pk::binding::lstm_cell_backward));
}
