// The pass, as csrc/cpu/lstm/forward.cpp has it: layer by layer; within one, both directions side by side, and a team
// of threads of which each owns a fixed share of the hidden units:
//
//   once:                the rows of the layer's input to int8
//   every `span` steps:  gx = s_x s_ih (q(x) W_ih^T) + bias for the rows of these steps, the share's units only
//   every step:          h_{t-1} to int8; gx + s_h s_hh (q(h_{t-1}) W_hh^T), and the cell on it
//
// A share's slice of W_hh, a quarter of float32's, stays in its core's cache from step to step. Each share rounds all
// of h_{t-1} for itself: that takes about a hundredth of the products, where a second barrier would cost more. Sums are
// exact, and the rest is computed number by number: the bits depend on nothing but the numbers.
#include "cpu/int8_lstm/gates.h"
#include "cpu/int8_lstm/kernels.h"
#include "cpu/int8_lstm/pack.h"
#include "cpu/int8_lstm/tile.h"
#include "cpu/int8_matmul/pack_a.h"
#include "cpu/lstm/team.h"
#include "cpu/lstm/walk.h"

namespace pk {
namespace PK_ISA {
namespace {

// Of a row of k int8: a cache line more, so that rows don't share cache sets.
inline int64_t row_of(int64_t k) { return round_up(k, kPackedRows) + 64 / static_cast<int64_t>(sizeof(AValue)); }

struct Direction : States {
  const int8_t* w_ih;  // panels
  const int8_t* w_hh;
  const float* table;  // (h/kLanes, kTableRows, 4, kLanes)
  float* gx;           // (h/kLanes, span rows, 4, kLanes)
};

struct Layer {
  LstmShape shape;
  Rows rows;
  int64_t padded, input, span, span_rows, own_bytes;
  const AValue* x;       // (rows, row_of(input))
  const float* x_scale;  // (rows)
  LstmSequence output;   // with `output_dtype`
  DType output_dtype;
  Direction direction[2];
};

// k numbers to int8; returns their scale.
template <class T>
inline float quantize_row(const T* from, int64_t k, AValue* to) {
  const float scale = symmetric_scale(largest_magnitude(from, k));
  std::memset(to + k, 0, static_cast<size_t>(round_up(k, kPackedRows) - k) * sizeof(AValue));
  pack_row(from, k, scale, to);
  return scale;
}

// One matrix's part of the gates before their curves.
inline F32 scaled(const int32_t* sums, const float* table, int matrix, float scale, int gate) {
  const int64_t at = gate * kLanes;
  U32 sum = load<U32>(sums + at);
  if constexpr (kAOffset != 0) sum -= load<U32>(table + (2 + matrix) * kGates + at);
  return to_f32(bit_cast<I32>(sum)) * (load<F32>(table + matrix * kGates + at) * scale);
}

// gx of the unit blocks [begin, end) for `rows` rows from `first` on.
inline void multiply_inputs(const Layer& l, const Direction& d, int64_t begin, int64_t end, int64_t first,
                            int64_t rows) {
  const int64_t stride = row_of(l.input), depth = round_up(l.input, kPackedRows);
  int32_t sums[kMr * kGates];
  const auto finish = [&](int64_t u, int64_t r, int64_t n) {
    const float* const table = d.table + u * kTable;
    for (int64_t i = 0; i < n; ++i) {
      float* const to = d.gx + (u * l.span_rows + r + i) * kGates;
      for (int g = 0; g < 4; ++g) {
        const F32 y = scaled(sums + i * kGates, table, 0, l.x_scale[first + r + i], g);
        store(to + g * kLanes, y + load<F32>(table + 4 * kGates + g * kLanes));
      }
    }
  };
  if (rows == 1) {
    for (int64_t u = begin; u < end; u += kPanels / 2) {
      const int64_t blocks = min(kPanels / 2, end - u);
      row_sums(blocks, l.x + first * stride, d.w_ih + u * depth * kGates, depth * 2 * kLanes, depth / kGroup, sums);
      for (int64_t i = 0; i < blocks; ++i) {
        if (i > 0) std::memcpy(sums, sums + i * kGates, kGates * sizeof(int32_t));
        finish(u + i, 0, 1);
      }
    }
    return;
  }
  const int64_t tiles = ceil_div(rows, kMr);
  for (int64_t u = begin; u < end; ++u) {
    for (int64_t t = 0, r = 0; t < tiles; ++t) {
      const int64_t height = ceil_div(rows - r, tiles - t);
      block_sums(height, l.x + (first + r) * stride, stride, d.w_ih + u * depth * kGates, depth * 2 * kLanes,
                 depth / kGroup, sums);
      finish(u, r, height);
      r += height;
    }
  }
}

// The cell of unit block u, sequence b: its gates before their curves are gx (4, kLanes) and what `sums` come to.
struct Cell {
  int64_t u, b;
  const float* gx;
  const int32_t* sums;
  float scale;
  bool last;  // of its sequence: then its state goes to h_n and c_n
};

// How many cells are computed side by side: one alone waits long for each of its curves.
inline constexpr int kCells = 4;
static_assert(kPanels / 2 <= kCells);

// `count` cells at time t, up to kCells.
inline void run_cells(const Layer& l, const Direction& d, int index, int64_t t, float* h_next, const Cell* cells,
                      int64_t count) {
  const int64_t hidden = l.shape.hidden;
  F32 gates[kCells][4], c[kCells], h[kCells];
  for (int64_t n = 0; n < count; ++n) {
    const float* const table = d.table + cells[n].u * kTable;
    for (int g = 0; g < 4; ++g) {
      const F32 z = load<F32>(cells[n].gx + g * kLanes) + scaled(cells[n].sums, table, 1, cells[n].scale, g);
      gates[n][g] = g == 2 ? exact_tanh(z) : exact_sigmoid(z);
    }
  }
  for (int64_t n = 0; n < count; ++n) {
    float* const cp = d.c + cells[n].b * l.padded + cells[n].u * kLanes;
    c[n] = gates[n][1] * load<F32>(cp) + gates[n][0] * gates[n][2];
    h[n] = gates[n][3] * exact_tanh(c[n]);
    store(cp, c[n]);
  }
  for (int64_t n = 0; n < count; ++n) {
    const int64_t b = cells[n].b, unit = cells[n].u * kLanes, valid = min(kLanes, hidden - unit);
    store(h_next + b * l.padded + unit, h[n]);
    if (l.output.data) {
      const int64_t to = offset_of(l.output, l.rows, t, b) + index * hidden + unit;
      write_units(l.output.data, l.output_dtype, to, h[n], valid);
    }
    if (cells[n].last) {
      write_units(d.h_n, l.shape.dtype, b * hidden + unit, h[n], valid);
      write_units(d.c_n, l.shape.dtype, b * hidden + unit, c[n], valid);
    }
  }
}

// Step s of direction `index` on the unit blocks [begin, end); `own` is the share's.
void share_step(const Layer& l, int index, int64_t s, int64_t begin, int64_t end, char* own) {
  const Direction& d = l.direction[index];
  const Step step(l.shape, l.rows, d.reversed, l.span, s);
  if (s % l.span == 0) multiply_inputs(l, d, begin, end, step.first, step.end - step.first);

  const int64_t t = step.t, active = step.active, hidden = l.shape.hidden;
  const int64_t stride = row_of(hidden), depth = round_up(hidden, kPackedRows);
  auto* const q = reinterpret_cast<AValue*>(own);
  auto* const scales = reinterpret_cast<float*>(own + l.shape.batch * stride * static_cast<int64_t>(sizeof(AValue)));
  for (int64_t b = 0; b < active; ++b) scales[b] = quantize_row(d.h[s & 1] + b * l.padded, hidden, q + b * stride);

  const float* const gx = d.gx + (l.rows.first(t) - step.first) * kGates;
  float* const h_next = d.h[(s & 1) ^ 1];
  int32_t sums[kMr * kGates];
  // Blocks come to and fro: what the step before read last is still in the cache.
  const int64_t together = active == 1 ? kPanels / 2 : 1, tiles = ceil_div(active, kMr);
  for (int64_t n = 0; n < end - begin; n += together) {
    const int64_t count = min(together, end - begin - n), u = s & 1 ? end - n - count : begin + n;
    const int8_t* const w = d.w_hh + u * depth * kGates;
    Cell cells[kCells];
    if (active == 1) {
      row_sums(count, q, w, depth * 2 * kLanes, depth / kGroup, sums);
      for (int64_t i = 0; i < count; ++i)
        cells[i] = {u + i, 0, gx + (u + i) * l.span_rows * kGates, sums + i * kGates, scales[0], step.goes_on == 0};
      run_cells(l, d, index, t, h_next, cells, count);
      continue;
    }
    for (int64_t tile = 0, r = 0; tile < tiles; ++tile) {
      const int64_t end_of_tile = r + ceil_div(active - r, tiles - tile), first = r;
      block_sums(end_of_tile - r, q + r * stride, stride, w, depth * 2 * kLanes, depth / kGroup, sums);
      while (r < end_of_tile) {
        int64_t n = 0;
        for (; n < kCells && r < end_of_tile; ++n, ++r)
          cells[n] = {
              u, r, gx + (u * l.span_rows + r) * kGates, sums + (r - first) * kGates, scales[r], r >= step.goes_on};
        run_cells(l, d, index, t, h_next, cells, n);
      }
    }
  }
}

// All rows of a layer's input to int8.
void quantize_inputs(const LstmSequence& x, DType dtype, const LstmShape& s, const Rows& rows, int64_t k, AValue* to,
                     float* scales, const Executor& executor) {
  const int64_t stride = row_of(k);
  parallel_for(executor, 0, s.steps, 1 + 32768 / (s.batch * k + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t b = 0; b < rows.active(t); ++b) {
        const int64_t row = rows.first(t) + b, from = offset_of(x, rows, t, b);
        scales[row] = dtype == DType::f32
                          ? quantize_row(static_cast<const float*>(x.data) + from, k, to + row * stride)
                          : quantize_row(static_cast<const bf16_t*>(x.data) + from, k, to + row * stride);
      }
    }
  });
}

// The weights of direction d of a layer.
void find_weights(const Int8LstmArgs& args, int layer, int d, Direction* to) {
  const char* const packed = static_cast<const char*>(args.packed);
  const Int8LstmOffsets o = int8_packed_offsets(args.shape, kLanes, layer, d);
  to->w_ih = reinterpret_cast<const int8_t*>(packed + o.w_ih);
  to->w_hh = reinterpret_cast<const int8_t*>(packed + o.w_hh);
  to->table = reinterpret_cast<const float*>(packed + o.table);
}

int64_t own_bytes(const LstmShape& s) {
  return round_up(s.batch * (row_of(s.hidden) * static_cast<int64_t>(sizeof(AValue)) + 4), 128);
}

void run_pass(const Int8LstmPlan& plan, void* workspace, const Executor& executor) {
  const Int8LstmArgs& args = plan.args;
  const LstmShape& s = args.shape;
  const Rows order(s);
  const int64_t width = s.directions * s.hidden, span = span_of(s), blocks = plan.padded / kLanes;
  AValue* const quantized = part<AValue>(workspace, plan.at.quantized);
  float* const scales = part<float>(workspace, plan.at.scales);
  LstmSequence x = args.x;
  DType x_dtype = s.dtype;
  for (int layer = 0; layer < s.layers; ++layer) {
    const int64_t input = lstm_input(s, layer);
    Layer l{s,         order,  plan.padded, input,   span, span * s.batch, own_bytes(s),
            quantized, scales, args.output, s.dtype, {}};
    quantize_inputs(x, x_dtype, s, order, input, quantized, scales, executor);
    if (layer + 1 < s.layers) {
      x = l.output = {part<float>(workspace, plan.at.between[layer & 1]), s.batch * width, width};
      x_dtype = l.output_dtype = DType::f32;
    }
    for (int d = 0; d < s.directions; ++d) {
      l.direction[d].gx = part<float>(workspace, plan.at.gx) + d * l.span_rows * 4 * plan.padded;
      find_weights(args, layer, d, &l.direction[d]);
      begin_states(args, plan.padded, part<float>(workspace, plan.at.state), layer, d, &l.direction[d]);
    }
    char* const own = part<char>(workspace, plan.at.own);
    walk_layer(part<Share>(workspace, plan.at.shares), plan.team, s.directions, s.steps, executor,
               [&](int d, int share, int shares, int64_t step) {
                 share_step(l, d, step, blocks * share / shares, blocks * (share + 1) / shares,
                            own + (d * plan.team + share) * l.own_bytes);
               });
  }
}

// Members that a step is worth: a multiply-add takes a quarter of float32's time or less.
int team_for(const LstmShape& s, int threads, int64_t blocks) {
  LstmShape quarter = s;
  quarter.hidden = (s.hidden + 1) / 2;
  return team_size(quarter, threads, blocks);
}

void complete(Int8LstmPlan* plan, int threads) {
  const LstmShape& s = plan->args.shape;
  const int64_t rows = lstm_rows(s), blocks = ceil_div(s.hidden, kLanes), padded = blocks * kLanes;
  const int64_t width = s.directions * s.hidden;
  plan->padded = padded;
  plan->team = team_for(s, threads, blocks);
  Arena arena;
  // Outputs of inner layers (rows, d * h); the inputs of one layer; what the steps of one layer need.
  for (int i = 0; i < 2; ++i) plan->at.between[i] = arena.take_if<float>(s.layers > 1 + i, rows * width);
  plan->at.quantized = arena.take<AValue>(rows * row_of(s.layers > 1 ? max(s.input, width) : s.input));
  plan->at.scales = arena.take<float>(rows);
  plan->at.gx = arena.take<float>(s.directions * span_of(s) * s.batch * 4 * padded);
  plan->at.state = arena.take<float>(states_size(s, padded));
  plan->at.shares = arena.take<Share>(s.directions * plan->team);
  plan->at.own = arena.take<char>(s.directions * plan->team * own_bytes(s));
  plan->workspace_bytes = arena.used;
}

}  // namespace

extern const Int8LstmKernels int8_lstm_kernels;
const Int8LstmKernels int8_lstm_kernels = {kLanes, kGroup, pack_layers, complete, run_pass};

}  // namespace PK_ISA
}  // namespace pk
