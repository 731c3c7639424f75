// torch.ops.pykernels.lstm*: schemas, and the CPU kernels behind them.
#include "torch/lstm.h"

#include "torch/cpu/on_cpu.h"

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
  using namespace pk;
  binding::LstmOps<binding::OnCpu, LstmForwardArgs, LstmForwardPlan, LstmBackwardArgs, LstmBackwardPlan,
                   LstmPackingPlan>::implement(m);
}
