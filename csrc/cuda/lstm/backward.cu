// The backward pass of pykernels/cuda/lstm.h: layers from the last to the first; in each the recurrence of both
// directions (persistent, or a GEMM and a pointwise kernel a step), and after it, over all time steps at once,
//
//   grad_x = sum over directions of d_gates W_ih,   dW_ih = d_gates^T x,   dW_hh = d_gates^T h_{t-1},   db = column
//   sums.
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lstm/backward_kernels.h"
#include "cuda/lstm/layout.h"
#include "pykernels/cuda/gemm.h"
#include "pykernels/cuda/lstm.h"

namespace pk::cuda::lstm {
namespace {

int64_t element_bytes(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }
const char* at(const void* p, int64_t element, DType dtype) {
  return static_cast<const char*>(p) + element * element_bytes(dtype);
}
char* at(void* p, int64_t element, DType dtype) { return static_cast<char*>(p) + element * element_bytes(dtype); }

// A sequence tensor as rows of one stride, or 0: it has none.
int64_t row_stride(const LstmSequence& q, const LstmShape& s) {
  if (s.batch_sizes || s.steps == 1) return q.row;
  if (s.batch == 1) return q.step;
  return q.step == s.batch * q.row ? q.row : 0;
}

int64_t pitch_of(const LstmBackwardPlan& plan) {
  return plan.choice.persistent ? backward_padded(plan.args.shape.hidden) : plan.args.shape.hidden;
}

// Sums over the gates are one product where d_gates have no padding between them, four otherwise.
int pieces_of(const LstmBackwardPlan& plan) { return pitch_of(plan) == plan.args.shape.hidden ? 1 : 4; }

int64_t d_gates_bytes(const LstmBackwardPlan& plan) {
  const LstmShape& s = plan.args.shape;
  return lstm_rows(s) * s.directions * 4 * pitch_of(plan) * element_bytes(s.dtype);
}

// With a null base only its size is known.
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
  int64_t bytes = 0;

