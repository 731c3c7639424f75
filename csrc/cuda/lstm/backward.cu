// The backward pass of pykernels/cuda/lstm.h: layers from the last to the first; in each the recurrence of both
// directions (persistent, or a GEMM and a pointwise kernel a step), and after it, over all time steps at once,
//
//   dx = sum over directions of d_gates W_ih,   dW_ih = d_gates^T x,   dW_hh = d_gates^T h_{t-1},   db = column sums.
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lstm/backward_kernels.h"
#include "cuda/lstm/layout.h"
#include "pykernels/cuda/gemm.h"
#include "pykernels/cuda/lstm.h"

namespace pk::cuda {
namespace {

using namespace lstm;

int64_t element_bytes(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }
const char* at(const void* p, int64_t element, DType dtype) {
  return static_cast<const char*>(p) + element * element_bytes(dtype);
}
char* at(void* p, int64_t element, DType dtype) { return static_cast<char*>(p) + element * element_bytes(dtype); }

Status check(const LstmShape& s) {
  if (const Status status = check_call(s); !status) return status;
  if (lstm_rows(s) > 1 << 30) return {"steps, batch: expected at most 2^30 rows"};
  return kOk;
}

// A sequence tensor as rows of one stride, or 0: it has none.
int64_t row_stride(const LstmSequence& q, const LstmShape& s) {
  if (s.batch_sizes || s.steps == 1) return q.row;
  if (s.batch == 1) return q.step;
  return q.step == s.batch * q.row ? q.row : 0;
}

struct Workspace {
  int* starts = nullptr;                 // (steps + 1) of packed sequences
  void* d_gates = nullptr;               // (rows, d, 4, pitch)
  void* previous = nullptr;              // (rows, h)
  void* between[2] = {};                 // gradients of the inner layers' outputs: (rows, d * h)
  void *x = nullptr, *grad_x = nullptr;  // rows of (rows, i), where the caller's have no stride of their own
  void* fragments = nullptr;             // of the persistent kernel
  float *dh = nullptr, *dc = nullptr;    // (b, h), of the alternating path
  void* sums = nullptr;                  // of the biases' gradients
  void* gemm = nullptr;
  size_t gemm_bytes = 0;
  int64_t bytes = 0;
};

class Backward {
 public:
  Backward(const LstmBackward& call, void* stream)
      : call_(call), s_(call.shape), rows_(lstm_rows(s_)), width_(s_.directions * s_.hidden), stream_(stream) {}

  // Chooses, and lays out the workspace from `base` on.
  Status plan(char* base) {
    Device device;
    if (const Status status = current_device(&device); !status) return status;
    choice_ = choose_backward(s_, device);
    if (call_.path == LstmPath::step) choice_ = backward_alternating(s_, device);
    if (call_.path == LstmPath::persistent && !choice_.persistent) {
      choice_ = backward_best_persistent(s_, device);
      if (!choice_.persistent) return {"path: the persistent kernel cannot run: it needs more multiprocessors"};
    }
    pitch_ = choice_.persistent ? BackwardChoice::padded(s_.hidden) : s_.hidden;
    const int64_t element = element_bytes(s_.dtype);
    Arena arena{base};
    Workspace& w = workspace_;
    if (s_.batch_sizes) w.starts = arena.take<int>(s_.steps + 1);
    w.d_gates = arena.take<char>(d_gates_bytes());
    w.previous = arena.take<char>(rows_ * s_.hidden * element);
    for (int i = 0; i < 2; ++i)
      if (s_.layers > 1 + i) w.between[i] = arena.take<char>(rows_ * width_ * element);
    if (!row_stride(call_.x, s_)) w.x = arena.take<char>(rows_ * s_.input * element);
    if (!row_stride(call_.grad_x, s_)) w.grad_x = arena.take<char>(rows_ * s_.input * element);
    if (choice_.persistent) {
      w.fragments = arena.take<char>(backward_persistent_workspace(s_, choice_));
    } else {
      w.dh = arena.take<float>(s_.batch * s_.hidden);
      w.dc = arena.take<float>(s_.batch * s_.hidden);
    }
    if (s_.bias) w.sums = arena.take<char>(column_sums_workspace(s_, pitch_));
    if (const Status status = measure_gemms(); !status) return status;
    w.gemm = arena.take<char>(static_cast<int64_t>(w.gemm_bytes));
    w.bytes = arena.used;
    return kOk;
  }
  int64_t bytes() const { return workspace_.bytes; }

