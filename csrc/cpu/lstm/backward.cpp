// The backward pass, in float32 whatever the dtype. Layers from the top; within one, both directions side by side:
//
//   every step, against the forward order, per share of the hidden units:
//     dh = d(gates of the step before) W_hh + grad_output,   then the cell's derivative -> d(gates), dc
//   after the loop: dW_ih = d(gates)^T x, dW_hh = d(gates)^T h_{t-1}, db = column sums, grad_x = d(gates) W_ih,
//     each one GEMM over all time steps.
//
// A share computes dh for its own units only and needs everybody's d(gates): one barrier a step, as in the forward
// pass.
#include "cpu/lstm/gemm.h"
#include "cpu/lstm/isa.h"
#include "cpu/lstm/sequence.h"
#include "cpu/lstm/team.h"
#include "cpu/vec_math.h"

namespace pk {
namespace PK_ISA {
namespace {

struct Direction {
  const float* w_hh;         // panels (padded/kPanel, 4h, kPanel)
  const float* reserve;      // (rows, 5, h)
  const float* c0;           // (b, h)
  const float* grad_h_n;     // (b, h)
  float* grad_h0;            // (b, h)
  float* d_gates;            // (rows, 4h)
  float *dh, *dc;            // (b, padded)
  const float* grad_output;  // (rows, d * h) at this direction's columns, or nullptr
  bool reversed;
};

struct Layer {
  LstmShape shape;
  Rows rows;
  int64_t padded;
  Direction direction[2];
};

// Row of the state before time t of sequence b in the forward order, or -1: the initial state.
inline int64_t row_before(const Layer& l, const Direction& d, int64_t t, int64_t b) {
  if (!d.reversed) return t > 0 ? l.rows.first(t - 1) + b : -1;
  return t + 1 < l.shape.steps && b < l.rows.active(t + 1) ? l.rows.first(t + 1) + b : -1;
}

inline F32 load_units(const float* p, int64_t valid) { return valid == kLanes ? load<F32>(p) : load_partial(p, valid); }
inline void store_units(float* p, F32 v, int64_t valid) {
  if (valid == kLanes)
    store(p, v);
  else
    store_partial(p, v, valid);
}

// The cell's derivative at `valid` units of sequence b at time t; dh without grad_output.
inline void cell_backward(const Layer& l, const Direction& d, int64_t t, int64_t b, int64_t unit, int64_t valid,
                          F32 dh) {
  const int64_t hidden = l.shape.hidden, row = l.rows.first(t) + b, before = row_before(l, d, t, b);
  if (d.grad_output) dh += load_units(d.grad_output + row * l.shape.directions * hidden + unit, valid);
  const float* const saved = d.reserve + row * reserve_row(l.shape) + unit;
  const F32 i = load_units(saved, valid), f = load_units(saved + hidden, valid),
            g = load_units(saved + 2 * hidden, valid), o = load_units(saved + 3 * hidden, valid),
            tc = tanh(load_units(saved + 4 * hidden, valid));
  const float* const cp =
      before < 0 ? d.c0 + b * hidden + unit : d.reserve + before * reserve_row(l.shape) + 4 * hidden + unit;
  float* const dcp = d.dc + b * l.padded + unit;
  const F32 dc = load<F32>(dcp) + dh * o * (1.0f - tc * tc);
  store(dcp, dc * f);
  float* const out = d.d_gates + row * 4 * hidden + unit;
  store_units(out, dc * g * i * (1.0f - i), valid);
  store_units(out + hidden, dc * load_units(cp, valid) * f * (1.0f - f), valid);
  store_units(out + 2 * hidden, dc * i * (1.0f - g * g), valid);
  store_units(out + 3 * hidden, dh * tc * o * (1.0f - o), valid);
}

// Step s (0 .. steps) of a direction on the panels [begin, end) of kPanel units. Sequences that were active in step
// s - 1 get their dh from its d(gates), new ones from grad_h_n; those that end here leave theirs in grad_h0.
void share_step(const Layer& l, const Direction& d, int64_t s, int64_t begin, int64_t end) {
  const int64_t steps = l.shape.steps, hidden = l.shape.hidden;
  const int64_t t = d.reversed ? s : steps - 1 - s, before = d.reversed ? t - 1 : t + 1;
  const int64_t active = s < steps ? l.rows.active(t) : 0, known = s > 0 ? l.rows.active(before) : 0;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * kPanel;
    float* const dh = d.dh + first;
    if (known)
      panel(known, d.d_gates + l.rows.first(before) * 4 * hidden, 4 * hidden, d.w_hh + p * 4 * hidden * kPanel,
            4 * hidden, static_cast<const float*>(nullptr), 0, dh, l.padded);
    for (int64_t unit = first; unit < first + kPanel && unit < hidden; unit += kLanes) {
      const int64_t valid = hidden - unit < kLanes ? hidden - unit : kLanes;
      for (int64_t b = 0; b < active || b < known; ++b) {
        const F32 v =
            b < known ? load<F32>(d.dh + b * l.padded + unit) : load_units(d.grad_h_n + b * hidden + unit, valid);
        if (b < active)
          cell_backward(l, d, t, b, unit, valid, v);
        else
          store_units(d.grad_h0 + b * hidden + unit, v, valid);
      }
    }
  }
}

// db = the column sums of d(gates), for b_ih and b_hh alike.
void sum_columns(const float* d_gates, int64_t rows, int64_t columns, DType dtype, void* b_ih, void* b_hh,
                 const Executor& executor) {
  constexpr int64_t kBlock = 64;
  parallel_for(executor, 0, (columns + kBlock - 1) / kBlock, 1 + 65536 / (kBlock * (rows + 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t j = begin * kBlock; j < end * kBlock && j < columns; j += kBlock) {
                   float sum[kBlock] = {};
                   const int64_t n = columns - j < kBlock ? columns - j : kBlock;
                   for (int64_t r = 0; r < rows; ++r)
                     for (int64_t i = 0; i < n; ++i) sum[i] += d_gates[r * columns + j + i];
                   write_row(b_ih, dtype, j, n, sum);
                   write_row(b_hh, dtype, j, n, sum);
                 }
               });
}

void write_matrix(const float* from, int64_t rows, int64_t columns, void* to, const Executor& executor) {
  parallel_for(executor, 0, rows, 1 + 32768 / (columns + 1), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) write_row(to, DType::bf16, r * columns, columns, from + r * columns);
  });
}

