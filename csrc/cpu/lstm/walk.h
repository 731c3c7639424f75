// What the forward passes of float and int8 weights share: where a direction's states lie, and which rows a step has.
#pragma once

#include "cpu/lstm/sequence.h"

namespace pk {
namespace PK_ISA {
namespace {

// How many rows of x one product takes: enough to amortise a pass over W_ih.
inline constexpr int64_t kSpanRows = 96;
inline int64_t span_of(const LstmShape& s) { return s.batch >= kSpanRows ? 1 : kSpanRows / (s.batch ? s.batch : 1); }

// The states of one direction of one layer, and where the last ones go.
struct States {
  float* h[2];  // (b, padded), step s reads h[s & 1] and writes the other
  float* c;     // (b, padded)
  void* h_n;
  void* c_n;
  bool reversed;
};

inline int64_t states_size(const LstmShape& s, int64_t padded) { return s.directions * 3 * s.batch * padded; }

// Those of direction d of a layer, in its part of `memory` [states_size]; they begin with h0 and c0 of `args`.
template <class Args>
void begin_states(const Args& args, int64_t padded, float* memory, int layer, int d, States* to) {
  const LstmShape& s = args.shape;
  const int64_t size = s.batch * padded, index = cell_of(s, layer, d), state = s.batch * s.hidden;
  float* const states = memory + d * 3 * size;
  to->h[0] = states, to->h[1] = states + size, to->c = states + 2 * size;
  std::memset(states, 0, static_cast<size_t>(3 * size) * sizeof(float));
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t from = index * state + b * s.hidden;
    read_row(args.h0, s.dtype, from, s.hidden, to->h[0] + b * padded);
    read_row(args.h0, s.dtype, from, s.hidden, to->h[1] + b * padded);
    read_row(args.c0, s.dtype, from, s.hidden, to->c + b * padded);
  }
  const int64_t bytes = index * state * static_cast<int64_t>(size_of(s.dtype));
  to->h_n = static_cast<char*>(args.h_n) + bytes;
  to->c_n = static_cast<char*>(args.c_n) + bytes;
  to->reversed = d == 1;
}

// Step s of a direction, with `span` steps for one product with W_ih.
struct Step {
  int64_t t;           // its time
  int64_t first, end;  // the rows of its span
  int64_t active;      // sequences in its batch
  int64_t goes_on;     // those of them, the first ones, that have another step; the others' states go to h_n and c_n

  Step(const LstmShape& shape, const Rows& rows, bool reversed, int64_t span, int64_t s) {
    const int64_t steps = shape.steps, begin = s / span * span, last = min(begin + span, steps) - 1;
    const int64_t low = reversed ? steps - 1 - last : begin, high = reversed ? steps - 1 - begin : last;
    t = reversed ? steps - 1 - s : s;
    first = rows.first(low), end = rows.first(high) + rows.active(high);
    active = rows.active(t);
    goes_on = reversed ? (t == 0 ? 0 : active) : t + 1 < steps ? rows.active(t + 1) : 0;
  }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
