// The pointwise part of a step, for one sequence and one unit:
//   i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of the four sums,  c' = f c + i g,  h' = o tanh(c')
// and where its results go.
#pragma once

#include "cuda/activate.cuh"
#include "cuda/lstm/kernels.h"
#include "cuda/numeric.cuh"
#include "cuda/platform.cuh"
#include "cuda/ptx.cuh"

namespace pk::cuda::lstm {

// T decides how exact: 16-bit results hide an error of 1e-7.
template <class T>
PK_DEVICE float sigmoid_of(float x) {
  if constexpr (sizeof(T) == 4) return sigmoid(x);
  return ptx::reciprocal_approx(1.0f + ptx::exp2_approx(-1.442695041f * x));
}
template <class T>
PK_DEVICE float tanh_of(float x) {
  if constexpr (sizeof(T) == 4) return tanhf(x);
  // Near zero the difference loses its relative precision; the series' error there is x^5 / 7.
  const float far = 2.0f * sigmoid_of<T>(2.0f * x) - 1.0f, near = x - x * x * x * (1.0f / 3.0f);
  return fabsf(x) < 0.03125f ? near : far;
}

struct CellResult {
  float4 gates;  // i, f, g, o
  float c, h;
};

template <class T>
PK_DEVICE CellResult cell_step(float4 sums, float c) {
  CellResult r;
  r.gates = make_float4(sigmoid_of<T>(sums.x), sigmoid_of<T>(sums.y), tanh_of<T>(sums.z), sigmoid_of<T>(sums.w));
  r.c = r.gates.y * c + r.gates.x * r.gates.z;
  r.h = r.gates.w * tanh_of<T>(r.c);
  return r;
}

// Writes what step `time` gives sequence b's unit u; row: of (time, b) among all time steps; last: of this sequence
// within the launch.
template <class T>
PK_DEVICE void write_cell(const Cell& to, int hidden, int64_t time, int64_t row, int64_t b, int u, const CellResult& r,
                          bool last) {
  const T h = from_float<T>(r.h);
  if (to.output) {
    const int64_t at = to.by_row ? row * to.output_row : time * to.output_step + b * to.output_row;
    static_cast<T*>(to.output)[at + u] = h;
  }
  if (to.gates) {
    T* const gates = static_cast<T*>(to.gates) + (row * hidden + u) * 4;
    gates[0] = from_float<T>(r.gates.x);
    gates[1] = from_float<T>(r.gates.y);
    gates[2] = from_float<T>(r.gates.z);
    gates[3] = from_float<T>(r.gates.w);
    static_cast<T*>(to.c_steps)[row * hidden + u] = from_float<T>(r.c);
  }
  if (last) {
    const int64_t at = b * hidden + u;
    static_cast<T*>(to.h_n)[at] = h;
    static_cast<T*>(to.c_n)[at] = from_float<T>(r.c);
  }
}

}  // namespace pk::cuda::lstm
