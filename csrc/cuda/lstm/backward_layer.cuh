// What the kernels of the backward recurrence share: one layer's tensors, which rows a step has, and the cell's
// derivative
//
//   dc += dh o (1 - tanh(c)^2)
//   d(i, f, g, o) = dc g i (1 - i),  dc c_before f (1 - f),  dc i (1 - g^2),  dh tanh(c) o (1 - o)
//   dc of the step before = dc f
#pragma once

#include "cuda/numeric.cuh"
#include "cuda/platform.cuh"
#include "pykernels/lstm.h"

namespace pk::cuda::lstm {

// One direction of a layer. Elements are the shape's dtype.
struct BackwardDirection {
  const void* w_hh;      // (4h, h)
  const void* gates;     // (rows, h, 4): i, f, g, o
  const void* c;         // (rows, h)
  const void* c0;        // (b, h)
  const void* grad_h_n;  // (b, h) or nullptr: zero
  const void* grad_c_n;  // (b, h) or nullptr: zero
  void* grad_h0;         // (b, h)
  void* grad_c0;         // (b, h)
};

struct BackwardLayer {
  BackwardDirection direction[2];
  LstmSequence grad_output;  // (t, b, d * h); data may be nullptr: zero
  void* d_gates;             // (rows, d, 4, pitch): out
  const int* starts;         // packed: (steps + 1) first row of each step, on the device; or nullptr
  int steps, batch, hidden, directions;
  int pitch;     // units of a gate of d_gates, at least `hidden`; those beyond are zero
  bool vectors;  // every (4) of `gates` may be read as one vector
};

// The rows of step s (0 .. steps) of a direction, which runs against the forward order: those of its time t; those of
// step s - 1, whose d(gates) give dh; those of step s + 1, whose c is what time t began with. A sequence that was known
// and is not active has left the recurrence (in step `steps` all have): its dh is grad_h0. One that is active and not
// in the next step began with c0.
struct StepRows {
  int t;
  int first, active;            // of time t
  int before_first, known;      // of step s - 1
  int next_first, next_active;  // of step s + 1
};

// Rows before time t, for t in [0, steps]. starts: (steps + 1), or nullptr where every step has `batch` rows.
struct FirstRow {
  const int* starts;
  int batch;
  PK_HOST_DEVICE int operator()(int t) const { return starts ? starts[t] : t * batch; }
};

PK_HOST_DEVICE StepRows step_rows(const FirstRow& first, int steps, bool reversed, int s) {
  StepRows r = {};
  r.t = reversed ? s : steps - 1 - s;
  const int before = reversed ? r.t - 1 : r.t + 1, next = reversed ? r.t + 1 : r.t - 1;
  if (s < steps) {
    r.first = first(r.t);
    r.active = first(r.t + 1) - r.first;
  }
  if (s > 0) {
    r.before_first = first(before);
    r.known = first(before + 1) - r.before_first;
  }
  if (s + 1 < steps) {
    r.next_first = first(next);
    r.next_active = first(next + 1) - r.next_first;
  }
  return r;
}

// What a unit's cell at one time step needs of memory.
struct SavedCell {
  float i, f, g, o, c, c_before, grad_output;
};

template <class T>
PK_DEVICE void load_four(const T* p, bool vectors, float& v0, float& v1, float& v2, float& v3) {
  T v[4];
  if (vectors) {
    if constexpr (sizeof(T) == 4) {
      const float4 all = *reinterpret_cast<const float4*>(p);
      v0 = all.x, v1 = all.y, v2 = all.z, v3 = all.w;
      return;
    } else {
      const uint2 all = *reinterpret_cast<const uint2*>(p);
      v[0].bits = static_cast<uint16_t>(all.x), v[1].bits = static_cast<uint16_t>(all.x >> 16);
      v[2].bits = static_cast<uint16_t>(all.y), v[3].bits = static_cast<uint16_t>(all.y >> 16);
    }
  } else {
    v[0] = p[0], v[1] = p[1], v[2] = p[2], v[3] = p[3];
  }
  v0 = to_float(v[0]), v1 = to_float(v[1]), v2 = to_float(v[2]), v3 = to_float(v[3]);
}

// Of unit u < hidden of the active sequence b.
template <class T>
PK_DEVICE SavedCell load_cell(const BackwardLayer& l, int d, const StepRows& rows, int b, int u) {
  const BackwardDirection& from = l.direction[d];
  SavedCell cell;
  const int64_t at = static_cast<int64_t>(rows.first + b) * l.hidden + u;
  load_four(static_cast<const T*>(from.gates) + at * 4, l.vectors, cell.i, cell.f, cell.g, cell.o);
  cell.c = to_float(static_cast<const T*>(from.c)[at]);
  const T* c_before = b < rows.next_active
                          ? static_cast<const T*>(from.c) + static_cast<int64_t>(rows.next_first + b) * l.hidden
                          : static_cast<const T*>(from.c0) + static_cast<int64_t>(b) * l.hidden;
  cell.c_before = to_float(c_before[u]);
  cell.grad_output = 0.0f;
  if (l.grad_output.data) {
    const LstmSequence& q = l.grad_output;
    const int64_t row = l.starts ? (rows.first + b) * q.row : rows.t * q.step + b * q.row;
    cell.grad_output = to_float(static_cast<const T*>(q.data)[row + d * l.hidden + u]);
  }
  return cell;
}

// d(i, f, g, o) from dh without grad_output; dc becomes that of the step before.
PK_DEVICE void differentiate(const SavedCell& cell, float dh, float& dc, float (&d_gates)[4]) {
  dh += cell.grad_output;
  const float tanh_c = tanhf(cell.c);
  dc += dh * cell.o * (1.0f - tanh_c * tanh_c);
  d_gates[0] = dc * cell.g * cell.i * (1.0f - cell.i);
  d_gates[1] = dc * cell.c_before * cell.f * (1.0f - cell.f);
  d_gates[2] = dc * cell.i * (1.0f - cell.g * cell.g);
  d_gates[3] = dh * tanh_c * cell.o * (1.0f - cell.o);
  dc *= cell.f;
}

// Element (b, u) of a (b, h) tensor that may be absent, or unit u beyond it: zero.
template <class T>
PK_DEVICE float load_state(const void* p, int hidden, int b, int u) {
  return p && u < hidden ? to_float(static_cast<const T*>(p)[static_cast<int64_t>(b) * hidden + u]) : 0.0f;
}
template <class T>
PK_DEVICE void store_state(void* p, int hidden, int b, int u, float v) {
  if (u < hidden) static_cast<T*>(p)[static_cast<int64_t>(b) * hidden + u] = from_float<T>(v);
}

}  // namespace pk::cuda::lstm
