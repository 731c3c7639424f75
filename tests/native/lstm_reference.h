// What the native LSTM tests of every backend share: problems and their data, a plain double-precision LSTM with its
// gradients, tensors in memory laid out as a caller might have them, and how close is close.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "elements.h"
#include "pykernels/lstm.h"
#include "test.h"

namespace pk::test {

struct Case {
  int64_t steps, batch, input, hidden;
  int layers, directions;
  bool bias;
  std::vector<int64_t> sizes;
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A problem with its data in float, whose values are those of a 16-bit dtype where it is one.
struct Problem {
  LstmShape s;
  std::vector<int64_t> sizes, starts;
  std::vector<float> x, h0, c0, grad_output, grad_h_n, grad_c_n;
  std::vector<std::vector<float>> weights;
  int64_t rows;

  Problem(const Case& c, DType dtype) : sizes(c.sizes) {
    s = {c.steps,  c.batch,  c.input,
         c.hidden, c.layers, c.directions,
         c.bias,   dtype,    sizes.empty() ? nullptr : sizes.data()};
    starts.push_back(0);
    for (int64_t t = 0; t < s.steps; ++t) starts.push_back(starts.back() + active(t));
    s.starts = starts.data();
    rows = lstm_rows(s);
    unsigned seed = 1;
    const auto make = [&](int64_t n, float scale) {
      auto v = test::normal(static_cast<size_t>(n), seed++, scale);
      if (dtype != DType::f32)
        for (float& f : v) f = widen(narrow(f, dtype), dtype);
      return v;
    };
    const int64_t states = s.layers * s.directions * s.batch * s.hidden, width = s.directions * s.hidden;
    const float scale = 1 / std::sqrt(static_cast<float>(s.hidden));
    x = make(rows * s.input, 1), h0 = make(states, 1), c0 = make(states, 1);
    grad_output = make(rows * width, 1), grad_h_n = make(states, 1), grad_c_n = make(states, 1);
    for (int cell = 0; cell < s.layers * s.directions; ++cell) {
      weights.push_back(make(4 * s.hidden * lstm_input(s, cell / s.directions), scale));
      weights.push_back(make(4 * s.hidden * s.hidden, scale));
      for (int i = 0; i < 2 && s.bias; ++i) weights.push_back(make(4 * s.hidden, scale));
    }
  }
  int64_t active(int64_t t) const { return sizes.empty() ? s.batch : sizes[static_cast<size_t>(t)]; }
  int64_t row(int64_t t, int64_t b) const { return starts[static_cast<size_t>(t)] + b; }
};

// The oracle: one sequence at a time, one unit at a time.
struct Oracle {
  Doubles output, h_n, c_n, grad_x, grad_h0, grad_c0;
  std::vector<Doubles> grad_weights;
  // Per layer and direction (rows, 4, h) and (rows, h); per layer (rows, d * h).
  std::vector<Doubles> gates, cells, outputs;

