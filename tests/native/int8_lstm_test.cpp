// The int8 LSTM against a plain one that rounds as its header says, to the bit: every ISA of this machine and the
// AVX-512 tilings as plain code, ragged sizes, packed sequences, both directions, strides, bf16, any number of threads,
// hostile executors, sequences that are cut in two, NaN and infinity, malformed packed weights.
#include "pykernels/int8_lstm.h"

#include <bit>
#include <cstring>
#include <functional>

#include "cpu/int8_lstm/kernels.h"
#include "cpu/int8_lstm/layout.h"
#include "lstm_reference.h"
#include "test.h"

namespace pk {
PK_DECLARE_TABLES(Int8LstmKernels, int8_lstm_kernels)
PK_DECLARE_DOT4_TABLE(Int8LstmKernels, int8_lstm_kernels)
namespace wide512 {
extern const Int8LstmKernels int8_lstm_kernels;
}
}  // namespace pk

using namespace pk;
using namespace pk::test;

namespace {

using Buffer = Elements<std::vector<char>>;
using Sequence = SequenceIn<std::vector<char>>;
using Floats = std::vector<float>;

// A number that is rounded by itself, whatever the compiler would contract.
struct Rounded {
  float value;
  Rounded(float x) {
    volatile float kept = x;
    value = kept;
  }
};
Rounded operator+(Rounded a, Rounded b) { return a.value + b.value; }
Rounded operator-(Rounded a, Rounded b) { return a.value - b.value; }
Rounded operator*(Rounded a, Rounded b) { return a.value * b.value; }
Rounded operator/(Rounded a, Rounded b) { return a.value / b.value; }

// gates.h, number by number.
Rounded exp_scaled(float x, int i) {
  const Rounded shifted = Rounded(x) * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const Rounded r = (Rounded(x) - n * 0.693359375f) + n * 2.12194440e-4f;
  Rounded p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  for (const float c : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  const uint32_t exponent =
      static_cast<uint32_t>(std::isnan(x) ? 0 : static_cast<int>(n.value)) + 127u + static_cast<uint32_t>(i);
  return ((p * r) * r + (r + 1.0f)) * std::bit_cast<float>(exponent << 23);
}
float clamped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
Rounded exact_sigmoid(float x) { return Rounded(1.0f) / (exp_scaled(clamped(-x, -87.0f, 89.0f), -1) * 2.0f + 1.0f); }
Rounded exact_tanh(float x) {
  const Rounded z = Rounded(x) * x;
  Rounded p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  for (const float c : {-5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) p = p * z + c;
  if (std::fabs(x) < 0.625f) return Rounded(x) * (p * z + 1.0f);
  return Rounded(1.0f) - Rounded(2.0f) / (exp_scaled(clamped(x * 2.0f, -88.0f, 80.0f), 0) + 1.0f);
}

// A row in int8, and its scale.
struct Row {
  std::vector<int8_t> q;
  float scale;

  Row(const float* x, int64_t n) : q(static_cast<size_t>(n)) {
    float most = 0;
    for (int64_t i = 0; i < n; ++i)
      most = std::isnan(x[i]) || std::isnan(most) ? NAN : std::fmax(most, std::fabs(x[i]));
    scale = most / 127.0f;
    if (scale == 0) scale = 1;
    for (size_t i = 0; i < q.size(); ++i) {
      const float y = x[i] / scale;
      q[i] = static_cast<int8_t>(std::isnan(y) ? 0 : std::nearbyint(clamped(y, -127, 127)));
    }
  }
};

// The data of an LSTM problem, with weights in int8; among them some of -128.
struct Int8Problem : Problem {
  std::vector<std::vector<int8_t>> matrices;  // w_ih, w_hh of each layer and direction
  std::vector<Floats> scales;
  std::vector<Int8LstmWeights> cells;

  Int8Problem(const Case& c, DType dtype) : Problem(c, dtype) {
    const size_t per_cell = s.bias ? 4 : 2;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (i % per_cell >= 2) continue;
      const size_t gates = static_cast<size_t>(4 * s.hidden), k = weights[i].size() / gates;
      matrices.emplace_back(), scales.emplace_back();
      for (size_t j = 0; j < gates; ++j) {
        const Row row(weights[i].data() + j * k, static_cast<int64_t>(k));
        matrices.back().insert(matrices.back().end(), row.q.begin(), row.q.end());
        scales.back().push_back(row.scale);
        if (j % 3 == 0 && k > 0) matrices.back()[j * k + j % k] = -128;
      }
    }
    for (size_t cell = 0; cell < weights.size() / per_cell; ++cell) {
      Int8LstmWeights w{matrices[2 * cell].data(), matrices[2 * cell + 1].data(), scales[2 * cell].data(),
                        scales[2 * cell + 1].data()};
      if (s.bias) w.b_ih = weights[4 * cell + 2].data(), w.b_hh = weights[4 * cell + 3].data();
      cells.push_back(w);
    }
  }
};

struct Results {
  Floats output, h_n, c_n;
};

bool same(const Results& a, const Results& b) {
  return same_bits(a.output, b.output) && same_bits(a.h_n, b.h_n) && same_bits(a.c_n, b.c_n);
}
// NaN has many bits.
Floats one_nan(Floats v) {
  for (float& x : v) x = std::isnan(x) ? NAN : x;
  return v;
}
Results one_nan(const Results& r) { return {one_nan(r.output), one_nan(r.h_n), one_nan(r.c_n)}; }

// The oracle: one sequence at a time, one unit at a time.
Results oracle(const Int8Problem& p) {
  const LstmShape& s = p.s;
  const int64_t H = s.hidden, width = s.directions * H;
  Results r{{}, Floats(p.h0.size()), Floats(p.h0.size())};
  Floats input = p.x;
  for (int layer = 0; layer < s.layers; ++layer) {
    const int64_t I = lstm_input(s, layer);
    Floats out(static_cast<size_t>(p.rows * width));
    for (int d = 0; d < s.directions; ++d) {
      const int cell = layer * s.directions + d;
      const Int8LstmWeights& w = p.cells[static_cast<size_t>(cell)];
      for (int64_t b = 0; b < s.batch; ++b) {
        const auto state = (cell * s.batch + b) * H;
        Floats h(p.h0.begin() + state, p.h0.begin() + state + H), c(p.c0.begin() + state, p.c0.begin() + state + H);
        for (int64_t step = 0; step < s.steps; ++step) {
          const int64_t t = d ? s.steps - 1 - step : step;
          if (b >= p.active(t)) continue;
          const int64_t row = p.row(t, b);
          const Row x(input.data() + row * I, I), before(h.data(), H);
          const auto gate = [&](int64_t j) {
            int32_t of_x = 0, of_h = 0;
            for (int64_t k = 0; k < I; ++k) of_x += w.w_ih[j * I + k] * x.q[static_cast<size_t>(k)];
            for (int64_t k = 0; k < H; ++k) of_h += w.w_hh[j * H + k] * before.q[static_cast<size_t>(k)];
            Rounded z = Rounded(static_cast<float>(of_x)) * (Rounded(w.s_ih[j]) * x.scale);
            z = z + (s.bias ? Rounded(w.b_ih[j]) + w.b_hh[j] : Rounded(0.0f));
            return (z + Rounded(static_cast<float>(of_h)) * (Rounded(w.s_hh[j]) * before.scale)).value;
          };
          for (int64_t u = 0; u < H; ++u) {
            float& cu = c[static_cast<size_t>(u)];
            cu = (exact_sigmoid(gate(H + u)) * cu + exact_sigmoid(gate(u)) * exact_tanh(gate(2 * H + u))).value;
            h[static_cast<size_t>(u)] = (exact_sigmoid(gate(3 * H + u)) * exact_tanh(cu)).value;
          }
          std::copy(h.begin(), h.end(), out.begin() + row * width + d * H);
        }
        std::copy(h.begin(), h.end(), r.h_n.begin() + state);
        std::copy(c.begin(), c.end(), r.c_n.begin() + state);
      }
    }
    input = out;
  }
  r.output = input;
  if (s.dtype == DType::bf16) {
    for (Floats* v : {&r.output, &r.h_n, &r.c_n})
      for (float& x : *v) x = widen(narrow(x, DType::bf16), DType::bf16);
  }
  return r;
}

struct Workspace {  // 64-byte aligned
  explicit Workspace(int64_t bytes) : memory(static_cast<size_t>(bytes) + 64) {}
  void* data() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
  std::vector<char> memory;
};

// By the public entry points and the ISA in force, or by `table`.
Workspace pack(const Int8Problem& p, const Int8LstmKernels* table, const Executor& executor, int64_t* bytes) {
  if (table) {
    *bytes = int8_packed_bytes_of(p.s, table->lanes);
    Workspace packed(*bytes);
    table->pack(p.s, p.cells.data(), static_cast<char*>(packed.data()), executor);
    return packed;
  }
  Int8LstmPackingPlan plan;
  EXPECT(make_packing_plan(p.s, &plan), "packing plan");
  *bytes = plan.packed_bytes;
  Workspace packed(*bytes);
  pk::pack(plan, p.cells.data(), packed.data(), executor);
  return packed;
}

Results run(const Int8Problem& p, const Int8LstmKernels* table, Order order, const Executor& executor) {
  const LstmShape& s = p.s;
  Sequence x(p, order, s.input), output(p, order, s.directions * s.hidden);
  x.set(p.x);
  Buffer h0(s.dtype, p.h0), c0(s.dtype, p.c0), h_n(s.dtype, p.h0.size()), c_n(s.dtype, p.h0.size());
  Int8LstmArgs args;
  args.shape = s;
  args.x = x.view();
  args.h0 = h0.data(), args.c0 = c0.data();
  Workspace packed = pack(p, table, executor, &args.packed_bytes);
  args.packed = packed.data();
  Int8LstmPlan plan;
  if (table) {
    plan.args = args;
    plan.kernels = table;
    table->plan(&plan, executor.threads);
  } else {
    const Status status = make_plan(args, executor.threads, &plan);
    EXPECT(status, "plan: %s", status.error);
  }
  plan.args.output = output.view();
  plan.args.h_n = h_n.data(), plan.args.c_n = c_n.data();
  run(plan, Workspace(plan.workspace_bytes).data(), executor);
  return {output.dense(), h_n.floats(), c_n.floats()};
}

// Executors that claim four threads and behave as badly as the contract allows.
Executor one_after_the_other() {
  return {4, [](int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
            for (int64_t i = end; i-- > begin;) body(i, i + 1, context);
          }};
}
Executor all_at_once_on_one() {
  return {4, [](int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
            if (begin < end) body(begin, end, context);
          }};
}

const std::vector<Case> kCases = {
    {1, 9, 1, 1, 1, 1, true, {}},
    {5, 3, 7, 5, 1, 1, true, {}},
    {3, 8, 0, 9, 1, 1, true, {}},
    {6, 2, 33, 40, 2, 2, true, {}},
    {4, 13, 20, 67, 1, 1, false, {}},
    {110, 1, 5, 24, 1, 2, true, {}},
    {3, 1, 50, 150, 1, 1, true, {}},
    {40, 3, 9, 17, 2, 1, true, {}},
    {7, 5, 12, 19, 3, 2, false, {5, 5, 4, 2, 2, 1, 1}},
    {6, 21, 10, 70, 2, 2, true, {21, 20, 9, 9, 3, 1}},
    {3, 100, 6, 16, 1, 2, true, {100, 99, 98}},
};

void check_isa(const char* name, const Int8LstmKernels* table) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Case& c : kCases) {
      const Int8Problem p(c, dtype);
      const Results expected = oracle(p);
      for (const Order order : {Order::time_first, Order::batch_first, Order::gaps}) {
        const Results got = run(p, table, order, order == Order::gaps ? thread_executor(2) : serial_executor());
        EXPECT(same(got, expected), "%s: %s", name, text_of(p).c_str());
      }
    }
}