struct Parts {
  float *x, *output, *grad_output, *grad_x;  // dense copies, or nullptr
  float* between[2];                         // gradients of the inner layers' outputs
  float* states;                             // c0, grad_h_n, grad_h0, h0 of one layer: (d, 4, b, h)
  float* running;                            // dh, dc: (d, 2, b, padded)
  float* d_gates;                            // (d, rows, 4h)
  float* w_hh[2];
  float* panels;       // W_ih, x or h_{t-1} in panels
  float* grad_weight;  // bf16: a gradient before it is rounded
  Share* shares;
};

Parts parts_of(const LstmBackwardParts& at, void* workspace) {
  const auto floats = [&](int64_t offset) { return part<float>(workspace, offset); };
  return {floats(at.x),
          floats(at.output),
          floats(at.grad_output),
          floats(at.grad_x),
          {floats(at.between[0]), floats(at.between[1])},
          floats(at.states),
          floats(at.running),
          floats(at.d_gates),
          {floats(at.w_hh[0]), floats(at.w_hh[1])},
          floats(at.panels),
          floats(at.grad_weight),
          part<Share>(workspace, at.shares)};
}

template <class W>
struct Backward {
  const LstmBackwardPlan& plan;
  const LstmBackwardArgs& args;
  const LstmShape& s;
  const Executor& executor;
  Parts at;
  Rows order;
  int64_t rows, width, padded, state;
  const float* reserve;

  const W* weight(int cell, int which) const {
    return static_cast<const W*>(args.weights[cell * (s.bias ? 4 : 2) + which]);
  }
  void* grad_weight(int cell, int which) const { return args.grad_weights[cell * (s.bias ? 4 : 2) + which]; }