  Status run() {
    if (s_.batch_sizes) {
      starts_.resize(static_cast<size_t>(s_.steps) + 1);
      for (size_t t = 0; t < static_cast<size_t>(s_.steps); ++t)
        starts_[t + 1] = starts_[t] + static_cast<int>(s_.batch_sizes[t]);
      if (const Status status = write_integers(starts_.data(), s_.steps + 1, workspace_.starts, stream_); !status)
        return status;
    }
    if (workspace_.x) {
      const Status status = copy_sequence(call_.x, s_.dtype, static_cast<int>(s_.steps), static_cast<int>(s_.batch),
                                          s_.input, workspace_.x, true, stream_);
      if (!status) return status;
    }
    for (int i = s_.layers - 1; i >= 0; --i)
      if (const Status status = run_layer(i); !status) return status;
    if (!workspace_.grad_x) return kOk;
    return copy_sequence(call_.grad_x, s_.dtype, static_cast<int>(s_.steps), static_cast<int>(s_.batch), s_.input,
                         workspace_.grad_x, false, stream_);
  }

 private:
  int64_t d_gates_bytes() const { return rows_ * s_.directions * 4 * pitch_ * element_bytes(s_.dtype); }
  const void* weight(int cell, int which) const { return call_.weights[cell * (s_.bias ? 4 : 2) + which]; }
  void* grad_weight(int cell, int which) const { return call_.grad_weights[cell * (s_.bias ? 4 : 2) + which]; }
  const void* state(const void* p, int cell) const {
    return p ? at(p, cell * s_.batch * s_.hidden, s_.dtype) : nullptr;
  }
  void* state(void* p, int cell) const { return at(p, cell * s_.batch * s_.hidden, s_.dtype); }

  // Dense rows as a sequence tensor, and the layers' tensors that are that.
  LstmSequence dense(void* p) const { return {p, s_.batch * width_, width_}; }
  LstmSequence output_of(int layer) const {
    if (layer == s_.layers - 1) return call_.output;
    return dense(const_cast<char*>(at(call_.reserve, lstm_reserve_output(s_, layer), s_.dtype)));
  }
  void* gradient_below(int layer) const { return workspace_.between[(layer - 1) & 1]; }

  // ---- Products ----
  // Sums over the gates are one product where d_gates have no padding between them, four otherwise.
  int pieces() const { return pitch_ == s_.hidden ? 1 : 4; }
  int64_t piece() const { return pitch_ == s_.hidden ? 4 * s_.hidden : s_.hidden; }