// Large enough that every thread gets its share.
void check_threads(const char* name, const Int8LstmKernels* table) {
  const std::vector<Case> cases = {{40, 3, 16, 260, 1, 2, true, {}},
                                   {100, 1, 8, 290, 2, 1, true, {}},
                                   {12, 9, 12, 300, 2, 2, true, {9, 9, 9, 8, 8, 7, 6, 5, 4, 3, 2, 1}}};
  for (Case c : cases) {
    if (test::is_quick() && c.sizes.empty()) c.steps = 12;
    const Int8Problem p(c, DType::f32);
    const Results one = run(p, table, Order::time_first, serial_executor());
    for (const int threads : {2, 3, 4})
      EXPECT(same(one, run(p, table, Order::time_first, thread_executor(threads))), "%s: %d threads change the bits",
             name, threads);
    for (const Executor& executor : {one_after_the_other(), all_at_once_on_one()})
      EXPECT(same(one, run(p, table, Order::time_first, executor)), "%s: an executor changes the bits", name);
  }
}

// A sequence with a NaN or an infinity: its neighbours don't notice, and it follows the oracle. A state of infinity
// too, large and tiny numbers.
void check_extremes(const char* name) {
  Int8Problem p({6, 6, 5, 20, 1, 1, true, {}}, DType::f32);
  p.x[static_cast<size_t>((2 * 6 + 1) * 5)] = NAN;
  p.x[static_cast<size_t>((3 * 6 + 2) * 5 + 1)] = INFINITY;
  p.x[static_cast<size_t>((3 * 6 + 3) * 5 + 1)] = -3e38f;
  for (size_t i = 0; i < 5; ++i) p.x[(4 * 6 + 3) * 5 + i] = 1e-44f;
  p.h0[4 * 20] = INFINITY;
  p.h0[5 * 20] = -1000;
  p.c0[5 * 20 + 1] = INFINITY;
  const Results expected = one_nan(oracle(p));
  const Results got = run(p, nullptr, Order::time_first, serial_executor());
  EXPECT(same(one_nan(got), expected), "%s: extremes", name);
  for (size_t u = 0; u < 20; ++u) {
    EXPECT(std::isnan(got.h_n[20 + u]) && std::isnan(got.h_n[40 + u]) && std::isnan(got.h_n[80 + u]), "%s: NaN", name);
    EXPECT(!std::isnan(got.h_n[u]) && !std::isnan(got.h_n[60 + u]), "%s: a neighbour noticed", name);
  }
}

