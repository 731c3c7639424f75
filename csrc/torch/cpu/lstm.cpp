// torch.ops.pykernels.lstm*: schemas, checks, and the CPU kernels behind them.
#include "pykernels/lstm.h"

#include "torch/checks.h"

namespace pk::binding {
namespace {

using Tensors = std::vector<Tensor>;

// Asking first costs less than a call of an op that has nothing to do.
Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A contiguous last dimension is all that a sequence needs.
Tensor last_contiguous(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : torch::stable::contiguous(t);
}

// What `op` was called with, checked; the tensors are kept contiguous where the kernels want them so.
struct Call {
  const char* op;
  LstmShape shape;
  Tensor x, h0, c0;
  std::optional<Tensor> sizes;
  Tensors weights;
  std::vector<const void*> pointers;
  ScalarType dtype;
  bool batch_first;
  bool cell = false;  // one step, whose tensors have no dimension for it

  // A cell: x (B, I), h and c (B, H).
  Call(const char* op, const Tensor& x, const Tensor& h, const Tensor& c)
      : op(op), x(x), h0(h), c0(c), dtype(x.scalar_type()), batch_first(false), cell(true) {
    check_isa(op);
    check_cpu(x, op, "x");
    check_input_dtype();
    check(x.dim() == 2, op, "x", "expected shape (B, I), got ", shape_of(x));
    check(h.dim() == 2, op, "h", "expected shape (B, H), got ", shape_of(h));
    shape.dtype = to_dtype(dtype, op, "x");
    shape.steps = 1;
    shape.batch = x.size(0);
    shape.input = x.size(1);
    shape.hidden = h.size(1);
    check(shape.hidden >= 1, op, "h", "expected a hidden size of at least 1, got shape ", shape_of(h));
    this->x = last_contiguous(x);
    h0 = state(h, "h");
    c0 = state(c, "c");
  }

  Call(const char* op, const Tensor& x, const Tensor& h0, const Tensor& c0, std::optional<Tensor> batch_sizes,
       int64_t num_layers, bool bidirectional, bool batch_first)
      : op(op), x(x), h0(h0), c0(c0), dtype(x.scalar_type()), batch_first(batch_first) {
    check_isa(op);
    check_cpu(x, op, "x");
    check_input_dtype();
    check(num_layers >= 1 && num_layers <= 1 << 16, op, "num_layers", "expected 1 to 65536, got ", num_layers);
    shape.dtype = to_dtype(dtype, op, "x");
    shape.layers = static_cast<int>(num_layers);
    shape.directions = bidirectional ? 2 : 1;
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
    this->x = last_contiguous(x);
    check(h0.dim() == 3, op, "h0", "expected 3 dimensions, got shape ", shape_of(h0));
    shape.hidden = h0.size(2);
    check(shape.hidden >= 1, op, "h0", "expected a hidden size of at least 1, got shape ", shape_of(h0));
    this->h0 = state(h0, "h0");
    this->c0 = state(c0, "c0");
  }

  void check_input_dtype() const {
    check(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, op, "x",
          "the CPU kernels take float32 and bfloat16, got ", dtype_name(dtype));
  }

