// torch.ops.pykernels.lstm, lstm_pack, lstm_packed, lstm_cell and lstm_cell_packed on CUDA; their schemas are in
// csrc/torch/cpu/lstm.cpp.
#include "torch/cuda/lstm_call.h"

namespace pk::binding {
namespace {

using Call = CudaLstmCall;

int64_t packed_elements(const Call& c) {
  int64_t bytes = 0;
  check_status(cuda::lstm_packed_bytes(c.shape, &bytes), c.op);
  return bytes / static_cast<int64_t>(size_of(c.shape.dtype));
}

// Outputs of a cell: only h_n and c_n are there.
struct Forward {
  MaybeTensor output;
  Tensor h_n, c_n, reserve;
};

Forward run_forward(const Call& c, const void* packed, bool save) {
  cuda::LstmForward args;
  c.set_inputs(&args);
  args.packed = packed;
  args.save = save;
  cuda::LstmForwardPlan plan;
  check_status(cuda::make_plan(args, &plan), c.op);
  cuda::LstmForward& call = plan.call;
  Forward to{{}, c.empty(c.state_shape()), c.empty(c.state_shape()), c.empty({plan.reserve_elements})};
  call.reserve = to.reserve.mutable_data_ptr();
  if (!c.cell) {
    to.output = c.empty(c.sequence_shape(c.width()));
    call.output = c.output(*to.output);
  }
  call.h_n = to.h_n.mutable_data_ptr();
  call.c_n = to.c_n.mutable_data_ptr();
  const Tensor workspace = c.on.workspace(plan.workspace_bytes);
  check_status(cuda::run(plan, workspace.mutable_data_ptr(), c.on.stream()), c.op);
  return to;
}

// The packed weights are known by their dtype and length alone: there is no header, for reading one would wait for the
// device.
Forward run_packed(const Call& c, const Tensor& given, int64_t input_size, int64_t hidden_size) {
  c.check_packed_sizes(input_size, hidden_size);
  const Tensor packed = dense(c.checked(given, c.dtype, {packed_elements(c)}, "packed"));
  return run_forward(c, packed.const_data_ptr(), false);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(Tensor x, Tensor h0, Tensor c0, Tensors weights,
                                                MaybeTensor batch_sizes, int64_t num_layers, bool bidirectional,
                                                bool batch_first, bool has_bias, bool save) {
  Call call("lstm", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
  call.set_weights(weights, has_bias);
  Forward r = run_forward(call, nullptr, save);
  return {*r.output, r.h_n, r.c_n, r.reserve};
}

Tensor lstm_pack(Tensors weights, int64_t num_layers, bool bidirectional, bool has_bias) {
  Call call = packing_call<Call>("lstm_pack", weights, num_layers, bidirectional);
  call.set_weights(weights, has_bias);
  const Tensor packed = call.empty({packed_elements(call)});
  check_status(cuda::lstm_pack(call.shape, call.pointers.data(), packed.mutable_data_ptr(), call.on.stream()), call.op);
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
  Forward r = run_forward(call, nullptr, save);
  return {r.h_n, r.c_n, r.reserve};
}

std::tuple<Tensor, Tensor> lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int64_t input_size,
                                            int64_t hidden_size) {
  Forward r = run_packed(Call("lstm_cell_packed", x, h, c), packed, input_size, hidden_size);
  return {r.h_n, r.c_n};
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