// A sequence in two calls, the second of which begins with the states of the first.
void check_continued(const char* name) {
  const Int8Problem whole({7, 3, 6, 33, 1, 1, true, {}}, DType::f32);
  Int8Problem first({4, 3, 6, 33, 1, 1, true, {}}, DType::f32), second({3, 3, 6, 33, 1, 1, true, {}}, DType::f32);
  first.x.assign(whole.x.begin(), whole.x.begin() + 4 * 3 * 6);
  second.x.assign(whole.x.begin() + 4 * 3 * 6, whole.x.end());
  for (Int8Problem* p : {&first, &second}) p->cells = whole.cells;
  first.h0 = whole.h0, first.c0 = whole.c0;
  const Results expected = run(whole, nullptr, Order::time_first, serial_executor());
  const Results begun = run(first, nullptr, Order::time_first, serial_executor());
  second.h0 = begun.h_n, second.c0 = begun.c_n;
  const Results ended = run(second, nullptr, Order::time_first, serial_executor());
  EXPECT(same_bits(ended.h_n, expected.h_n) && same_bits(ended.c_n, expected.c_n), "%s: a sequence cut in two", name);
}

// Is a call with this block of packed weights planned?
bool accepted(const LstmShape& shape, const void* packed, int64_t bytes) {
  Int8LstmArgs args;
  args.shape = shape;
  args.packed = packed, args.packed_bytes = bytes;
  Int8LstmPlan plan;
  return static_cast<bool>(make_plan(args, 1, &plan));
}

