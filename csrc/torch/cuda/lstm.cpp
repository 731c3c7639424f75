// torch.ops.pykernels.lstm, lstm_pack, lstm_packed, lstm_cell and lstm_cell_packed on CUDA; their schemas are in
// csrc/torch/cpu/lstm.cpp.
#include "torch/cuda/lstm_call.h"

namespace pk::binding {
namespace {

// A forward op's call and its results.
class ForwardCall : public LstmCall {
 public:
  using LstmCall::LstmCall;

  // The packed weights are known by their dtype and length alone: there is no header, for reading one would wait for
  // the device.
  void set_packed(const Tensor& given, int64_t input_size, int64_t hidden_size) {
    check(input_size == shape_.input, op_, "x", "expected ", input_size, " features, got shape ", shape_of(*x_));
    check(hidden_size == shape_.hidden, op_, cell_ ? "h" : "h0", "expected ", hidden_size, " units, got shape ",
          shape_of(*h0_));
    packed_ = dense(checked(given, {packed_elements()}, "packed"));
  }

  int64_t packed_elements() const {
    int64_t bytes = 0;
    check_status(cuda::lstm_packed_bytes(shape_, &bytes), op_);
    return bytes / static_cast<int64_t>(size_of(shape_.dtype));
  }

  Tensor pack() const {
    const Tensor packed = on_.empty({packed_elements()}, dtype_);
    check_status(cuda::lstm_pack(shape_, pointers_.data(), packed.mutable_data_ptr(), on_.stream()), op_);
    return packed;
  }

  void run(bool save) {
    h_n = on_.empty(state_shape(), dtype_);
    c_n = on_.empty(state_shape(), dtype_);
    cuda::LstmForward call;
    call.shape = shape_;
    call.x = read(*x_);
    call.h0 = h0_->const_data_ptr();
    call.c0 = c0_->const_data_ptr();
    call.weights = pointers_.data();
    if (packed_) call.packed = packed_->const_data_ptr();
    int64_t elements = 0;
    if (save) check_status(cuda::lstm_reserve_elements(shape_, &elements), op_);
    reserve = on_.empty({elements}, dtype_);
    if (elements) call.reserve = reserve->mutable_data_ptr();
    if (!cell_) {
      output = on_.empty(sequence_shape(shape_.directions * shape_.hidden), dtype_);
      call.output = sequence_of(*output, output->mutable_data_ptr());
    }
    call.h_n = h_n->mutable_data_ptr();
    call.c_n = c_n->mutable_data_ptr();
    check_status(cuda::lstm_forward_workspace(call, &call.workspace_bytes), op_);
    const Tensor workspace = on_.workspace(static_cast<size_t>(call.workspace_bytes));
    call.workspace = workspace.mutable_data_ptr();
    check_status(cuda::lstm_forward(call, on_.stream()), op_);
  }

  std::optional<Tensor> output, h_n, c_n, reserve;

 private:
  std::optional<Tensor> packed_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(Tensor x, Tensor h0, Tensor c0, Tensors weights,
                                                std::optional<Tensor> batch_sizes, int64_t num_layers,
                                                bool bidirectional, bool batch_first, bool has_bias, bool save) {
  ForwardCall call("lstm", x, h0, c0, batch_sizes, num_layers, bidirectional, batch_first);
  call.set_weights(weights, has_bias);
  call.run(save);
  return {*call.output, *call.h_n, *call.c_n, *call.reserve};
}

Tensor lstm_pack(Tensors weights, int64_t num_layers, bool bidirectional, bool has_bias) {
  static const char* const op = "lstm_pack";
  check(weights.size() >= 2, op, "weights", "expected w_ih, w_hh and so on, got ", weights.size(), " tensors");
  check(weights[0].dim() == 2 && weights[1].dim() == 2, op, "weights", "expected w_ih (4H, I) and w_hh (4H, H), got ",
        shape_of(weights[0]), " and ", shape_of(weights[1]));
  check(num_layers >= 1 && num_layers <= 1 << 16, op, "num_layers", "expected 1 to 65536, got ", num_layers);
  // An empty call of the right sizes: the same checks as at the call itself.
  const int64_t states = num_layers * (bidirectional ? 2 : 1);
  const Tensor x = torch::stable::new_empty(weights[0], {1, 0, weights[0].size(1)});
  const Tensor h = torch::stable::new_empty(weights[0], {states, 0, weights[1].size(1)});
  ForwardCall call(op, x, h, h, std::nullopt, num_layers, bidirectional, false);
  call.set_weights(weights, has_bias);
  return call.pack();
}

std::tuple<Tensor, Tensor, Tensor> lstm_packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int64_t input_size,
                                               int64_t hidden_size, std::optional<Tensor> batch_sizes,
                                               int64_t num_layers, bool bidirectional, bool batch_first) {
  ForwardCall call("lstm_packed", x, h0, c0, batch_sizes, num_layers, bidirectional, batch_first);
  call.set_packed(packed, input_size, hidden_size);
  call.run(false);
  return {*call.output, *call.h_n, *call.c_n};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh,
                                             std::optional<Tensor> b_ih, std::optional<Tensor> b_hh, bool save) {
  static const char* const op = "lstm_cell";
  ForwardCall call(op, x, h, c);
  check(b_ih.has_value() == b_hh.has_value(), op, "b_hh", "expected both biases or none, got one");
  Tensors weights = {w_ih, w_hh};
  if (b_ih) weights.insert(weights.end(), {*b_ih, *b_hh});
  call.set_weights(weights, b_ih.has_value());
  call.run(save);
  return {*call.h_n, *call.c_n, *call.reserve};
}

std::tuple<Tensor, Tensor> lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int64_t input_size,
                                            int64_t hidden_size) {
  ForwardCall call("lstm_cell_packed", x, h, c);
  call.set_packed(packed, input_size, hidden_size);
  call.run(false);
  return {*call.h_n, *call.c_n};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("lstm", TORCH_BOX(&pk::binding::lstm));
  m.impl("lstm_pack", TORCH_BOX(&pk::binding::lstm_pack));
  m.impl("lstm_packed", TORCH_BOX(&pk::binding::lstm_packed));
  m.impl("lstm_cell", TORCH_BOX(&pk::binding::lstm_cell));
  m.impl("lstm_cell_packed", TORCH_BOX(&pk::binding::lstm_cell_packed));
}
