// torch.ops.pykernels.int8_lstm*: schemas, and the CPU kernels behind them.
#include "pykernels/int8_lstm.h"

#include "torch/cpu/on_cpu.h"
#include "torch/lstm.h"

namespace pk::binding {
namespace {

using Call = LstmCall<OnCpu>;

// What the weights of a call are, checked and contiguous.
struct Weights {
  Tensors kept;
  std::vector<Int8LstmWeights> cells;

  const Tensor& keep(const Call& c, const Tensor& t, ScalarType type, const std::vector<int64_t>& size,
                     const std::string& argument) {
    kept.push_back(dense(c.checked(t, type, size, argument.c_str())));
    return kept.back();
  }

  // In nn.LSTM's flat order, with two scales for each layer and direction.
  Weights(const Call& c, const Tensors& weights, const Tensors& scales) {
    static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
    const size_t per_cell = c.shape.bias ? 4 : 2, expected = static_cast<size_t>(lstm_weights(c.shape));
    check(weights.size() == expected, c.op, "weights", "expected ", expected, " tensors, got ", weights.size());
    check(scales.size() == 2 * expected / per_cell, c.op, "scales", "expected ", 2 * expected / per_cell,
          " tensors, got ", scales.size());
    kept.reserve(weights.size() + scales.size());
    cells.resize(expected / per_cell);
    const void* pointers[6] = {};
    for (size_t cell = 0; cell < cells.size(); ++cell) {
      for (size_t i = 0; i < per_cell; ++i) {
        const size_t at = cell * per_cell + i;
        const std::string argument = c.cell ? names[i] : "weights[" + std::to_string(at) + "] (" + names[i] + ")";
        const ScalarType type = i < 2 ? ScalarType::Char : ScalarType::Float;
        pointers[i] = keep(c, weights[at], type, c.weight_shape(at), argument).const_data_ptr();
      }
      for (size_t i = 0; i < 2; ++i) {
        const size_t at = 2 * cell + i;
        const std::string argument = c.cell ? i == 0 ? "s_ih" : "s_hh" : "scales[" + std::to_string(at) + "]";
        pointers[4 + i] = keep(c, scales[at], ScalarType::Float, {4 * c.shape.hidden}, argument).const_data_ptr();
      }
      cells[cell] = {static_cast<const int8_t*>(pointers[0]), static_cast<const int8_t*>(pointers[1]),
                     static_cast<const float*>(pointers[4]),  static_cast<const float*>(pointers[5]),
                     static_cast<const float*>(pointers[2]),  static_cast<const float*>(pointers[3])};
    }
  }
};

// A block of int8_lstm's, or one of lstm's: weight_only.
Tensor pack_weights(const Call& c, const Weights& weights, bool weight_only) {
  const auto by = [&](const auto& plan) {
    const Tensor packed = c.on.empty_packed(plan.packed_bytes, ScalarType::Byte);
    c.on.pack_by(plan, weights.cells.data(), packed.mutable_data_ptr());
    return packed;
  };
  if (weight_only) {
    LstmPackingPlan plan;
    check_status(make_int8_packing_plan(c.shape, &plan), c.op);
    return by(plan);
  }
  Int8LstmPackingPlan plan;
  check_status(make_packing_plan(c.shape, &plan), c.op);
  return by(plan);
}

// A cell has no output but h_n and c_n.
struct Results {
  MaybeTensor output;
  Tensor h_n, c_n;
};

template <class Args, class Plan>
Results forward_by(const Call& c, const Tensor& packed) {
  Args args;
  args.shape = c.shape;
  args.x = c.input(c.x);
  args.h0 = c.h0.const_data_ptr();
  args.c0 = c.c0.const_data_ptr();
  c.on.check(packed, "packed");
  check_dtype(packed, ScalarType::Byte, c.op, "packed");
  check(packed.dim() == 1, c.op, "packed", "expected 1 dimension, got shape ", shape_of(packed));
  const Tensor kept = dense(packed);
  args.packed = packed_data(kept);
  args.packed_bytes = kept.numel();
  Plan plan;
  c.on.plan(args, &plan);
  Results to{{}, c.empty(c.state_shape()), c.empty(c.state_shape())};
  plan.args.h_n = to.h_n.mutable_data_ptr();
  plan.args.c_n = to.c_n.mutable_data_ptr();
  if (!c.cell) {
    to.output = c.empty(c.sequence_shape(c.width()));
    plan.args.output = c.output(*to.output);
  }
  c.on.run_by(plan);
  return to;
}

Results forward(const Call& c, const Tensor& packed, bool weight_only = false) {
  return weight_only ? forward_by<LstmForwardArgs, LstmForwardPlan>(c, packed)
                     : forward_by<Int8LstmArgs, Int8LstmPlan>(c, packed);
}

std::tuple<Tensor, Tensor, Tensor> int8_lstm(Tensor x, Tensor h0, Tensor c0, Tensors weights, Tensors scales,
                                             MaybeTensor batch_sizes, int64_t num_layers, bool bidirectional,
                                             bool batch_first, bool has_bias, bool weight_only) {
  Call call("int8_lstm", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
  call.shape.bias = has_bias;
  const Results r = forward(call, pack_weights(call, Weights(call, weights, scales), weight_only), weight_only);
  return {*r.output, r.h_n, r.c_n};
}

Tensor int8_lstm_pack(Tensors weights, Tensors scales, int64_t num_layers, bool bidirectional, bool has_bias,
                      bool weight_only) {
  static const char* const op = "int8_lstm_pack";
  check(weights.size() >= 2, op, "weights", "expected w_ih, w_hh and so on, got ", weights.size(), " tensors");
  check(weights[0].dim() == 2 && weights[1].dim() == 2, op, "weights", "expected w_ih (4H, I) and w_hh (4H, H), got ",
        shape_of(weights[0]), " and ", shape_of(weights[1]));
  check(num_layers >= 1 && num_layers <= 1 << 16, op, "num_layers", "expected 1 to 65536, got ", num_layers);
  // A call of no rows that these weights suit: the same checks as at the call itself.
  const Tensor x = torch::stable::empty({1, 0, weights[0].size(1)}, ScalarType::Float);
  const Tensor h =
      torch::stable::empty({num_layers * (bidirectional ? 2 : 1), 0, weights[1].size(1)}, ScalarType::Float);
  Call call(op, x, h, h, std::nullopt, LstmFlags{num_layers, bidirectional, false});
  call.shape.bias = has_bias;
  return pack_weights(call, Weights(call, weights, scales), weight_only);
}

std::tuple<Tensor, Tensor, Tensor> int8_lstm_packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int64_t input_size,
                                                    int64_t hidden_size, MaybeTensor batch_sizes, int64_t num_layers,
                                                    bool bidirectional, bool batch_first) {
  const Call call("int8_lstm_packed", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
  call.check_packed_sizes(input_size, hidden_size);
  const Results r = forward(call, packed);
  return {*r.output, r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor> int8_lstm_cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor s_ih,
                                          Tensor s_hh, MaybeTensor b_ih, MaybeTensor b_hh, bool weight_only) {
  Call call("int8_lstm_cell", x, h, c);
  check(b_ih.has_value() == b_hh.has_value(), call.op, "b_hh", "expected both biases or none, got one");
  call.shape.bias = b_ih.has_value();
  Tensors weights = {w_ih, w_hh};
  if (b_ih) weights.insert(weights.end(), {*b_ih, *b_hh});
  const Tensor packed = pack_weights(call, Weights(call, weights, {s_ih, s_hh}), weight_only);
  const Results r = forward(call, packed, weight_only);
  return {r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor> int8_lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int64_t input_size,
                                                 int64_t hidden_size) {
  const Call call("int8_lstm_cell_packed", x, h, c);
  call.check_packed_sizes(input_size, hidden_size);
  const Results r = forward(call, packed);
  return {r.h_n, r.c_n};
}

}  // namespace
}  // namespace pk::binding

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "int8_lstm(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor[] scales, Tensor? batch_sizes, "
      "int num_layers, bool bidirectional, bool batch_first, bool has_bias, bool weight_only=False) -> (Tensor output, "
      "Tensor h_n, Tensor c_n)");
  m.def(
      "int8_lstm_pack(Tensor[] weights, Tensor[] scales, int num_layers, bool bidirectional, bool has_bias, "
      "bool weight_only=False) -> Tensor");
  m.def(
      "int8_lstm_packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int input_size, int hidden_size, "
      "Tensor? batch_sizes, int num_layers, bool bidirectional, bool batch_first) "
      "-> (Tensor output, Tensor h_n, Tensor c_n)");
  m.def(
      "int8_lstm_cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor s_ih, Tensor s_hh, Tensor? b_ih, "
      "Tensor? b_hh, bool weight_only=False) -> (Tensor h_out, Tensor c_out)");
  m.def(
      "int8_lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int input_size, int hidden_size) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  using namespace pk::binding;
  m.impl("int8_lstm", TORCH_BOX(&int8_lstm));
  m.impl("int8_lstm_pack", TORCH_BOX(&int8_lstm_pack));
  m.impl("int8_lstm_packed", TORCH_BOX(&int8_lstm_packed));
  m.impl("int8_lstm_cell", TORCH_BOX(&int8_lstm_cell));
  m.impl("int8_lstm_cell_packed", TORCH_BOX(&int8_lstm_cell_packed));
}