  Gemm gemm_of(int64_t m, int64_t n, int64_t k) const {
    Gemm g;
    g.m = m, g.n = n, g.k = k;
    g.dtype = g.out_dtype = s_.dtype;
    g.tf32 = call_.tf32;
    return g;
  }
  // dx (rows, i) += d_gates W_ih, the gates of one piece.
  Gemm input_gradient(const void* d_gates, const void* w_ih, int64_t input, int i, void* out, int64_t stride,
                      bool accumulate) const {
    Gemm g = gemm_of(rows_, input, piece());
    g.a = at(d_gates, i * pitch_, s_.dtype), g.a_stride_m = s_.directions * 4 * pitch_, g.a_stride_k = 1;
    g.b = at(w_ih, i * s_.hidden * input, s_.dtype), g.b_stride_n = 1, g.b_stride_k = input;
    g.out = out, g.out_stride = stride, g.accumulate = accumulate;
    return g;
  }
  // dW (4h, n) = d_gates^T x, the gates of one piece.
  Gemm weight_gradient(const void* d_gates, const void* x, int64_t n, int64_t stride, int i, void* out) const {
    Gemm g = gemm_of(piece(), n, rows_);
    g.a = at(d_gates, i * pitch_, s_.dtype), g.a_stride_m = 1, g.a_stride_k = s_.directions * 4 * pitch_;
    g.b = x, g.b_stride_n = 1, g.b_stride_k = stride;
    g.out = at(out, i * s_.hidden * n, s_.dtype), g.out_stride = n;
    return g;
  }
  // dh (known, h) = d_gates of the step before times W_hh.
  Gemm recurrent(const void* d_gates, const void* w_hh, int64_t known) const {
    Gemm g = gemm_of(known, s_.hidden, 4 * s_.hidden);
    g.tf32 = false;
    g.a = d_gates, g.a_stride_m = s_.directions * 4 * pitch_, g.a_stride_k = 1;
    g.b = w_hh, g.b_stride_n = 1, g.b_stride_k = s_.hidden;
    g.out_dtype = DType::f32, g.out = workspace_.dh, g.out_stride = s_.hidden;
    return g;
  }
  Status measure(const Gemm& g) {
    size_t bytes = 0;
    const Status status = gemm_workspace(g, &bytes);
    if (status && bytes > workspace_.gemm_bytes) workspace_.gemm_bytes = bytes;
    return status;
  }
  Status measure_gemms() {
    for (int layer = 0; layer < s_.layers && layer < 2; ++layer) {
      const int64_t input = lstm_input(s_, layer);
      const Gemm gemms[] = {input_gradient(nullptr, nullptr, input, 0, nullptr, input, true),
                            weight_gradient(nullptr, nullptr, input, input, 0, nullptr),
                            weight_gradient(nullptr, nullptr, s_.hidden, s_.hidden, 0, nullptr)};
      for (const Gemm& g : gemms)
        if (g.n > 0)
          if (const Status status = measure(g); !status) return status;
    }
    if (choice_.persistent) return kOk;
    // Any number of sequences may be known in a packed step.
    for (int64_t t = 0; t < s_.steps; ++t) {
      const int64_t known = s_.batch_sizes ? s_.batch_sizes[t] : s_.batch;
      if (t > 0 && (!s_.batch_sizes || known == s_.batch_sizes[t - 1])) continue;
      if (const Status status = measure(recurrent(nullptr, nullptr, known)); !status) return status;
    }
    return kOk;
  }
  Status multiply(const Gemm& g) const { return gemm_launch(g, workspace_.gemm, workspace_.gemm_bytes, stream_); }

  // ---- Layers ----

  BackwardLayer layer_of(int index) const {
    BackwardLayer l = {};
    for (int d = 0; d < s_.directions; ++d) {
      const int cell = index * s_.directions + d;
      l.direction[d] = {weight(cell, 1),
                        at(call_.reserve, lstm_reserve_gates(s_, index, d), s_.dtype),
                        at(call_.reserve, lstm_reserve_c(s_, index, d), s_.dtype),
                        state(call_.c0, cell),
                        state(call_.grad_h_n, cell),
                        state(call_.grad_c_n, cell),
                        state(call_.grad_h0, cell),
                        state(call_.grad_c0, cell)};
    }
    l.grad_output = index == s_.layers - 1 ? call_.grad_output : dense(gradient_below(index + 1));
    l.d_gates = workspace_.d_gates;
    l.starts = workspace_.starts;
    l.steps = static_cast<int>(s_.steps), l.batch = static_cast<int>(s_.batch);
    l.hidden = static_cast<int>(s_.hidden), l.directions = s_.directions;
    l.pitch = static_cast<int>(pitch_);
    const auto address = reinterpret_cast<uintptr_t>(call_.reserve);
    l.vectors = rows_ * s_.hidden % 4 == 0 && address % static_cast<uintptr_t>(4 * element_bytes(s_.dtype)) == 0;
    return l;
  }