  void read_batch_sizes(const Tensor& given) {
    check_cpu(given, op, "batch_sizes");
    check_dtype(given, ScalarType::Long, op, "batch_sizes");
    check(given.dim() == 1, op, "batch_sizes", "expected 1 dimension, got shape ", shape_of(given));
    sizes = dense(given);
    shape.steps = sizes->size(0);
    check(shape.steps > 0, op, "batch_sizes", "expected sequence length to be larger than 0, got shape ",
          shape_of(given));
    const int64_t* const p = static_cast<const int64_t*>(sizes->const_data_ptr());
    int64_t sum = 0;
    for (int64_t t = 0; t < shape.steps; ++t) {
      if (p[t] < 1 || (t > 0 && p[t] > p[t - 1]))
        fail(op, "batch_sizes", "expected positive sizes that don't increase, got ", p[t], t ? " after " : " first",
             t ? std::to_string(p[t - 1]) : "");
      check(p[t] <= x.size(0) - sum, op, "batch_sizes", "expected a sum of x's ", x.size(0), " rows, got more");
      sum += p[t];
    }
    check(sum == x.size(0), op, "batch_sizes", "expected a sum of x's ", x.size(0), " rows, got ", sum);
    shape.batch = p[0];
    shape.batch_sizes = p;
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

  int64_t width() const { return shape.directions * shape.hidden; }

  Tensor checked(const Tensor& t, const std::vector<int64_t>& expected, const char* argument) const {
    check_cpu(t, op, argument);
    check_dtype(t, dtype, op, argument);
    check_shape(t, expected, op, argument);
    return dense(t);
  }
  void check_sequence(const Tensor& t, const char* argument) const {
    check_cpu(t, op, argument);
    check_dtype(t, dtype, op, argument);
    check_shape(t, sequence_shape(width()), op, argument);
  }
  Tensor state(const Tensor& t, const char* argument) const { return checked(t, state_shape(), argument); }

  void set_weights(const Tensors& given, bool has_bias) {
    static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
    shape.bias = has_bias;
    const auto expected = static_cast<size_t>(lstm_weights(shape));
    check(given.size() == expected, op, "weights", "expected ", expected, " tensors, got ", given.size());
    const int per_cell = has_bias ? 4 : 2;
    for (size_t i = 0; i < given.size(); ++i) {
      const int which = static_cast<int>(i) % per_cell, layer = static_cast<int>(i) / per_cell / shape.directions;
      std::vector<int64_t> size = {4 * shape.hidden};
      if (which < 2) size.push_back(which == 0 ? lstm_input(shape, layer) : shape.hidden);
      if (cell)
        weights.push_back(checked(given[i], size, names[which]));
      else
        weights.push_back(
            checked(given[i], size, ("weights[" + std::to_string(i) + "] (" + names[which] + ")").c_str()));
      pointers.push_back(weights.back().const_data_ptr());
    }
  }

  // The kernels read an input's data and write an output's; the struct is the same.
  LstmSequence input(const Tensor& t) const { return sequence(t, const_cast<void*>(t.const_data_ptr())); }
  LstmSequence output(const Tensor& t) const { return sequence(t, t.mutable_data_ptr()); }
  LstmSequence sequence(const Tensor& t, void* data) const {
    if (sizes || cell) return {data, 0, t.stride(0)};
    return {data, t.stride(batch_first ? 1 : 0), t.stride(batch_first ? 0 : 1)};
  }

  Tensor empty(const std::vector<int64_t>& size) const { return torch::stable::new_empty(x, size); }
  Tensor empty(const std::vector<int64_t>& size, ScalarType type) const {
    return torch::stable::new_empty(x, size, type);
  }
};

// Scratch memory of a call: little of it lies on the stack.
struct Workspace {
  Workspace(const Call& c, int64_t bytes) {
    if (bytes > static_cast<int64_t>(sizeof small)) large = c.empty({bytes}, ScalarType::Byte);
  }
  void* data() { return large ? large->mutable_data_ptr() : small; }