void check_malformed(const char* name) {
  const Int8Problem p({2, 2, 6, 10, 2, 1, true, {}}, DType::f32);
  int64_t bytes = 0;
  Workspace good = pack(p, nullptr, serial_executor(), &bytes);
  const char* const data = static_cast<const char*>(good.data());
  EXPECT(accepted(p.s, data, bytes), "%s: a good block", name);
  EXPECT(!accepted(p.s, nullptr, bytes), "%s: no weights", name);
  for (const int64_t size : {int64_t{0}, int64_t{10}, bytes - 1, bytes / 2, bytes + 64}) {
    std::vector<char> block(data, data + (size < bytes ? size : bytes));
    block.resize(static_cast<size_t>(size));
    EXPECT(!accepted(p.s, block.data(), size), "%s: %ld bytes", name, static_cast<long>(size));
  }
  // Fields of the header: magic 8, version, lanes, group, layers, directions, bias 4 each, input, hidden, bytes 8.
  for (const size_t at : {0u, 8u, 12u, 16u, 20u, 24u, 32u, 40u, 48u}) {
    std::vector<char> block(data, data + bytes);
    block[at] = static_cast<char>(block[at] ^ 3);
    EXPECT(!accepted(p.s, block.data(), bytes), "%s: header byte %zu", name, at);
  }
  const std::function<void(LstmShape&)> changes[] = {[](LstmShape& s) { s.input = 7; },
                                                     [](LstmShape& s) { s.hidden = 11; },
                                                     [](LstmShape& s) { s.layers = 1; },
                                                     [](LstmShape& s) { s.directions = 2; },
                                                     [](LstmShape& s) { s.directions = 3; },
                                                     [](LstmShape& s) { s.dtype = DType::f16; },
                                                     [](LstmShape& s) { s.hidden = int64_t{1} << 60; },
                                                     [](LstmShape& s) { s.hidden = 131072; },
                                                     [](LstmShape& s) { s.input = 131072; },
                                                     [](LstmShape& s) { s.hidden = 70000, s.directions = 2; },
                                                     [](LstmShape& s) { s.layers = 0; },
                                                     [](LstmShape& s) { s.steps = 0; },
                                                     [](LstmShape& s) { s.batch = -1; },
                                                     [](LstmShape& s) { s.batch = INT64_MAX; },
                                                     [](LstmShape& s) { s.steps = INT64_MAX; },
                                                     [](LstmShape& s) { s.steps = s.batch = int64_t{1} << 32; }};
  for (const auto& change : changes) {
    LstmShape s = p.s;
    change(s);
    EXPECT(!accepted(s, data, bytes), "%s: another shape", name);
  }
  LstmShape wide = p.s;
  wide.hidden = 131072;
  Int8LstmPackingPlan plan;
  EXPECT(!make_packing_plan(wide, &plan), "%s: sums that may wrap", name);
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    EXPECT(force_isa(isa_name(isa)), "force");
    check_isa(isa_name(isa), nullptr);
    check_threads(isa_name(isa), nullptr);
    check_extremes(isa_name(isa));
    check_continued(isa_name(isa));
    check_malformed(isa_name(isa));
    // A block packed for one ISA is refused by another.
    if (isa == Isa::avx2 || test::is_int8_only(isa)) {
      const Int8Problem p(kCases[1], DType::f32);
      int64_t bytes = 0;
      Workspace block = pack(p, nullptr, serial_executor(), &bytes);
      EXPECT(force_isa(isa == Isa::avx512_vnni ? "avx512" : "scalar"), "force");
      EXPECT(!accepted(p.s, block.data(), bytes), "another ISA's block");
    }
  }
  EXPECT(force_isa(nullptr), "unforce");
  if (test::is_quick()) return test::finish();
  check_isa("wide512", &wide512::int8_lstm_kernels);
  check_threads("wide512", &wide512::int8_lstm_kernels);
  return test::finish();
}