  Workspace(const LstmBackwardPlan& plan, void* base) {
    const LstmShape& s = plan.args.shape;
    const int64_t element = element_bytes(s.dtype), rows = lstm_rows(s);
    Arena arena{static_cast<char*>(base)};
    if (s.batch_sizes) starts = arena.take<int>(s.steps + 1);
    d_gates = arena.take<char>(d_gates_bytes(plan));
    previous = arena.take<char>(rows * s.hidden * element);
    for (int i = 0; i < 2; ++i)
      if (s.layers > 1 + i) between[i] = arena.take<char>(rows * s.directions * s.hidden * element);
    if (!row_stride(plan.args.x, s)) x = arena.take<char>(rows * s.input * element);
    if (!row_stride(plan.args.grad_x, s)) grad_x = arena.take<char>(rows * s.input * element);
    if (plan.choice.persistent) {
      fragments = arena.take<char>(backward_persistent_workspace(s, plan.choice));
    } else {
      dh = arena.take<float>(s.batch * s.hidden);
      dc = arena.take<float>(s.batch * s.hidden);
    }
    if (s.bias) sums = arena.take<char>(column_sums_workspace(s, pitch_of(plan)));
    gemm = arena.take<char>(plan.gemm_bytes);
    bytes = arena.used;
  }
};

// ---- Products: what is known of them before the run ----

GemmArgs gemm_of(const LstmBackwardPlan& plan, int64_t m, int64_t n, int64_t k) {
  GemmArgs g;
  g.m = m, g.n = n, g.k = k;
  g.dtype = g.out_dtype = plan.args.shape.dtype;
  g.tf32 = plan.args.tf32;
  return g;
}

// grad_x (rows, i) += d_gates W_ih, the gates of one piece.
GemmArgs input_gradient(const LstmBackwardPlan& plan, int64_t input, int64_t stride) {
  const LstmShape& s = plan.args.shape;
  GemmArgs g = gemm_of(plan, lstm_rows(s), input, 4 * s.hidden / pieces_of(plan));
  g.a_stride_m = s.directions * 4 * pitch_of(plan), g.a_stride_k = 1;
  g.b_stride_n = 1, g.b_stride_k = input;
  g.out_stride = stride;
  return g;
}

// dW (4h, n) = d_gates^T x, the gates of one piece.
GemmArgs weight_gradient(const LstmBackwardPlan& plan, int64_t n, int64_t stride) {
  const LstmShape& s = plan.args.shape;
  GemmArgs g = gemm_of(plan, 4 * s.hidden / pieces_of(plan), n, lstm_rows(s));
  g.a_stride_m = 1, g.a_stride_k = s.directions * 4 * pitch_of(plan);
  g.b_stride_n = 1, g.b_stride_k = stride;
  g.out_stride = n;
  return g;
}

// dh (known, h) = d_gates of the step before times W_hh.
GemmArgs recurrent(const LstmBackwardPlan& plan, int64_t known) {
  const LstmShape& s = plan.args.shape;
  GemmArgs g = gemm_of(plan, known, s.hidden, 4 * s.hidden);
  g.tf32 = false;
  g.a_stride_m = s.directions * 4 * pitch_of(plan), g.a_stride_k = 1;
  g.b_stride_n = 1, g.b_stride_k = s.hidden;
  g.out_dtype = DType::f32, g.out_stride = s.hidden;
  return g;
}

Status plan_gemms(LstmBackwardPlan* plan) {
  const LstmBackwardArgs& args = plan->args;
  const LstmShape& s = args.shape;
  const auto add = [&](const GemmArgs& g, GemmPlan* to) {
    const Status status = make_plan(g, to);
    if (status && to->workspace_bytes > plan->gemm_bytes) plan->gemm_bytes = to->workspace_bytes;
    return status;
  };
  for (int layer = 0; layer < s.layers && layer < 2; ++layer) {
    const int64_t input = lstm_input(s, layer);
    if (input == 0) continue;
    const int64_t x = layer ? input : row_stride(args.x, s), grad_x = layer ? input : row_stride(args.grad_x, s);
    PK_TRY(add(input_gradient(*plan, input, grad_x ? grad_x : input), &plan->grad_x[layer]));
    PK_TRY(add(weight_gradient(*plan, input, x ? x : input), &plan->grad_w_ih[layer]));
  }
  PK_TRY(add(weight_gradient(*plan, s.hidden, s.hidden), &plan->grad_w_hh));
  if (plan->choice.persistent) return kOk;
  PK_TRY(add(recurrent(*plan, s.batch), &plan->recurrent));
  // Any number of sequences may be known in a packed step.
  for (int64_t t = 1; s.batch_sizes && t < s.steps; ++t) {
    GemmPlan other;
    if (s.batch_sizes[t] == s.batch_sizes[t - 1]) continue;
    PK_TRY(add(recurrent(*plan, s.batch_sizes[t]), &other));
  }
  return kOk;
}

// ---- The pass ----

class Backward {
 public:
  Backward(const LstmBackwardPlan& plan, void* workspace, void* stream)
      : plan_(plan),
        args_(plan.args),
        s_(args_.shape),
        rows_(lstm_rows(s_)),
        width_(s_.directions * s_.hidden),
        pitch_(pitch_of(plan)),
        workspace_(plan, workspace),
        stream_(stream) {}

  Status run() {
    if (s_.batch_sizes) {
      for (int64_t t = 0; t <= s_.steps; ++t) starts_.push_back(static_cast<int>(s_.starts[t]));
      PK_TRY(write_integers(starts_.data(), s_.steps + 1, workspace_.starts, stream_));
    }
    if (workspace_.x) {
      PK_TRY(copy_sequence(args_.x, s_.dtype, static_cast<int>(s_.steps), static_cast<int>(s_.batch), s_.input,
                           workspace_.x, true, stream_));
    }
    for (int i = s_.layers - 1; i >= 0; --i) PK_TRY(run_layer(i));
    if (!workspace_.grad_x) return kOk;
    return copy_sequence(args_.grad_x, s_.dtype, static_cast<int>(s_.steps), static_cast<int>(s_.batch), s_.input,
                         workspace_.grad_x, false, stream_);
  }