  alignas(64) char small[16384];
  std::optional<Tensor> large;
};

// Outputs of a cell: only h_n and c_n are there.
struct Forward {
  std::optional<Tensor> output, reserve;
  Tensor h_n, c_n;
};

Forward run_forward(const Call& c, const Tensor* packed, bool save) {
  Forward to{{}, {}, c.empty(c.state_shape()), c.empty(c.state_shape())};
  LstmForward call;
  call.shape = c.shape;
  call.x = c.input(c.x);
  call.h0 = c.h0.const_data_ptr();
  call.c0 = c.c0.const_data_ptr();
  if (packed) {
    call.packed = packed->const_data_ptr();
    call.packed_bytes = packed->numel();
  } else {
    call.weights = c.pointers.data();
    int64_t floats = 0;
    if (save) check_status(lstm_reserve_size(c.shape, &floats), c.op);
    to.reserve = c.empty({floats}, ScalarType::Float);
    if (floats) call.reserve = static_cast<float*>(to.reserve->mutable_data_ptr());
  }
  if (!c.cell) {
    to.output = c.empty(c.sequence_shape(c.width()));
    call.output = c.output(*to.output);
  }
  call.h_n = to.h_n.mutable_data_ptr();
  call.c_n = to.c_n.mutable_data_ptr();
  const Executor executor = torch_executor();
  check_status(lstm_forward_workspace(call, executor.threads, &call.workspace_bytes), c.op);
  Workspace workspace(c, call.workspace_bytes);
  call.workspace = workspace.data();
  check_status(lstm_forward(call, executor), c.op);
  return to;
}

// The gradients of x, h0, c0 and the weights.
std::tuple<Tensor, Tensor, Tensor, Tensors> run_backward(const Call& c, std::optional<Tensor> grad_output,
                                                         std::optional<Tensor> grad_h_n, std::optional<Tensor> grad_c_n,
                                                         const Tensor& output, const Tensor& given_reserve) {
  LstmBackward call;
  call.shape = c.shape;
  if (grad_output) {
    c.check_sequence(*grad_output, "grad_output");
    grad_output = last_contiguous(*grad_output);
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
  c.check_sequence(output, "output");
  const Tensor y = last_contiguous(output);
  int64_t floats;
  check_status(lstm_reserve_size(c.shape, &floats), c.op);
  check_cpu(given_reserve, c.op, "reserve");
  check_dtype(given_reserve, ScalarType::Float, c.op, "reserve");
  check_shape(given_reserve, {floats}, c.op, "reserve");
  const Tensor reserve = dense(given_reserve);
  Tensor grad_x = c.empty(c.sequence_shape(c.shape.input)), grad_h0 = c.empty(c.state_shape()),
         grad_c0 = c.empty(c.state_shape());
  Tensors grad_weights;
  std::vector<void*> pointers;
  for (const Tensor& w : c.weights) {
    grad_weights.push_back(torch::stable::empty_like(w));
    pointers.push_back(grad_weights.back().mutable_data_ptr());
  }
  call.x = c.input(c.x);
  call.h0 = c.h0.const_data_ptr();
  call.c0 = c.c0.const_data_ptr();
  call.weights = c.pointers.data();
  call.output = c.input(y);
  call.reserve = static_cast<const float*>(reserve.const_data_ptr());
  call.grad_x = c.output(grad_x);
  call.grad_h0 = grad_h0.mutable_data_ptr();
  call.grad_c0 = grad_c0.mutable_data_ptr();
  call.grad_weights = pointers.data();
  const Executor executor = torch_executor();
  check_status(lstm_backward_workspace(call, executor.threads, &call.workspace_bytes), c.op);
  Tensor workspace = c.empty({call.workspace_bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  check_status(lstm_backward(call, executor), c.op);
  return {grad_x, grad_h0, grad_c0, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm(Tensor x, Tensor h0, Tensor c0, Tensors weights,
                                                std::optional<Tensor> batch_sizes, int64_t num_layers,
                                                bool bidirectional, bool batch_first, bool has_bias, bool save) {
  Call c("lstm", x, h0, c0, batch_sizes, num_layers, bidirectional, batch_first);
  c.set_weights(weights, has_bias);
  Forward r = run_forward(c, nullptr, save);
  return {*r.output, r.h_n, r.c_n, *r.reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensors> lstm_backward(std::optional<Tensor> grad_output,
                                                          std::optional<Tensor> grad_h_n,
                                                          std::optional<Tensor> grad_c_n, Tensor x, Tensor h0,
                                                          Tensor c0, Tensors weights, std::optional<Tensor> batch_sizes,
                                                          Tensor output, Tensor reserve, int64_t num_layers,
                                                          bool bidirectional, bool batch_first, bool has_bias) {
  Call c("lstm_backward", x, h0, c0, batch_sizes, num_layers, bidirectional, batch_first);
  c.set_weights(weights, has_bias);
  return run_backward(c, grad_output, grad_h_n, grad_c_n, output, reserve);
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
  Call c(op, x, h, h, std::nullopt, num_layers, bidirectional, false);
  c.set_weights(weights, has_bias);
  int64_t bytes;
  check_status(lstm_packed_bytes(c.shape, &bytes), op);
  Tensor packed = c.empty({bytes}, ScalarType::Byte);
  check_status(pk::lstm_pack(c.shape, c.pointers.data(), packed.mutable_data_ptr(), bytes, torch_executor()), op);
  return packed;
}

// Contiguous, and valid for the call.
Tensor checked_packed(const Call& c, const Tensor& given, int64_t input_size, int64_t hidden_size) {
  check(input_size == c.shape.input, c.op, "x", "expected ", input_size, " features, got shape ", shape_of(c.x));
  check(hidden_size == c.shape.hidden, c.op, c.cell ? "h" : "h0", "expected ", hidden_size, " units, got shape ",
        shape_of(c.h0));
  check_cpu(given, c.op, "packed");
  check_dtype(given, ScalarType::Byte, c.op, "packed");
  check(given.dim() == 1, c.op, "packed", "expected 1 dimension, got shape ", shape_of(given));
  Tensor packed = dense(given);
  bool bias;
  check_status(lstm_check_packed(c.shape, packed.const_data_ptr(), packed.numel(), &bias), c.op);
  return packed;
}

std::tuple<Tensor, Tensor, Tensor> lstm_packed(Tensor x, Tensor h0, Tensor c0, Tensor packed, int64_t input_size,
                                               int64_t hidden_size, std::optional<Tensor> batch_sizes,
                                               int64_t num_layers, bool bidirectional, bool batch_first) {
  Call c("lstm_packed", x, h0, c0, batch_sizes, num_layers, bidirectional, batch_first);
  const Tensor block = checked_packed(c, packed, input_size, hidden_size);
  Forward r = run_forward(c, &block, false);
  return {*r.output, r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(Tensor x, Tensor h, Tensor c, Tensor w_ih, Tensor w_hh,
                                             std::optional<Tensor> b_ih, std::optional<Tensor> b_hh, bool save) {
  static const char* const op = "lstm_cell";
  Call call(op, x, h, c);
  check(b_ih.has_value() == b_hh.has_value(), op, "b_hh", "expected both biases or none, got one");
  Tensors weights = {w_ih, w_hh};
  if (b_ih) weights.insert(weights.end(), {*b_ih, *b_hh});
  call.set_weights(weights, b_ih.has_value());
  Forward r = run_forward(call, nullptr, save);
  return {r.h_n, r.c_n, *r.reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell_backward(std::optional<Tensor> grad_h,
                                                                                      std::optional<Tensor> grad_c,
                                                                                      Tensor x, Tensor h, Tensor c,
                                                                                      Tensor w_ih, Tensor w_hh,
                                                                                      Tensor reserve, bool has_bias) {
  static const char* const op = "lstm_cell_backward";
  Call call(op, x, h, c);
  Tensors weights = {w_ih, w_hh};
  // The biases' values are not needed, only the place for their gradients.
  for (int i = 0; has_bias && i < 2; ++i) weights.push_back(call.empty({4 * call.shape.hidden}));
  call.set_weights(weights, has_bias);
  // One step reads no output.
  const Tensor output = call.empty(call.sequence_shape(call.shape.hidden));
  auto [grad_x, grad_h0, grad_c0, grads] = run_backward(call, std::nullopt, grad_h, grad_c, output, reserve);
  if (!has_bias) grads.insert(grads.end(), {call.empty({0}), call.empty({0})});
  return {grad_x, grad_h0, grad_c0, grads[0], grads[1], grads[2], grads[3]};
}

std::tuple<Tensor, Tensor> lstm_cell_packed(Tensor x, Tensor h, Tensor c, Tensor packed, int64_t input_size,
                                            int64_t hidden_size) {
  Call call("lstm_cell_packed", x, h, c);
  const Tensor block = checked_packed(call, packed, input_size, hidden_size);
  Forward r = run_forward(call, &block, false);
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
