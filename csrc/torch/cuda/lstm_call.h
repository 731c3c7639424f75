// What the LSTM's CUDA ops have in common: a call's tensors, checked, and its shape.
#pragma once

#include "pykernels/cuda/lstm.h"
#include "torch/cuda/checks.h"

namespace pk::binding {

using Tensors = std::vector<Tensor>;

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The kernels want the last dimension contiguous, nothing else.
inline Tensor last_contiguous(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : torch::stable::contiguous(t);
}

class LstmCall {
 public:
  // A cell: x (B, I), h and c (B, H).
  LstmCall(const char* op, const Tensor& x, const Tensor& h, const Tensor& c)
      : op_(op), on_(op, x, "x"), dtype_(x.scalar_type()), cell_(true) {
    check(x.dim() == 2, op, "x", "expected shape (B, I), got ", shape_of(x));
    check(h.dim() == 2, op, "h", "expected shape (B, H), got ", shape_of(h));
    shape_.steps = 1;
    shape_.batch = x.size(0);
    shape_.input = x.size(1);
    finish(x, h, c, "h", "c");
  }

  LstmCall(const char* op, const Tensor& x, const Tensor& h0, const Tensor& c0,
           const std::optional<Tensor>& batch_sizes, int64_t num_layers, bool bidirectional, bool batch_first)
      : op_(op), on_(op, x, "x"), dtype_(x.scalar_type()), batch_first_(batch_first) {
    check(num_layers >= 1 && num_layers <= 1 << 16, op, "num_layers", "expected 1 to 65536, got ", num_layers);
    shape_.layers = static_cast<int>(num_layers);
    shape_.directions = bidirectional ? 2 : 1;
    const int64_t dim = batch_sizes ? 2 : 3;
    check(x.dim() == dim, op, "x", "expected ", dim, " dimensions, got shape ", shape_of(x));
    shape_.input = x.size(dim - 1);
    if (batch_sizes) {
      read_batch_sizes(*batch_sizes, x.size(0));
    } else {
      shape_.steps = x.size(batch_first ? 1 : 0);
      shape_.batch = x.size(batch_first ? 0 : 1);
    }
    check(shape_.steps > 0, op, "x", "expected sequence length to be larger than 0, got shape ", shape_of(x));
    check(h0.dim() == 3, op, "h0", "expected 3 dimensions, got shape ", shape_of(h0));
    finish(x, h0, c0, "h0", "c0");
  }

  // `given` may be shorter than the weights of the shape: lstm_cell_backward gets no biases, as they are not read.
  void set_weights(const Tensors& given, bool has_bias) {
    static const char* const names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
    shape_.bias = has_bias;
    const auto expected = static_cast<size_t>(lstm_weights(shape_));
    check(cell_ || given.size() == expected, op_, "weights", "expected ", expected, " tensors, got ", given.size());
    for (size_t i = 0; i < expected; ++i) {
      if (i >= given.size()) {
        pointers_.push_back(nullptr);
        continue;
      }
      const char* const name = names[i % (has_bias ? 4 : 2)];
      weights_.push_back(dense(checked(
          given[i], weight_shape(i), cell_ ? std::string(name) : "weights[" + std::to_string(i) + "] (" + name + ")")));
      pointers_.push_back(weights_.back().const_data_ptr());
    }
  }
  std::vector<int64_t> weight_shape(size_t i) const {
    const size_t per_cell = shape_.bias ? 4 : 2, which = i % per_cell;
    std::vector<int64_t> size = {4 * shape_.hidden};
    const int layer = static_cast<int>(i / per_cell) / shape_.directions;
    if (which < 2) size.push_back(which == 0 ? lstm_input(shape_, layer) : shape_.hidden);
    return size;
  }

 protected:
  const Tensor& checked(const Tensor& t, const std::vector<int64_t>& size, const std::string& argument) const {
    on_.check(t, argument.c_str());
    check_dtype(t, dtype_, op_, argument.c_str());
    check_shape(t, size, op_, argument.c_str());
    return t;
  }
  std::vector<int64_t> state_shape() const {
    if (cell_) return {shape_.batch, shape_.hidden};
    return {static_cast<int64_t>(shape_.layers) * shape_.directions, shape_.batch, shape_.hidden};
  }
  std::vector<int64_t> sequence_shape(int64_t features) const {
    if (sizes_ || cell_) return {rows_, features};
    return batch_first_ ? std::vector<int64_t>{shape_.batch, shape_.steps, features}
                        : std::vector<int64_t>{shape_.steps, shape_.batch, features};
  }
  // The kernels read an input's data and write an output's; the struct is the same.
  LstmSequence read(const Tensor& t) const { return sequence_of(t, const_cast<void*>(t.const_data_ptr())); }
  LstmSequence sequence_of(const Tensor& t, void* data) const {
    if (sizes_ || cell_) return {data, 0, t.stride(0)};
    return {data, t.stride(batch_first_ ? 1 : 0), t.stride(batch_first_ ? 0 : 1)};
  }

  const char* const op_;
  OnDevice on_;
  LstmShape shape_;
  ScalarType dtype_;
  bool batch_first_ = false;
  bool cell_ = false;  // one step, whose tensors have no dimension for it
  int64_t rows_ = 0;
  std::optional<Tensor> x_, h0_, c0_, sizes_;
  Tensors weights_;
  std::vector<const void*> pointers_;

 private:
  void finish(const Tensor& x, const Tensor& h, const Tensor& c, const char* h_name, const char* c_name) {
    rows_ = x.size(0);
    shape_.dtype = to_cuda_float(dtype_, op_, "x");
    shape_.hidden = h.size(h.dim() - 1);
    check(shape_.hidden >= 1, op_, h_name, "expected a hidden size of at least 1, got shape ", shape_of(h));
    x_ = last_contiguous(x);
    h0_ = dense(checked(h, state_shape(), h_name));
    c0_ = dense(checked(c, state_shape(), c_name));
  }

  void read_batch_sizes(const Tensor& given, int64_t rows) {
    check_cpu(given, op_, "batch_sizes");
    check_dtype(given, ScalarType::Long, op_, "batch_sizes");
    check(given.dim() == 1, op_, "batch_sizes", "expected 1 dimension, got shape ", shape_of(given));
    sizes_ = dense(given);
    shape_.steps = sizes_->size(0);
    check(shape_.steps > 0, op_, "batch_sizes", "expected sequence length to be larger than 0, got shape ",
          shape_of(given));
    const int64_t* const p = static_cast<const int64_t*>(sizes_->const_data_ptr());
    int64_t sum = 0;
    for (int64_t t = 0; t < shape_.steps; ++t) {
      if (p[t] < 1 || (t > 0 && p[t] > p[t - 1]))
        fail(op_, "batch_sizes", "expected positive sizes that don't increase, got ", p[t], t ? " after " : " first",
             t ? std::to_string(p[t - 1]) : "");
      check(p[t] <= rows - sum, op_, "batch_sizes", "expected a sum of x's ", rows, " rows, got more");
      sum += p[t];
    }
    check(sum == rows, op_, "batch_sizes", "expected a sum of x's ", rows, " rows, got ", sum);
    shape_.batch = p[0];
    shape_.batch_sizes = p;
  }
};

}  // namespace pk::binding
