// The forward pass. Layer by layer; within one, both directions side by side, and a team of threads of which each owns
// a fixed share of the hidden units:
//
//   every `span` steps:  gx = bias + x W_ih^T for the rows of these steps (one GEMM, the share's columns only)
//   every step:          gx += h_{t-1} W_hh^T on the share's panels, then the cell on the same, still hot, rows
//
// So a share's slice of W_hh stays in its core's cache from step to step, gx stays small enough for the caches however
// long the sequence is, and the only traffic between cores is h. Unit blocks are summed in the same order whoever
// computes them: the bits don't depend on the number of threads.
#include "cpu/lstm/dot.h"
#include "cpu/lstm/isa.h"
#include "cpu/lstm/sequence.h"
#include "cpu/lstm/team.h"
#include "cpu/lstm/tile.h"
#include "cpu/vec_math.h"

namespace pk {
namespace PK_ISA {
namespace {

// Rows of x that one GEMM takes: enough to amortise a pass over W_ih.
inline constexpr int64_t kSpanRows = 96;
// Below this many multiply-adds a second thread costs more than it brings: in a layer, and in each share of a step.
inline constexpr int64_t kLayerWork = 1 << 18;
inline constexpr int64_t kShareWork = 1 << 14;

inline int64_t span_of(const LstmShape& s) { return s.batch >= kSpanRows ? 1 : kSpanRows / (s.batch ? s.batch : 1); }

// Up to so many rows in all, weights that come unpacked are used as they are: packing costs as much as some hundred
// rows.
inline constexpr int64_t kUnpackedRows = 512;

inline bool packs(const LstmForward& call) { return !call.packed && lstm_rows(call.shape) > kUnpackedRows; }

inline int team_size(const LstmShape& s, int threads) {
  const int64_t blocks = (s.hidden + kLanes - 1) / kLanes;
  const int64_t step = 4 * s.hidden * s.hidden * s.batch * s.directions;
  int64_t team = threads;
  if (step * s.steps < kLayerWork) team = 1;
  if (team > step / kShareWork) team = step / kShareWork;
  if (team > blocks) team = blocks;
  return team < 1 ? 1 : static_cast<int>(team);
}

// One direction of one layer.
template <class W>
struct Direction {
  const W* w_ih;  // packed panels, or as nn.LSTM has them: see Layer::packed
  const W* w_hh;
  const float* bias;  // (h/kLanes, 4, kLanes)
  float* gx;          // (span rows, 4 * padded)
  float* h[2];        // (b, padded), step s reads h[s & 1] and writes the other
  float* c;           // (b, padded)
  float* reserve;
  void* h_n;
  void* c_n;
  bool reversed;
};

template <class W>
struct Layer {
  LstmShape shape;
  Rows rows;
  int64_t padded, input, span;
  bool packed;
  const float* x;       // dense (rows, input)
  LstmSequence output;  // with `output_dtype`
  DType output_dtype;
  Direction<W> direction[2];
};

// Time of a direction's step s.
template <class W>
inline int64_t time_of(const Layer<W>& l, const Direction<W>& d, int64_t s) {
  return d.reversed ? l.shape.steps - 1 - s : s;
}

inline void write_units(void* data, DType dtype, int64_t offset, F32 v, int64_t valid) {
  if (dtype == DType::f32) {
    float* const p = static_cast<float*>(data) + offset;
    if (valid == kLanes)
      store(p, v);
    else
      store_partial(p, v, valid);
  } else {
    bf16_t* const p = static_cast<bf16_t*>(data) + offset;
    if (valid == kLanes) {
      store_bf16(p, v);
    } else {
      bf16_t tail[kLanes];
      store_bf16(tail, v);
      std::memcpy(p, tail, static_cast<size_t>(valid) * sizeof(bf16_t));
    }
  }
}

// The cell of unit block u, sequence b at time t; gates: (4, kLanes).
template <class W>
inline void cell(const Layer<W>& l, const Direction<W>& d, int index, int64_t u, int64_t t, int64_t b, float* h_next,
                 const float* gates, bool last) {
  const F32 i = sigmoid(load<F32>(gates)), f = sigmoid(load<F32>(gates + kLanes)),
            g = tanh(load<F32>(gates + 2 * kLanes)), o = sigmoid(load<F32>(gates + 3 * kLanes));
  const int64_t unit = u * kLanes, hidden = l.shape.hidden;
  float* const cp = d.c + b * l.padded + unit;
  const F32 c = fma(f, load<F32>(cp), i * g);
  const F32 h = o * tanh(c);
  store(cp, c);
  store(h_next + b * l.padded + unit, h);
  const int64_t valid = hidden - unit < kLanes ? hidden - unit : kLanes;
  if (l.output.data)
    write_units(l.output.data, l.output_dtype, offset_of(l.output, l.rows, t, b) + index * hidden + unit, h, valid);
  if (d.reserve) {
    float* const r = d.reserve + (l.rows.first(t) + b) * reserve_row(l.shape) + unit;
    const F32 saved[5] = {i, f, g, o, c};
    for (int n = 0; n < 5; ++n) write_units(r + n * hidden, DType::f32, 0, saved[n], valid);
  }
  if (last) {
    write_units(d.h_n, l.shape.dtype, b * hidden + unit, h, valid);
    write_units(d.c_n, l.shape.dtype, b * hidden + unit, c, valid);
  }
}

// Gates of unit block u: gates (rows, 4 * padded) = init + a (rows, k) w^T.
template <class W>
inline void multiply(const Layer<W>& l, int64_t rows, const float* a, int64_t a_row, const W* w, int64_t u, int64_t k,
                     const float* init, int64_t init_row, float* gates) {
  if (l.packed)
    panel(rows, a, a_row, w + u * k * kPanel, k, init, init_row, gates, 4 * l.padded);
  else
    dots(rows, a, a_row, w, l.shape.hidden, u, k, init, init_row, gates, 4 * l.padded);
}

// Step s of direction `index` on the unit blocks [begin, end).
template <class W>
void share_step(const Layer<W>& l, int index, int64_t s, int64_t begin, int64_t end) {
  const Direction<W>& d = l.direction[index];
  const int64_t first_step = s / l.span * l.span;
  const int64_t last_step = first_step + l.span < l.shape.steps ? first_step + l.span - 1 : l.shape.steps - 1;
  const int64_t t = time_of(l, d, s);
  const int64_t low = d.reversed ? time_of(l, d, last_step) : first_step;
  const int64_t high = d.reversed ? time_of(l, d, first_step) : last_step;
  const int64_t row0 = l.rows.first(low), gx_row = 4 * l.padded;
  if (s == first_step) {
    const int64_t rows = l.rows.first(high) + l.rows.active(high) - row0;
    for (int64_t u = begin; u < end; ++u)
      multiply(l, rows, l.x + row0 * l.input, l.input, d.w_ih, u, l.input, d.bias + u * kPanel, 0, d.gx + u * kPanel);
  }
  const int64_t active = l.rows.active(t), hidden = l.shape.hidden;
  // A sequence's last step: then its state goes to h_n and c_n.
  const int64_t goes_on = d.reversed ? (t == 0 ? 0 : active) : t + 1 < l.shape.steps ? l.rows.active(t + 1) : 0;
  float* const gates = d.gx + (l.rows.first(t) - row0) * gx_row;
  float* const h_next = d.h[(s & 1) ^ 1];
  for (int64_t u = begin; u < end; ++u) {
    float* const g = gates + u * kPanel;
    multiply(l, active, d.h[s & 1], l.padded, d.w_hh, u, hidden, g, gx_row, g);
    for (int64_t b = 0; b < active; ++b) cell(l, d, index, u, t, b, h_next, g + b * gx_row, b >= goes_on);
  }
}

// Everything the pass keeps in its workspace.
struct Plan {
  Rows rows;
  float* x;           // dense copy of the input, or nullptr
  float* between[2];  // outputs of inner layers (rows, d * h), where no reserve holds them
  float *gx, *state;  // of one layer
  Share* shares;
  char* packed;
  float* bias;  // of one layer, where nothing is packed
  int64_t bytes;
};

inline Plan make_plan(const LstmForward& call, int threads, char* base) {
  const LstmShape& s = call.shape;
  Arena arena{base};
  Plan p{};
  const int64_t rows = lstm_rows(s), padded = round_up(s.hidden, kLanes);
  if (base) {
    p.rows = make_rows(s, arena);
  } else if (s.batch_sizes) {
    arena.take<int64_t>(s.steps + 1);
  }
  if (needs_copy(call.x, s, s.input)) p.x = arena.take<float>(rows * s.input);
  for (int i = 0; i < 2; ++i)
    if (!call.reserve && s.layers > 1 + i) p.between[i] = arena.take<float>(rows * s.directions * s.hidden);
  p.gx = arena.take<float>(s.directions * span_of(s) * s.batch * 4 * padded);
  p.state = arena.take<float>(s.directions * 3 * s.batch * padded);
  p.shares = arena.take<Share>(s.directions * team_size(s, threads));
  if (packs(call))
    p.packed = arena.take<char>(packed_bytes_of(s, kLanes));
  else if (!call.packed)
    p.bias = arena.take<float>(s.directions * 4 * padded);
  p.bytes = arena.used;
  return p;
}

template <class W>
void run_layer(const Layer<W>& l, Share* shares, const Executor& executor) {
  const int team = team_size(l.shape, executor.threads), directions = l.shape.directions;
  const int64_t blocks = l.padded / kLanes;
  Chain chains[2];
  for (int d = 0; d < directions; ++d) {
    chains[d] = {shares + d * team, team};
    chains[d].reset();
  }
  const auto member = [&](int64_t m) {
    walk(chains, directions, static_cast<int>(m), l.shape.steps, [&](int d, int share, int64_t step) {
      share_step(l, d, step, blocks * share / team, blocks * (share + 1) / team);
    });
  };
  if (team == 1) return member(0);
  parallel_for(executor, 0, team, 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) member(m);
  });
}

template <class W>
void forward(const LstmForward& call, const Executor& executor) {
  const LstmShape& s = call.shape;
  Plan plan = make_plan(call, executor.threads, static_cast<char*>(call.workspace));
  const char* packed = static_cast<const char*>(call.packed);
  if (packs(call)) {
    lstm_pack_weights(s, call.weights, plan.packed, executor);
    packed = plan.packed;
  }
  const int64_t rows = lstm_rows(s), padded = round_up(s.hidden, kLanes), width = s.directions * s.hidden;
  const int64_t element = static_cast<int64_t>(size_of(s.dtype)), state = s.batch * s.hidden;
  const float* x = dense_rows(call.x, s, plan.rows, s.input, plan.x, executor);
  for (int layer = 0; layer < s.layers; ++layer) {
    const bool top = layer + 1 == s.layers;
    Layer<W> l{s, plan.rows, padded, lstm_input(s, layer), span_of(s), packed != nullptr, x, call.output, s.dtype, {}};
    if (!top) {
      float* const between = call.reserve
                                 ? call.reserve + s.layers * s.directions * rows * reserve_row(s) + layer * rows * width
                                 : plan.between[layer & 1];
      l.output = {between, s.batch * width, width};
      l.output_dtype = DType::f32;
      x = between;
    }
    for (int d = 0; d < s.directions; ++d) {
      const int index = cell_of(s, layer, d);
      Direction<W>& to = l.direction[d];
      if (packed) {
        const PackedOffsets o = packed_offsets(s, kLanes, layer, d);
        to.w_ih = reinterpret_cast<const W*>(packed + o.w_ih);
        to.w_hh = reinterpret_cast<const W*>(packed + o.w_hh);
        to.bias = reinterpret_cast<const float*>(packed + o.bias);
      } else {
        const void* const* w = call.weights + index * (s.bias ? 4 : 2);
        to.w_ih = static_cast<const W*>(w[0]);
        to.w_hh = static_cast<const W*>(w[1]);
        float* const bias = plan.bias + d * 4 * padded;
        pack_bias(static_cast<const W*>(s.bias ? w[2] : nullptr), static_cast<const W*>(s.bias ? w[3] : nullptr),
                  s.hidden, bias);
        to.bias = bias;
      }
      to.gx = plan.gx + d * l.span * s.batch * 4 * padded;
      float* const states = plan.state + d * 3 * s.batch * padded;
      to.h[0] = states, to.h[1] = states + s.batch * padded, to.c = states + 2 * s.batch * padded;
      std::memset(states, 0, static_cast<size_t>(3 * s.batch * padded) * sizeof(float));
      for (int64_t b = 0; b < s.batch; ++b) {
        const int64_t from = index * state + b * s.hidden;
        read_row(call.h0, s.dtype, from, s.hidden, to.h[0] + b * padded);
        read_row(call.h0, s.dtype, from, s.hidden, to.h[1] + b * padded);
        read_row(call.c0, s.dtype, from, s.hidden, to.c + b * padded);
      }
      to.reserve = call.reserve ? call.reserve + index * rows * reserve_row(s) : nullptr;
      to.h_n = static_cast<char*>(call.h_n) + index * state * element;
      to.c_n = static_cast<char*>(call.c_n) + index * state * element;
      to.reversed = d == 1;
    }
    run_layer(l, plan.shares, executor);
  }
}

}  // namespace

int64_t lstm_forward_bytes(const LstmForward& call, int threads) { return make_plan(call, threads, nullptr).bytes; }

void lstm_forward_pass(const LstmForward& call, const Executor& executor) {
  if (call.shape.dtype == DType::bf16)
    forward<bf16_t>(call, executor);
  else
    forward<float>(call, executor);
}

}  // namespace PK_ISA
}  // namespace pk