  // The states of every sequence, (b, h) of layer and direction `cell`, as float32; zero where there are none.
  float* read_states(const void* from, int cell, float* to) const {
    if (from)
      read_row(from, s.dtype, cell * state, state, to);
    else
      std::memset(to, 0, static_cast<size_t>(state) * sizeof(float));
    return to;
  }

  // out (4h, n) = d_gates^T B, B given by its rows.
  template <class Row>
  void weight_gradient(const float* d_gates, int64_t n, void* out, const Row& row) const {
    pack_panels(rows, n, at.panels, executor, row);
    float* const c = s.dtype == DType::f32 ? static_cast<float*>(out) : at.grad_weight;
    gemm({4 * s.hidden, n, rows, d_gates, 1, 4 * s.hidden, at.panels, c, n, false}, executor);
    if (s.dtype != DType::f32) write_matrix(c, 4 * s.hidden, n, out, executor);
  }

  // One layer: its input x and output y (dense), the gradients of both.
  void layer(int index, const float* x, const float* y, const float* grad_y, float* grad_x) const {
    Layer l{s, order, padded, {}};
    const int64_t input = lstm_input(s, index), hidden = s.hidden, gates = 4 * hidden;
    const float* h0[2] = {};
    for (int d = 0; d < s.directions; ++d) {
      const int cell = cell_of(s, index, d);
      Direction& to = l.direction[d];
      pack_panels(gates, hidden, at.w_hh[d], executor, [&](int64_t j) { return weight(cell, 1) + j * hidden; });
      float* const states = at.states + d * 4 * state;
      to.w_hh = at.w_hh[d];
      to.reserve = reserve + cell * rows * reserve_row(s);
      to.c0 = read_states(args.c0, cell, states);
      to.grad_h_n = read_states(args.grad_h_n, cell, states + state);
      to.grad_h0 = states + 2 * state;
      h0[d] = read_states(args.h0, cell, states + 3 * state);
      to.d_gates = at.d_gates + d * rows * gates;
      to.dh = at.running + d * 2 * s.batch * padded;
      to.dc = to.dh + s.batch * padded;
      std::memset(to.dc, 0, static_cast<size_t>(s.batch * padded) * sizeof(float));
      for (int64_t b = 0; args.grad_c_n && b < s.batch; ++b)
        read_row(args.grad_c_n, s.dtype, cell * state + b * hidden, hidden, to.dc + b * padded);
      to.grad_output = grad_y ? grad_y + d * hidden : nullptr;
      to.reversed = d == 1;
    }
    const int64_t panels = padded / kPanel;
    walk_layer(at.shares, plan.team, s.directions, s.steps + 1, executor,
               [&](int d, int share, int shares, int64_t step) {
                 share_step(l, l.direction[d], step, panels * share / shares, panels * (share + 1) / shares);
               });
    for (int d = 0; d < s.directions; ++d) {
      const int cell = cell_of(s, index, d);
      const Direction& from = l.direction[d];
      for (int64_t b = 0; b < s.batch; ++b) {
        write_row(args.grad_h0, s.dtype, cell * state + b * hidden, hidden, from.grad_h0 + b * hidden);
        write_row(args.grad_c0, s.dtype, cell * state + b * hidden, hidden, from.dc + b * padded);
      }
      weight_gradient(from.d_gates, input, grad_weight(cell, 0), [&](int64_t r) { return x + r * input; });
      // h_{t-1} of row r: its step is found by division, or by bisection among packed sequences.
      weight_gradient(from.d_gates, hidden, grad_weight(cell, 1), [&](int64_t r) {
        const int64_t t = time_of_row(r), b = r - order.first(t), before = row_before(l, from, t, b);
        return before < 0 ? h0[d] + b * hidden : y + before * width + d * hidden;
      });
      if (s.bias) sum_columns(from.d_gates, rows, gates, s.dtype, grad_weight(cell, 2), grad_weight(cell, 3), executor);
      pack_panels(gates, input, at.panels, executor, [&](int64_t j) { return weight(cell, 0) + j * input; });
      gemm({rows, input, gates, from.d_gates, gates, 1, at.panels, grad_x, input, d > 0}, executor);
    }
  }