  explicit Oracle(const Problem& p) {
    const LstmShape& s = p.s;
    const auto H = static_cast<size_t>(s.hidden), B = static_cast<size_t>(s.batch),
               D = static_cast<size_t>(s.directions);
    const size_t width = D * H, per_cell = s.bias ? 4 : 2;
    std::vector<Doubles> inputs = {Doubles(p.x.begin(), p.x.end())};
    gates.resize(D * static_cast<size_t>(s.layers)), cells = gates;
    h_n.resize(p.h0.size()), c_n = h_n, grad_h0 = h_n, grad_c0 = h_n;
    for (const auto& w : p.weights) grad_weights.emplace_back(w.size());
    // The times of sequence b in a direction's order.
    const auto times = [&](size_t d, size_t b) {
      std::vector<int64_t> ts;
      for (int64_t t = 0; t < s.steps; ++t)
        if (static_cast<int64_t>(b) < p.active(t)) ts.insert(d ? ts.begin() : ts.end(), t);
      return ts;
    };
    for (size_t layer = 0; layer < static_cast<size_t>(s.layers); ++layer) {
      const auto I = static_cast<size_t>(lstm_input(s, static_cast<int>(layer)));
      Doubles out(static_cast<size_t>(p.rows) * width);
      for (size_t d = 0; d < D; ++d) {
        const size_t cell = layer * D + d;
        const auto* w = &p.weights[cell * per_cell];
        gates[cell].resize(static_cast<size_t>(p.rows) * 4 * H), cells[cell].resize(static_cast<size_t>(p.rows) * H);
        for (size_t b = 0; b < B; ++b) {
          Doubles h(H), c(H);
          for (size_t u = 0; u < H; ++u) h[u] = p.h0[(cell * B + b) * H + u], c[u] = p.c0[(cell * B + b) * H + u];
          for (const int64_t t : times(d, b)) {
            const auto r = static_cast<size_t>(p.row(t, static_cast<int64_t>(b)));
            double* const g = &gates[cell][r * 4 * H];
            for (size_t j = 0; j < 4 * H; ++j) {
              double sum = s.bias ? static_cast<double>(w[2][j]) + w[3][j] : 0;
              for (size_t k = 0; k < I; ++k) sum += w[0][j * I + k] * inputs[layer][r * I + k];
              for (size_t k = 0; k < H; ++k) sum += w[1][j * H + k] * h[k];
              g[j] = j / H == 2 ? std::tanh(sum) : sigmoid(sum);
            }
            for (size_t u = 0; u < H; ++u) {
              c[u] = g[H + u] * c[u] + g[u] * g[2 * H + u];
              h[u] = g[3 * H + u] * std::tanh(c[u]);
              cells[cell][r * H + u] = c[u], out[r * width + d * H + u] = h[u];
            }
          }
          for (size_t u = 0; u < H; ++u) h_n[(cell * B + b) * H + u] = h[u], c_n[(cell * B + b) * H + u] = c[u];
        }
      }
      inputs.push_back(out);
    }
    output = inputs.back();
    outputs.assign(inputs.begin() + 1, inputs.end());
    Doubles grad_y(p.grad_output.begin(), p.grad_output.end());
    for (size_t layer = static_cast<size_t>(s.layers); layer-- > 0;) {
      const auto I = static_cast<size_t>(lstm_input(s, static_cast<int>(layer)));
      Doubles grad_in(static_cast<size_t>(p.rows) * I);
      for (size_t d = 0; d < D; ++d) {
        const size_t cell = layer * D + d;
        const auto* w = &p.weights[cell * per_cell];
        auto* grad_w = &grad_weights[cell * per_cell];
        for (size_t b = 0; b < B; ++b) {
          const size_t at = (cell * B + b) * H;
          Doubles dh(p.grad_h_n.begin() + static_cast<long>(at), p.grad_h_n.begin() + static_cast<long>(at + H));
          Doubles dc(p.grad_c_n.begin() + static_cast<long>(at), p.grad_c_n.begin() + static_cast<long>(at + H));
          const auto ts = times(d, b);
          for (size_t n = ts.size(); n-- > 0;) {
            const auto r = static_cast<size_t>(p.row(ts[n], static_cast<int64_t>(b)));
            const auto before = n ? static_cast<size_t>(p.row(ts[n - 1], static_cast<int64_t>(b))) : 0;
            const double* const g = &gates[cell][r * 4 * H];
            Doubles dg(4 * H);
            for (size_t u = 0; u < H; ++u) {
              const double tc = std::tanh(cells[cell][r * H + u]);
              const double c_before = n ? cells[cell][before * H + u] : p.c0[at + u];
              dh[u] += grad_y[r * width + d * H + u];
              dc[u] += dh[u] * g[3 * H + u] * (1 - tc * tc);
              dg[u] = dc[u] * g[2 * H + u] * g[u] * (1 - g[u]);
              dg[H + u] = dc[u] * c_before * g[H + u] * (1 - g[H + u]);
              dg[2 * H + u] = dc[u] * g[u] * (1 - g[2 * H + u] * g[2 * H + u]);
              dg[3 * H + u] = dh[u] * tc * g[3 * H + u] * (1 - g[3 * H + u]);
              dc[u] *= g[H + u];
            }
            std::fill(dh.begin(), dh.end(), 0.0);
            for (size_t j = 0; j < 4 * H; ++j) {
              for (size_t k = 0; k < I; ++k) {
                grad_w[0][j * I + k] += dg[j] * inputs[layer][r * I + k];
                grad_in[r * I + k] += dg[j] * w[0][j * I + k];
              }
              for (size_t k = 0; k < H; ++k) {
                grad_w[1][j * H + k] += dg[j] * (n ? inputs[layer + 1][before * width + d * H + k] : p.h0[at + k]);
                dh[k] += dg[j] * w[1][j * H + k];
              }
              for (size_t i = 2; i < per_cell; ++i) grad_w[i][j] += dg[j];
            }
          }
          for (size_t u = 0; u < H; ++u) grad_h0[at + u] = dh[u], grad_c0[at + u] = dc[u];
        }
      }
      grad_y = grad_in;
    }
    grad_x = grad_y;
  }
};

// A sequence tensor laid out as the case wants it: time first, batch first, or with gaps between its rows.
enum class Order { time_first, batch_first, gaps };

template <class Bytes>
struct SequenceIn {
  const Problem& p;
  Order order;
  int64_t features;
  Elements<Bytes> elements;