 private:
  const void* weight(int cell, int which) const { return args_.weights[cell * (s_.bias ? 4 : 2) + which]; }
  void* grad_weight(int cell, int which) const { return args_.grad_weights[cell * (s_.bias ? 4 : 2) + which]; }
  const void* state(const void* p, int cell) const {
    return p ? at(p, cell * s_.batch * s_.hidden, s_.dtype) : nullptr;
  }
  void* state(void* p, int cell) const { return at(p, cell * s_.batch * s_.hidden, s_.dtype); }

  // Dense rows as a sequence tensor, and the layers' tensors that are that.
  LstmSequence dense(void* p) const { return {p, s_.batch * width_, width_}; }
  LstmSequence output_of(int layer) const {
    if (layer == s_.layers - 1) return args_.output;
    return dense(const_cast<char*>(at(args_.reserve, lstm_reserve_output(s_, layer), s_.dtype)));
  }
  void* gradient_below(int layer) const { return workspace_.between[(layer - 1) & 1]; }

  Status multiply(GemmPlan plan, const void* a, const void* b, void* out, bool accumulate = false) const {
    plan.args.a = a, plan.args.b = b, plan.args.out = out;
    plan.args.accumulate = accumulate;
    return cuda::run(plan, workspace_.gemm, stream_);
  }

  // ---- Layers ----

  BackwardLayer layer_of(int index) const {
    BackwardLayer l = {};
    for (int d = 0; d < s_.directions; ++d) {
      const int cell = index * s_.directions + d;
      l.direction[d] = {weight(cell, 1),
                        at(args_.reserve, lstm_reserve_gates(s_, index, d), s_.dtype),
                        at(args_.reserve, lstm_reserve_c(s_, index, d), s_.dtype),
                        state(args_.c0, cell),
                        state(args_.grad_h_n, cell),
                        state(args_.grad_c_n, cell),
                        state(args_.grad_h0, cell),
                        state(args_.grad_c0, cell)};
    }
    l.grad_output = index == s_.layers - 1 ? args_.grad_output : dense(gradient_below(index + 1));
    l.d_gates = workspace_.d_gates;
    l.starts = workspace_.starts;
    l.steps = static_cast<int>(s_.steps), l.batch = static_cast<int>(s_.batch);
    l.hidden = static_cast<int>(s_.hidden), l.directions = s_.directions;
    l.pitch = static_cast<int>(pitch_);
    const auto address = reinterpret_cast<uintptr_t>(args_.reserve);
    l.vectors = rows_ * s_.hidden % 4 == 0 && address % static_cast<uintptr_t>(4 * element_bytes(s_.dtype)) == 0;
    return l;
  }

  Status run_layer(int index) {
    const BackwardLayer l = layer_of(index);
    const int64_t input = lstm_input(s_, index);
    PK_TRY(recurrence(l));

    const void* x = index ? output_of(index - 1).data : workspace_.x ? workspace_.x : args_.x.data;
    void* const grad_x = index ? gradient_below(index) : workspace_.grad_x ? workspace_.grad_x : args_.grad_x.data;
    const int kind = index > 0;
    for (int d = 0; d < s_.directions; ++d) {
      const int cell = index * s_.directions + d;
      const void* d_gates = at(workspace_.d_gates, d * 4 * pitch_, s_.dtype);
      PK_TRY(previous_states(l, s_.dtype, d, static_cast<int>(rows_), output_of(index), state(args_.h0, cell),
                             workspace_.previous, stream_));
      for (int i = 0; i < pieces_of(plan_); ++i) {
        const void* const gates = at(d_gates, i * pitch_, s_.dtype);
        const int64_t first = i * s_.hidden;  // row of the weights
        PK_TRY(multiply(plan_.grad_w_hh, gates, workspace_.previous,
                        at(grad_weight(cell, 1), first * s_.hidden, s_.dtype)));
        if (input == 0) continue;
        PK_TRY(multiply(plan_.grad_w_ih[kind], gates, x, at(grad_weight(cell, 0), first * input, s_.dtype)));
        PK_TRY(
            multiply(plan_.grad_x[kind], gates, at(weight(cell, 0), first * input, s_.dtype), grad_x, d > 0 || i > 0));
      }
      if (!s_.bias) continue;
      PK_TRY(column_sums(l, s_.dtype, d, static_cast<int>(rows_), grad_weight(cell, 2), grad_weight(cell, 3),
                         workspace_.sums, stream_));
    }
    return kOk;
  }

