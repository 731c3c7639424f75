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
#include "cpu/lstm/team.h"
#include "cpu/lstm/tile.h"
#include "cpu/lstm/walk.h"
#include "cpu/vec_math.h"

namespace pk {
namespace PK_ISA {
namespace {

// Up to this number of rows, weights that come unpacked are used as they are: to pack them costs as much as some
// hundred rows.
inline constexpr int64_t kUnpackedRows = 512;

// How many unit blocks one row takes together: as several streams of weights, and as several cells, because one alone
// waits long for each of its operations. AVX2 gains nothing from it.
inline constexpr int64_t kBlocksTogether = kStreamPanels ? 2 * kStreams : 1;

// One direction of one layer.
template <class W>
struct Direction : States {
  const W* w_ih;  // packed panels, or as nn.LSTM has them: see Layer::packed
  const W* w_hh;
  const float* bias;            // (h/kLanes, 4, kLanes)
  const float* s_ih = nullptr;  // the scales of int8 weights, as the bias
  const float* s_hh = nullptr;
  float* gx;  // (h/kLanes, span rows, 4, kLanes): what a tile writes is dense
  float* reserve;
};

template <class W>
struct Layer {
  LstmShape shape;
  Rows rows;
  int64_t padded, input, span, span_rows;
  bool packed;
  const float* x;       // dense (rows, input)
  LstmSequence output;  // with `output_dtype`
  DType output_dtype;
  Direction<W> direction[2];
};

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

// Gates of the unit blocks [begin, end): gates (rows, 4, kLanes) of each = init + a (rows, k) w^T, a block's `block`
// after those of the one before.
template <class W>
inline void multiply(const Layer<W>& l, int64_t begin, int64_t end, int64_t rows, const float* a, int64_t a_row,
                     const W* w, const float* scales, int64_t k, const float* init, int64_t init_block,
                     int64_t init_row, float* gates, int64_t block) {
  const auto scale_of = [&](int64_t u) { return kIsScaled<W> ? scales + u * kPanel : nullptr; };
  if (l.packed && rows == 1)
    return row_panels(a, w + begin * k * kPanel, end - begin, k, init + begin * init_block, init_block,
                      gates + begin * block, block, scale_of(begin));
  for (int64_t u = begin; u < end; ++u) {
    const float* const from = init + u * init_block;
    float* const to = gates + u * block;
    if (kIsScaled<W> || l.packed)
      panel(rows, a, a_row, w + u * k * kPanel, k, from, init_row, to, kPanel, scale_of(u));
    else
      dots(rows, a, a_row, w, l.shape.hidden, u, k, from, init_row, to, kPanel);
  }
}

// Step s of direction `index` on the unit blocks [begin, end).
template <class W>
void share_step(const Layer<W>& l, int index, int64_t s, int64_t begin, int64_t end) {
  const Direction<W>& d = l.direction[index];
  const Step step(l.shape, l.rows, d.reversed, l.span, s);
  const int64_t block = l.span_rows * kPanel, hidden = l.shape.hidden;
  if (s % l.span == 0)
    multiply(l, begin, end, step.end - step.first, l.x + step.first * l.input, l.input, d.w_ih, d.s_ih, l.input, d.bias,
             kPanel, 0, d.gx, block);
  float* const gates = d.gx + (l.rows.first(step.t) - step.first) * kPanel;
  float* const h_next = d.h[(s & 1) ^ 1];
  // Blocks come to and fro: what the step before read last is still in the cache.
  const int64_t together = step.active == 1 ? kBlocksTogether : 1;
  for (int64_t n = 0; n < end - begin; n += together) {
    const int64_t low_end = begin + n + together < end ? begin + n + together : end;
    const int64_t high_begin = end - n - together > begin ? end - n - together : begin;
    const int64_t from = s & 1 ? high_begin : begin + n, to = s & 1 ? end - n : low_end;
    multiply(l, from, to, step.active, d.h[s & 1], l.padded, d.w_hh, d.s_hh, hidden, gates, block, kPanel, gates,
             block);
    for (int64_t u = from; u < to; ++u)
      for (int64_t b = 0; b < step.active; ++b)
        cell(l, d, index, u, step.t, b, h_next, gates + u * block + b * kPanel, b >= step.goes_on);
  }
}

// Where direction d of a layer finds its weights, packed or as they were given.
template <class W>
void find_weights(const LstmForwardPlan& plan, void* workspace, const char* packed, int layer, int d,
                  Direction<W>* to) {
  const LstmShape& s = plan.args.shape;
  if (packed) {
    const PackedOffsets o = packed_offsets(s, plan.weights, kLanes, layer, d);
    to->w_ih = reinterpret_cast<const W*>(packed + o.w_ih);
    to->w_hh = reinterpret_cast<const W*>(packed + o.w_hh);
    to->bias = reinterpret_cast<const float*>(packed + o.bias);
    if constexpr (kIsScaled<W>) {
      to->s_ih = reinterpret_cast<const float*>(packed + o.s_ih);
      to->s_hh = reinterpret_cast<const float*>(packed + o.s_hh);
    }
    return;
  }
  if constexpr (!kIsScaled<W>) {  // int8 comes packed
    const void* const* w = plan.args.weights + cell_of(s, layer, d) * (s.bias ? 4 : 2);
    to->w_ih = static_cast<const W*>(w[0]);
    to->w_hh = static_cast<const W*>(w[1]);
    float* const bias = part<float>(workspace, plan.at.bias) + d * 4 * plan.padded;
    pack_bias(static_cast<const W*>(s.bias ? w[2] : nullptr), static_cast<const W*>(s.bias ? w[3] : nullptr), s.hidden,
              bias);
    to->bias = bias;
  }
}

template <class W>
void forward(const LstmForwardPlan& plan, void* workspace, const Executor& executor) {
  const LstmForwardArgs& args = plan.args;
  const LstmShape& s = args.shape;
  const char* packed = static_cast<const char*>(args.packed);
  if (char* const own = part<char>(workspace, plan.at.packed)) {
    lstm_pack_weights(s, args.weights, own, executor);
    packed = own;
  }
  const Rows order(s);
  const int64_t rows = plan.rows, padded = plan.padded, width = s.directions * s.hidden, span = span_of(s);
  float* const reserve = args.save ? static_cast<float*>(args.reserve) : nullptr;
  const float* x = dense_rows(args.x, s, order, s.input, part<float>(workspace, plan.at.x), executor);
  for (int layer = 0; layer < s.layers; ++layer) {
    Layer<W> l{s,           order,   padded, lstm_input(s, layer), span, span * s.batch, packed != nullptr, x,
               args.output, s.dtype, {}};
    if (layer + 1 < s.layers) {
      float* const between = reserve ? reserve + s.layers * s.directions * rows * reserve_row(s) + layer * rows * width
                                     : part<float>(workspace, plan.at.between[layer & 1]);
      l.output = {between, s.batch * width, width};
      l.output_dtype = DType::f32;
      x = between;
    }
    for (int d = 0; d < s.directions; ++d) {
      Direction<W>& to = l.direction[d];
      to.gx = part<float>(workspace, plan.at.gx) + d * l.span_rows * 4 * padded;
      to.reserve = reserve ? reserve + cell_of(s, layer, d) * rows * reserve_row(s) : nullptr;
      find_weights(plan, workspace, packed, layer, d, &to);
      begin_states(args, padded, part<float>(workspace, plan.at.state), layer, d, &to);
    }
    const int64_t blocks = padded / kLanes;
    walk_layer(part<Share>(workspace, plan.at.shares), plan.team, s.directions, s.steps, executor,
               [&](int d, int share, int shares, int64_t step) {
                 share_step(l, d, step, blocks * share / shares, blocks * (share + 1) / shares);
               });
  }
}

}  // namespace

void lstm_plan_forward(LstmForwardPlan* plan, int threads) {
  const LstmForwardArgs& args = plan->args;
  const LstmShape& s = args.shape;
  const int64_t rows = lstm_rows(s), blocks = (s.hidden + kLanes - 1) / kLanes, padded = blocks * kLanes;
  plan->rows = rows;
  plan->padded = padded;
  plan->team = team_size(s, threads, blocks);
  Arena arena;
  LstmForwardParts& at = plan->at;
  at.x = arena.take_if<float>(needs_copy(args.x, s, s.input), rows * s.input);
  // Outputs of inner layers (rows, d * h), where no reserve holds them.
  for (int i = 0; i < 2; ++i)
    at.between[i] = arena.take_if<float>(!args.save && s.layers > 1 + i, rows * s.directions * s.hidden);
  // Of one layer.
  at.gx = arena.take<float>(s.directions * span_of(s) * s.batch * 4 * padded);
  at.state = arena.take<float>(states_size(s, padded));
  at.shares = arena.take<Share>(s.directions * plan->team);
  const bool packs = !args.packed && rows > kUnpackedRows;
  at.packed = packs ? arena.take<char>(packed_bytes_of(s, s.dtype, kLanes)) : -1;
  at.bias = arena.take_if<float>(!args.packed && !packs, s.directions * 4 * padded);
  plan->workspace_bytes = arena.used;
}

void lstm_forward(const LstmForwardPlan& plan, void* workspace, const Executor& executor) {
  if (plan.weights == DType::i8)
    forward<int8_t>(plan, workspace, executor);
  else if (plan.weights == DType::bf16)
    forward<bf16_t>(plan, workspace, executor);
  else
    forward<float>(plan, workspace, executor);
}

}  // namespace PK_ISA
}  // namespace pk