  SequenceIn(const Problem& p, Order order, int64_t features)
      : p(p), order(order), features(features), elements(p.s.dtype, static_cast<size_t>(p.rows * pitch())) {}
  int64_t pitch() const { return order == Order::gaps ? features + 3 : features; }
  LstmSequence view() {
    if (p.s.batch_sizes) return {elements.data(), 0, pitch()};
    if (order == Order::batch_first) return {elements.data(), pitch(), p.s.steps * pitch()};
    return {elements.data(), p.s.batch * pitch(), pitch()};
  }
  size_t at(int64_t t, int64_t b) {
    const LstmSequence v = view();
    return static_cast<size_t>(p.s.batch_sizes ? p.row(t, b) * v.row : t * v.step + b * v.row);
  }
  template <class F>
  void each(const F& f) {
    for (int64_t t = 0; t < p.s.steps; ++t)
      for (int64_t b = 0; b < p.active(t); ++b)
        for (int64_t i = 0; i < features; ++i)
          f(at(t, b) + static_cast<size_t>(i), static_cast<size_t>(p.row(t, b) * features + i));
  }
  void set(const std::vector<float>& dense) {
    each([&](size_t to, size_t from) { elements.set(to, dense[from]); });
  }
  std::vector<float> dense() {
    std::vector<float> v(static_cast<size_t>(p.rows * features));
    each([&](size_t from, size_t to) { v[to] = elements[from]; });
    return v;
  }
};

// Where tensors lie.
template <class Pointer, class Bytes>
std::vector<Pointer> pointers_to(std::vector<Elements<Bytes>>& tensors) {
  std::vector<Pointer> pointers;
  for (auto& tensor : tensors) pointers.push_back(tensor.data());
  return pointers;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline void check_close(const char* what, const std::vector<float>& got, const Doubles& expected, double tolerance) {
  const double error = relative_l2(got, expected);
  EXPECT(error <= tolerance, "%s: relative error %g > %g", what, error, tolerance);
}

inline std::string text_of(const Problem& p) {
  std::string text;
  const std::pair<const char*, int64_t> fields[] = {{"t ", p.s.steps},        {" b ", p.s.batch},
                                                    {" i ", p.s.input},       {" h ", p.s.hidden},
                                                    {" layers ", p.s.layers}, {" directions ", p.s.directions}};
  for (const auto& [name, value] : fields) text += name + std::to_string(value);
  const char* const dtype = p.s.dtype == DType::f32 ? " f32" : p.s.dtype == DType::bf16 ? " bf16" : " f16";
  return text + dtype + (p.s.batch_sizes ? ", batch_sizes" : "");
}

}  // namespace pk::test