  Status recurrence(const BackwardLayer& l) const {
    if (plan_.choice.persistent) {
      const cudaError_t error = cudaMemsetAsync(workspace_.d_gates, 0xff, static_cast<size_t>(d_gates_bytes(plan_)),
                                                static_cast<cudaStream_t>(stream_));
      if (error != cudaSuccess) return {cudaGetErrorString(error)};
      return backward_persistent_layer(l, s_.dtype, plan_.choice, workspace_.fragments, stream_);
    }
    GemmPlan product = plan_.recurrent;
    const FirstRow first{starts_.empty() ? nullptr : starts_.data(), l.batch};
    for (int d = 0; d < s_.directions; ++d)
      for (int s = 0; s <= l.steps; ++s) {
        const StepRows rows = step_rows(first, l.steps, d == 1, s);
        if (rows.known > 0) {
          const int64_t row = static_cast<int64_t>(rows.before_first) * s_.directions + d;
          if (rows.known != product.args.m) {
            PK_TRY(make_plan(recurrent(plan_, rows.known), &product));
          }
          PK_TRY(multiply(product, at(workspace_.d_gates, row * 4 * pitch_, s_.dtype), l.direction[d].w_hh,
                          workspace_.dh));
        }
        PK_TRY(backward_cell(l, s_.dtype, d, rows, workspace_.dh, workspace_.dc, stream_));
      }
    return kOk;
  }

  const LstmBackwardPlan& plan_;
  const LstmBackwardArgs& args_;
  const LstmShape& s_;
  const int64_t rows_, width_, pitch_;
  const Workspace workspace_;
  void* const stream_;
  std::vector<int> starts_;  // packed
};

}  // namespace

Status plan_backward(const Device& device, LstmBackwardPlan* plan) {
  const LstmBackwardArgs& args = plan->args;
  plan->choice = choose_backward(args.shape, device);
  if (args.path == LstmPath::step) plan->choice = backward_alternating(args.shape, device);
  if (args.path == LstmPath::persistent && !plan->choice.persistent) {
    plan->choice = backward_best_persistent(args.shape, device);
    if (!plan->choice.persistent) return {"path: the persistent kernel cannot run: it needs more multiprocessors"};
  }
  const Status status = plan_gemms(plan);
  plan->workspace_bytes = Workspace(*plan, nullptr).bytes;
  return status;
}

Status run_backward(const LstmBackwardPlan& plan, void* workspace, void* stream) {
  return Backward(plan, workspace, stream).run();
}

Status clear_gradients(const LstmBackwardArgs& args, void* stream) {
  const LstmShape& s = args.shape;
  for (int i = 0; i < lstm_weights(s); ++i) {
    const int per_cell = s.bias ? 4 : 2, which = i % per_cell;
    const int64_t columns = which == 0 ? lstm_input(s, i / per_cell / s.directions) : which == 1 ? s.hidden : 1;
    const cudaError_t error =
        cudaMemsetAsync(args.grad_weights[i], 0, static_cast<size_t>(4 * s.hidden * columns * element_bytes(s.dtype)),
                        static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return {cudaGetErrorString(error)};
  }
  return kOk;
}

}  // namespace pk::cuda::lstm