  Status run_layer(int index) {
    const BackwardLayer l = layer_of(index);
    const int64_t input = lstm_input(s_, index);
    if (const Status status = recurrence(l); !status) return status;

    const void* x = index ? output_of(index - 1).data : workspace_.x ? workspace_.x : call_.x.data;
    const int64_t x_stride = index ? width_ : workspace_.x ? input : row_stride(call_.x, s_);
    void* const grad_x = index ? gradient_below(index) : workspace_.grad_x ? workspace_.grad_x : call_.grad_x.data;
    const int64_t grad_x_stride = index || workspace_.grad_x ? input : row_stride(call_.grad_x, s_);
    for (int d = 0; d < s_.directions; ++d) {
      const int cell = index * s_.directions + d;
      const void* d_gates = at(workspace_.d_gates, d * 4 * pitch_, s_.dtype);
      const Status status = previous_states(l, s_.dtype, d, static_cast<int>(rows_), output_of(index),
                                            state(call_.h0, cell), workspace_.previous, stream_);
      if (!status) return status;
      for (int i = 0; i < pieces(); ++i) {
        const Gemm recurrent_part =
            weight_gradient(d_gates, workspace_.previous, s_.hidden, s_.hidden, i, grad_weight(cell, 1));
        if (const Status s = multiply(recurrent_part); !s) return s;
        if (input == 0) continue;
        const Gemm input_part = weight_gradient(d_gates, x, input, x_stride, i, grad_weight(cell, 0));
        if (const Status s = multiply(input_part); !s) return s;
        const Gemm below = input_gradient(d_gates, weight(cell, 0), input, i, grad_x, grad_x_stride, d > 0 || i > 0);
        if (const Status s = multiply(below); !s) return s;
      }
      if (!s_.bias) continue;
      const Status sums = column_sums(l, s_.dtype, d, static_cast<int>(rows_), grad_weight(cell, 2),
                                      grad_weight(cell, 3), workspace_.sums, stream_);
      if (!sums) return sums;
    }
    return kOk;
  }

  Status recurrence(const BackwardLayer& l) const {
    if (choice_.persistent) {
      const cudaError_t error = cudaMemsetAsync(workspace_.d_gates, 0xff, static_cast<size_t>(d_gates_bytes()),
                                                static_cast<cudaStream_t>(stream_));
      if (error != cudaSuccess) return {cudaGetErrorString(error)};
      return backward_persistent_layer(l, s_.dtype, choice_, workspace_.fragments, stream_);
    }
    const FirstRow first{starts_.empty() ? nullptr : starts_.data(), l.batch};
    for (int d = 0; d < s_.directions; ++d)
      for (int s = 0; s <= l.steps; ++s) {
        const StepRows rows = step_rows(first, l.steps, d == 1, s);
        if (rows.known > 0) {
          const int64_t row = static_cast<int64_t>(rows.before_first) * s_.directions + d;
          const Gemm g = recurrent(at(workspace_.d_gates, row * 4 * pitch_, s_.dtype), l.direction[d].w_hh, rows.known);
          if (const Status status = multiply(g); !status) return status;
        }
        const Status status = backward_cell(l, s_.dtype, d, rows, workspace_.dh, workspace_.dc, stream_);
        if (!status) return status;
      }
    return kOk;
  }

  const LstmBackward& call_;
  const LstmShape& s_;
  const int64_t rows_, width_;
  void* const stream_;
  BackwardChoice choice_;
  int64_t pitch_ = 0;
  Workspace workspace_;
  std::vector<int> starts_;  // packed
};

// No sequences: the weights' gradients are zero, everything else is empty.
Status clear_gradients(const LstmBackward& call, void* stream) {
  const LstmShape& s = call.shape;
  for (int i = 0; i < lstm_weights(s); ++i) {
    const int per_cell = s.bias ? 4 : 2, which = i % per_cell;
    const int64_t columns = which == 0 ? lstm_input(s, i / per_cell / s.directions) : which == 1 ? s.hidden : 1;
    const cudaError_t error =
        cudaMemsetAsync(call.grad_weights[i], 0, static_cast<size_t>(4 * s.hidden * columns * element_bytes(s.dtype)),
                        static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return {cudaGetErrorString(error)};
  }
  return kOk;
}

}  // namespace

Status lstm_backward_workspace(const LstmBackward& call, int64_t* bytes) {
  *bytes = 0;
  if (const Status status = check(call.shape); !status) return status;
  if (call.shape.batch == 0) return kOk;
  Backward backward(call, nullptr);
  const Status status = backward.plan(nullptr);
  *bytes = backward.bytes();
  return status;
}

Status lstm_backward(const LstmBackward& call, void* stream) {
  if (const Status status = check(call.shape); !status) return status;
  if (call.shape.batch == 0) return clear_gradients(call, stream);
  Backward backward(call, stream);
  if (const Status status = backward.plan(static_cast<char*>(call.workspace)); !status) return status;
  if (call.workspace_bytes < backward.bytes()) return {"workspace: expected lstm_backward_workspace bytes"};
  return backward.run();
}

}  // namespace pk::cuda