  int64_t time_of_row(int64_t row) const {
    if (!order.sizes) return row / s.batch;
    int64_t low = 0, high = s.steps;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (order.starts[middle] <= row ? low : high) = middle;
    }
    return low;
  }

  void run() const {
    const float* const x = dense_rows(args.x, s, order, s.input, at.x, executor);
    const auto given = [&](const LstmSequence& q, float* copy) {
      return q.data ? dense_rows(q, s, order, width, copy, executor) : nullptr;
    };
    const float* y = given(args.output, at.output);
    const float* grad_y = given(args.grad_output, at.grad_output);
    const float* const outputs = reserve + s.layers * s.directions * rows * reserve_row(s);
    for (int i = s.layers - 1; i >= 0; --i) {
      const float* const input = i ? outputs + (i - 1) * rows * width : x;
      float* const grad_x = i ? at.between[(i - 1) & 1] : at.grad_x ? at.grad_x : static_cast<float*>(args.grad_x.data);
      layer(i, input, y, grad_y, grad_x);
      y = input;
      grad_y = grad_x;
    }
    if (!at.grad_x) return;
    parallel_for(executor, 0, s.steps, 1 + 32768 / (s.batch * s.input + 1), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t b = 0; b < order.active(t); ++b)
          write_row(args.grad_x.data, s.dtype, offset_of(args.grad_x, order, t, b), s.input,
                    at.grad_x + (order.first(t) + b) * s.input);
    });
  }
};

template <class W>
void backward(const LstmBackwardPlan& plan, void* workspace, const Executor& executor) {
  const LstmShape& s = plan.args.shape;
  const Backward<W> pass{plan,
                         plan.args,
                         s,
                         executor,
                         parts_of(plan.at, workspace),
                         Rows(s),
                         plan.rows,
                         s.directions * s.hidden,
                         plan.padded,
                         s.batch * s.hidden,
                         static_cast<const float*>(plan.args.reserve)};
  pass.run();
}

}  // namespace

void lstm_plan_backward(LstmBackwardPlan* plan, int threads) {
  const LstmBackwardArgs& args = plan->args;
  const LstmShape& s = args.shape;
  const int64_t rows = lstm_rows(s), width = s.directions * s.hidden, padded = round_up(s.hidden, kPanel);
  const int64_t inputs = s.layers > 1 && width > s.input ? width : s.input;
  const int64_t widest = inputs > s.hidden ? inputs : s.hidden, gates = 4 * s.hidden;
  plan->rows = rows;
  plan->padded = padded;
  plan->team = team_size(s, threads, panels_of(s.hidden));
  Arena arena;
  LstmBackwardParts& at = plan->at;
  at.x = arena.take_if<float>(needs_copy(args.x, s, s.input), rows * s.input);
  at.output = arena.take_if<float>(args.output.data && needs_copy(args.output, s, width), rows * width);
  at.grad_output = arena.take_if<float>(args.grad_output.data && needs_copy(args.grad_output, s, width), rows * width);
  at.grad_x = arena.take_if<float>(needs_copy(args.grad_x, s, s.input), rows * s.input);
  for (int i = 0; i < 2; ++i) at.between[i] = arena.take_if<float>(s.layers > 1 + i, rows * width);
  at.states = arena.take<float>(s.directions * 4 * s.batch * s.hidden);
  at.running = arena.take<float>(s.directions * 2 * s.batch * padded);
  at.d_gates = arena.take<float>(s.directions * rows * gates);
  for (int d = 0; d < 2; ++d) at.w_hh[d] = arena.take_if<float>(d < s.directions, gates * padded);
  at.panels = arena.take<float>((rows > gates ? rows : gates) * round_up(widest, kPanel));
  at.grad_weight = arena.take_if<float>(s.dtype == DType::bf16, gates * widest);
  at.shares = arena.take<Share>(s.directions * plan->team);
  plan->workspace_bytes = arena.used;
}

void lstm_backward(const LstmBackwardPlan& plan, void* workspace, const Executor& executor) {
  if (plan.args.shape.dtype == DType::bf16)
    backward<bf16_t>(plan, workspace, executor);
  else
    backward<float>(plan, workspace, executor);
}

}  // namespace PK_ISA
}  // namespace pk
