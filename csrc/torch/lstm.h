// The LSTM's ops, written once for every device: a call's arguments, checked, and what they run.
#pragma once

#include "torch/tensors.h"
// tensors.h first: it names torch's headers.
#include <algorithm>
#include <functional>
#include <tuple>

#include "pykernels/lstm.h"

namespace pk::binding {

using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

// The flags of a call of whole sequences.
struct LstmFlags {
  int64_t num_layers;
  bool bidirectional, batch_first;
};

// What an op was called with; the tensors are kept contiguous where the kernels want them so. Device is where they have
// to be: OnCpu or OnDevice.
template <class Device>
struct LstmCall {
  const char* op;
  Device on;
  LstmShape shape;
  Tensor x, h0, c0;
  MaybeTensor sizes;
  std::vector<int64_t> starts;
  Tensors weights;
  std::vector<const void*> pointers;  // the weights' data
  ScalarType dtype;
  bool batch_first = false;
  bool cell = false;  // one step, whose tensors have no dimension for it

  LstmCall(const LstmCall&) = delete;  // shape points into it
  LstmCall& operator=(const LstmCall&) = delete;

  // A cell: x (B, I), h and c (B, H).
  LstmCall(const char* op, const Tensor& x, const Tensor& h, const Tensor& c)
      : op(op), on(op, x, "x"), x(x), h0(h), c0(c), dtype(x.scalar_type()), cell(true) {
    shape.dtype = on.float_dtype(dtype, "x");
    check(x.dim() == 2, op, "x", "expected shape (B, I), got ", shape_of(x));
    check(h.dim() == 2, op, "h", "expected shape (B, H), got ", shape_of(h));
    shape.steps = 1;
    shape.batch = x.size(0);
    shape.input = x.size(1);
    set_states("h", "c");
  }

  LstmCall(const char* op, const Tensor& x, const Tensor& h0, const Tensor& c0, const MaybeTensor& batch_sizes,
           const LstmFlags& flags)
      : op(op), on(op, x, "x"), x(x), h0(h0), c0(c0), dtype(x.scalar_type()), batch_first(flags.batch_first) {
    shape.dtype = on.float_dtype(dtype, "x");
    check(flags.num_layers >= 1 && flags.num_layers <= 1 << 16, op, "num_layers", "expected 1 to 65536, got ",
          flags.num_layers);
    shape.layers = static_cast<int>(flags.num_layers);
    shape.directions = flags.bidirectional ? 2 : 1;
    const int64_t dim = batch_sizes ? 2 : 3;
    check(x.dim() == dim, op, "x", "expected ", dim, " dimensions, got shape ", shape_of(x));
    shape.input = x.size(dim - 1);
    if (batch_sizes) {
      read_batch_sizes(*batch_sizes);
    } else {
      shape.steps = x.size(batch_first ? 1 : 0);
      shape.batch = x.size(batch_first ? 0 : 1);
    }
    check(shape.steps > 0, op, "x", "expected sequence length to be larger than 0, got shape ", shape_of(x));
    check(h0.dim() == 3, op, "h0", "expected 3 dimensions, got shape ", shape_of(h0));
    set_states("h0", "c0");
  }

  std::vector<int64_t> state_shape() const {
    if (cell) return {shape.batch, shape.hidden};
    return {static_cast<int64_t>(shape.layers) * shape.directions, shape.batch, shape.hidden};
  }
  std::vector<int64_t> sequence_shape(int64_t features) const {
    if (sizes || cell) return {x.size(0), features};
    return batch_first ? std::vector<int64_t>{shape.batch, shape.steps, features}
                       : std::vector<int64_t>{shape.steps, shape.batch, features};
  }
  std::vector<int64_t> weight_shape(size_t i) const {
    const size_t per_cell = shape.bias ? 4 : 2, which = i % per_cell;
    std::vector<int64_t> size = {4 * shape.hidden};
    const int layer = static_cast<int>(i / per_cell) / shape.directions;
    if (which < 2) size.push_back(which == 0 ? lstm_input(shape, layer) : shape.hidden);
    return size;
  }
  int64_t width() const { return shape.directions * shape.hidden; }

  const Tensor& checked(const Tensor& t, ScalarType type, const std::vector<int64_t>& size,
                        const char* argument) const {
    on.check(t, argument);
    check_dtype(t, type, op, argument);
    check_shape(t, size, op, argument);
    return t;
  }
  Tensor state(const Tensor& t, const char* argument) const {
    return dense(checked(t, dtype, state_shape(), argument));
  }
  // One of output's shape.
  Tensor sequence(const Tensor& t, const char* argument) const {
    return last_contiguous(checked(t, dtype, sequence_shape(width()), argument));
  }

  // A cell's `given` may lack the biases: lstm_cell_backward gets none, as they are not read.
  void set_weights(const Tensors& given, bool has_bias) {
    static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
    shape.bias = has_bias;
    const auto expected = static_cast<size_t>(lstm_weights(shape));
    check(cell || given.size() == expected, op, "weights", "expected ", expected, " tensors, got ", given.size());
    pointers.resize(expected);
    for (size_t i = 0; i < given.size(); ++i) {
      const char* const name = names[i % (has_bias ? 4 : 2)];
      const std::string argument = cell ? name : "weights[" + std::to_string(i) + "] (" + name + ")";
      weights.push_back(dense(checked(given[i], dtype, weight_shape(i), argument.c_str())));
      pointers[i] = weights[i].const_data_ptr();
    }
  }
  void set_cell_weights(const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& b_ih, const MaybeTensor& b_hh) {
    check(b_ih.has_value() == b_hh.has_value(), op, "b_hh", "expected both biases or none, got one");
    Tensors given = {w_ih, w_hh};
    if (b_ih) given.insert(given.end(), {*b_ih, *b_hh});
    set_weights(given, b_ih.has_value());
  }

  // The sizes that the caller packed the weights for.
  void check_packed_sizes(int64_t input_size, int64_t hidden_size) const {
    check(input_size == shape.input, op, "x", "expected ", input_size, " features, got shape ", shape_of(x));
    check(hidden_size == shape.hidden, op, cell ? "h" : "h0", "expected ", hidden_size, " units, got shape ",
          shape_of(h0));
  }

  // The kernels read an input's data and write an output's; the struct is the same.
  LstmSequence input(const Tensor& t) const { return sequence_of(t, const_cast<void*>(t.const_data_ptr())); }
  LstmSequence output(const Tensor& t) const { return sequence_of(t, t.mutable_data_ptr()); }

  // The tensors of `Args`, either pass's, that are known by now.
  template <class Args>
  void set_inputs(Args* args) const {
    args->shape = shape;
    args->x = input(x);
    args->h0 = h0.const_data_ptr();
    args->c0 = c0.const_data_ptr();
    args->weights = pointers.data();
  }

  // The outputs of a backward pass; its `Args` point to them.
  struct Gradients {
    Tensor x, h0, c0;
    Tensors weights;
    std::vector<void*> pointers;  // the weights' data
  };
  template <class Args>
  Gradients make_gradients(Args* args) const {
    Gradients to{empty(sequence_shape(shape.input)), empty(state_shape()), empty(state_shape()), {}, {}};
    for (size_t i = 0; i < pointers.size(); ++i) {
      to.weights.push_back(empty(weight_shape(i)));
      to.pointers.push_back(to.weights.back().mutable_data_ptr());
    }
    args->grad_x = output(to.x);
    args->grad_h0 = to.h0.mutable_data_ptr();
    args->grad_c0 = to.c0.mutable_data_ptr();
    args->grad_weights = to.pointers.data();  // which a move of `to` leaves where they are
    return to;
  }

  Tensor empty(const std::vector<int64_t>& size) const { return empty(size, x.scalar_type()); }
  Tensor empty(const std::vector<int64_t>& size, ScalarType type) const {
    return binding::empty(size.data(), size.size(), type, &x);
  }

 private:
  void set_states(const char* h_name, const char* c_name) {
    shape.hidden = h0.size(h0.dim() - 1);
    check(shape.hidden >= 1, op, h_name, "expected a hidden size of at least 1, got shape ", shape_of(h0));
    x = last_contiguous(x);
    h0 = state(h0, h_name);
    c0 = state(c0, c_name);
  }

  void read_batch_sizes(const Tensor& given) {
    static const char* const argument = "batch_sizes";
    check_cpu(given, op, argument);
    check_dtype(given, ScalarType::Long, op, argument);
    check(given.dim() == 1, op, argument, "expected 1 dimension, got shape ", shape_of(given));
    sizes = dense(given);
    shape.steps = sizes->size(0);
    check(shape.steps > 0, op, argument, "expected sequence length to be larger than 0, got shape ", shape_of(given));
    const int64_t* const p = static_cast<const int64_t*>(sizes->const_data_ptr());
    starts.resize(static_cast<size_t>(shape.steps) + 1);
    if (!lstm_starts(p, shape.steps, starts.data())) {
      const int64_t* const end = p + shape.steps;
      const int64_t* const risen = std::is_sorted_until(p, end, std::greater<>());
      const int64_t bad = risen == end ? end[-1] : *risen;
      // A last size that is good was added to too many others.
      fail(op, argument, "expected positive sizes that don't increase", bad < 1 || risen != end ? "" : ", and fewer",
           ", got ", bad);
    }
    check(starts.back() == x.size(0), op, argument, "expected a sum of x's ", x.size(0), " rows, got ", starts.back());
    shape.batch = p[0];
    shape.batch_sizes = p;
    shape.starts = starts.data();
  }

  LstmSequence sequence_of(const Tensor& t, void* data) const {
    if (sizes || cell) return {data, 0, t.stride(0)};
    return {data, t.stride(batch_first ? 1 : 0), t.stride(batch_first ? 0 : 1)};
  }
};

// A call of no rows that these weights suit, for packing them: the same checks as at the call itself.
template <class Call>
Call packing_call(const char* op, const Tensors& weights, int64_t num_layers, bool bidirectional) {
  check(weights.size() >= 2, op, "weights", "expected w_ih, w_hh and so on, got ", weights.size(), " tensors");
  check(weights[0].dim() == 2 && weights[1].dim() == 2, op, "weights", "expected w_ih (4H, I) and w_hh (4H, H), got ",
        shape_of(weights[0]), " and ", shape_of(weights[1]));
  check(num_layers >= 1 && num_layers <= 1 << 16, op, "num_layers", "expected 1 to 65536, got ", num_layers);
  const int64_t states = num_layers * (bidirectional ? 2 : 1);
  const Tensor x = torch::stable::new_empty(weights[0], {1, 0, weights[0].size(1)});
  const Tensor h = torch::stable::new_empty(weights[0], {states, 0, weights[1].size(1)});
  return Call(op, x, h, h, std::nullopt, LstmFlags{num_layers, bidirectional, false});
}

// The ops. Device is OnCpu or OnDevice; the other types are its kernel API's.
template <class Device, class ForwardArgs, class ForwardPlan, class BackwardArgs, class BackwardPlan, class PackingPlan>
class LstmOps {
  using Call = LstmCall<Device>;

 public:
  static std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(Tensor x, Tensor h0, Tensor c0, Tensors weights,
                                                         MaybeTensor batch_sizes, int64_t num_layers,
                                                         bool bidirectional, bool batch_first, bool has_bias,
                                                         bool save) {
    Call call("lstm", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
    call.set_weights(weights, has_bias);
    Forward r = forward(call, nullptr, save);
    return {*r.output, r.h_n, r.c_n, *r.reserve};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensors> backward(MaybeTensor grad_output, MaybeTensor grad_h_n,
                                                              MaybeTensor grad_c_n, Tensor x, Tensor h0, Tensor c0,
                                                              Tensors weights, MaybeTensor batch_sizes, Tensor output,
                                                              Tensor reserve, int64_t num_layers, bool bidirectional,
                                                              bool batch_first, bool has_bias) {
    Call call("lstm_backward", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
    call.set_weights(weights, has_bias);
    return gradients(call, grad_output, grad_h_n, grad_c_n, output, reserve);
  }

  static Tensor pack(Tensors weights, int64_t num_layers, bool bidirectional, bool has_bias) {
    Call call = packing_call<Call>("lstm_pack", weights, num_layers, bidirectional);
    call.set_weights(weights, has_bias);
    PackingPlan plan;
    check_status(make_packing_plan(call.shape, &plan), call.op);
    const ScalarType dtype = Device::packed_dtype(call.dtype);
    const Tensor packed = call.on.empty_packed(plan.packed_bytes / element_bytes(dtype), dtype);
    call.on.pack_by(plan, call.pointers.data(), packed.mutable_data_ptr());
    return packed;
  }

  static std::tuple<Tensor, Tensor, Tensor> packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int64_t input_size,
                                                   int64_t hidden_size, MaybeTensor batch_sizes, int64_t num_layers,
                                                   bool bidirectional, bool batch_first) {
    const Call call("lstm_packed", x, h0, c0, batch_sizes, {num_layers, bidirectional, batch_first});
    call.check_packed_sizes(input_size, hidden_size);
    Forward r = forward(call, &packed, false);
    return {*r.output, r.h_n, r.c_n};
  }

  static std::tuple<Tensor, Tensor, Tensor> cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh,
                                                 MaybeTensor b_ih, MaybeTensor b_hh, bool save) {
    Call call("lstm_cell", x, h, c);
    call.set_cell_weights(w_ih, w_hh, b_ih, b_hh);
    Forward r = forward(call, nullptr, save);
    return {r.h_n, r.c_n, *r.reserve};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cell_backward(
      MaybeTensor grad_h, MaybeTensor grad_c, Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh, Tensor reserve,
      bool has_bias) {
    Call call("lstm_cell_backward", x, h, c);
    call.set_weights({w_ih, w_hh}, has_bias);
    // One step reads no output.
    auto [grad_x, grad_h0, grad_c0, grads] = gradients(call, std::nullopt, grad_h, grad_c, std::nullopt, reserve);
    if (!has_bias) grads.insert(grads.end(), {call.empty({0}), call.empty({0})});
    return {grad_x, grad_h0, grad_c0, grads[0], grads[1], grads[2], grads[3]};
  }

  static std::tuple<Tensor, Tensor> cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int64_t input_size,
                                                int64_t hidden_size) {
    const Call call("lstm_cell_packed", x, h, c);
    call.check_packed_sizes(input_size, hidden_size);
    Forward r = forward(call, &packed, false);
    return {r.h_n, r.c_n};
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("lstm", TORCH_BOX(&lstm));
    m.impl("lstm_backward", TORCH_BOX(&backward));
    m.impl("lstm_pack", TORCH_BOX(&pack));
    m.impl("lstm_packed", TORCH_BOX(&packed));
    m.impl("lstm_cell", TORCH_BOX(&cell));
    m.impl("lstm_cell_backward", TORCH_BOX(&cell_backward));
    m.impl("lstm_cell_packed", TORCH_BOX(&cell_packed));
  }

 private:
  // A cell has no output but h_n and c_n; packed weights leave no reserve.
  struct Forward {
    MaybeTensor output, reserve;
    Tensor h_n, c_n;
  };

  static Forward forward(const Call& c, const Tensor* given, bool save) {
    ForwardArgs args;
    c.set_inputs(&args);
    args.save = save;
    MaybeTensor kept;
    if (given) {
      c.on.check(*given, "packed");
      check_dtype(*given, Device::packed_dtype(c.dtype), c.op, "packed");
      check(given->dim() == 1, c.op, "packed", "expected 1 dimension, got shape ", shape_of(*given));
      kept = dense(*given);
      args.packed = packed_data(*kept);
      args.packed_bytes = kept->numel() * element_bytes(kept->scalar_type());
    }
    ForwardPlan plan;
    c.on.plan(args, &plan);
    Forward to{{}, {}, c.empty(c.state_shape()), c.empty(c.state_shape())};
    plan.args.h_n = to.h_n.mutable_data_ptr();
    plan.args.c_n = to.c_n.mutable_data_ptr();
    if (!c.cell) {
      to.output = c.empty(c.sequence_shape(c.width()));
      plan.args.output = c.output(*to.output);
    }
    if (!given) {
      to.reserve = c.empty({plan.reserve_elements}, Device::reserve_dtype(c.dtype));
      plan.args.reserve = to.reserve->mutable_data_ptr();
    }
    c.on.run_by(plan);
    return to;
  }

  // Of x, h0, c0 and the weights.
  static std::tuple<Tensor, Tensor, Tensor, Tensors> gradients(const Call& c, const MaybeTensor& grad_output,
                                                               const MaybeTensor& grad_h, const MaybeTensor& grad_c,
                                                               const MaybeTensor& output, const Tensor& reserve) {
    BackwardArgs args;
    c.set_inputs(&args);
    Tensors kept;  // contiguous copies, until the kernels have run or are in the stream
    const auto sequence = [&](const MaybeTensor& t, const char* argument) {
      if (!t) return LstmSequence{};
      kept.push_back(c.sequence(*t, argument));
      return c.input(kept.back());
    };
    const auto state = [&](const MaybeTensor& t, const char* argument) -> const void* {
      if (!t) return nullptr;
      kept.push_back(c.state(*t, argument));
      return kept.back().const_data_ptr();
    };
    args.grad_output = sequence(grad_output, "grad_output");
    args.grad_h_n = state(grad_h, c.cell ? "grad_h" : "grad_h_n");
    args.grad_c_n = state(grad_c, c.cell ? "grad_c" : "grad_c_n");
    args.output = sequence(output, "output");
    const typename Call::Gradients to = c.make_gradients(&args);
    BackwardPlan plan;
    c.on.plan(args, &plan);
    kept.push_back(dense(c.checked(reserve, Device::reserve_dtype(c.dtype), {plan.reserve_elements}, "reserve")));
    plan.args.reserve = kept.back().const_data_ptr();
    c.on.run_by(plan);
    return {to.x, to.h0, to.c0, to.weights};
  }
};

}  // namespace pk::binding
