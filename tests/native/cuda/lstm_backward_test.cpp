// The CUDA LSTM's backward pass against a double-precision one: both paths, every dtype, tails, packed sequences, both
// directions, layers, strides, weights that are pinned and that are not, all tiles, all schedules; and the choice of
// path and tiles as a pure function.
#include <bit>
#include <functional>
#include <optional>

#include "cuda/launch.cuh"
#include "cuda/lstm/backward_kernels.h"
#include "cuda/on_device.h"
#include "lstm_reference.h"
#include "pykernels/cuda/lstm.h"

using namespace pk;
using namespace pk::test;
using cuda::LstmPath;

namespace {

using Sequence = SequenceIn<Bytes>;

// What the forward pass would have saved.
OnDevice reserve_of(const Problem& p, const Oracle& oracle) {
  const LstmShape& s = p.s;
  const int64_t outputs = cuda::lstm_reserve_output(s, s.layers - 1);
  std::vector<float> v(static_cast<size_t>(outputs));
  for (int layer = 0; layer < s.layers; ++layer) {
    for (int d = 0; d < s.directions; ++d) {
      const auto cell = static_cast<size_t>(layer * s.directions + d);
      float* const gates = v.data() + cuda::lstm_reserve_gates(s, layer, d);
      float* const c = v.data() + cuda::lstm_reserve_c(s, layer, d);
      for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t u = 0; u < s.hidden; ++u) {
          for (int64_t g = 0; g < 4; ++g)
            gates[(r * s.hidden + u) * 4 + g] =
                static_cast<float>(oracle.gates[cell][static_cast<size_t>((r * 4 + g) * s.hidden + u)]);
          c[r * s.hidden + u] = static_cast<float>(oracle.cells[cell][static_cast<size_t>(r * s.hidden + u)]);
        }
    }
    if (layer + 1 < s.layers) {
      const Doubles& y = oracle.outputs[static_cast<size_t>(layer)];
      std::copy(y.begin(), y.end(), v.begin() + cuda::lstm_reserve_output(s, layer));
    }
  }
  return {s.dtype, v};
}

struct Gradients {
  std::vector<float> x, h0, c0;
  std::vector<std::vector<float>> weights;
};

bool same(const Gradients& a, const Gradients& b) {
  return a.x == b.x && a.h0 == b.h0 && a.c0 == b.c0 && a.weights == b.weights;
}

// Which gradients are given: all, or nullptr for some of them (their values in the problem are zeros then).
struct Given {
  bool output = true, h_n = true, c_n = true;
};

// after_forward: output and reserve are what the CUDA forward pass makes of the problem, not the oracle's.
std::optional<Gradients> run(const Problem& p, const Oracle& oracle, Order order, LstmPath path, Given given = {},
                             bool after_forward = false) {
  const LstmShape& s = p.s;
  const int64_t width = s.directions * s.hidden;
  Sequence x(p, order, s.input), output(p, order, width), grad_output(p, order, width), grad_x(p, order, s.input);
  x.set(p.x), output.set({oracle.output.begin(), oracle.output.end()}), grad_output.set(p.grad_output);
  OnDevice h0(s.dtype, p.h0), c0(s.dtype, p.c0), grad_h_n(s.dtype, p.grad_h_n), grad_c_n(s.dtype, p.grad_c_n),
      grad_h0(s.dtype, p.h0.size()), grad_c0(s.dtype, p.h0.size()), reserve = reserve_of(p, oracle);
  std::vector<OnDevice> weights, grads;
  for (const auto& w : p.weights) weights.emplace_back(s.dtype, w), grads.emplace_back(s.dtype, w.size());
  const auto from = pointers_to<const void*>(weights);
  const auto to = pointers_to<void*>(grads);
  if (after_forward) {
    std::memset(output.elements.data(), 0xff, output.elements.bytes());
    std::memset(reserve.data(), 0xff, reserve.bytes());
    OnDevice h_n(s.dtype, p.h0.size()), c_n(s.dtype, p.h0.size());
    cuda::LstmForwardArgs forward;
    forward.shape = s;
    forward.x = x.view(), forward.output = output.view();
    forward.h0 = h0.data(), forward.c0 = c0.data(), forward.weights = from.data();
    forward.h_n = h_n.data(), forward.c_n = c_n.data(), forward.reserve = reserve.data();
    forward.save = true;
    cuda::LstmForwardPlan plan;
    succeeded(cuda::make_plan(forward, &plan), "plan");
    run_planned(plan, 256);
    EXPECT(plan.reserve_elements == static_cast<int64_t>(reserve.size()), "reserve");
  }
  cuda::LstmBackwardArgs call;
  call.shape = s;
  if (given.output) call.grad_output = grad_output.view();
  if (given.h_n) call.grad_h_n = grad_h_n.data();
  if (given.c_n) call.grad_c_n = grad_c_n.data();
  call.x = x.view(), call.output = output.view(), call.grad_x = grad_x.view();
  call.h0 = h0.data(), call.c0 = c0.data();
  call.weights = from.data(), call.grad_weights = to.data();
  call.reserve = reserve.data();
  call.grad_h0 = grad_h0.data(), call.grad_c0 = grad_c0.data();
  call.path = path;
  const int failed = failures;
  plan_and_run<cuda::LstmBackwardPlan>(call);
  if (failures > failed) return {};
  Gradients r{grad_x.dense(), grad_h0.floats(), grad_c0.floats(), {}};
  for (const auto& g : grads) r.weights.push_back(g.floats());
  return r;
}

void expect_close(const Problem& p, const char* what, const std::vector<float>& got, const Doubles& expected) {
  const LstmShape& s = p.s;
  const double k = static_cast<double>(4 * s.hidden + s.input + p.rows);
  const double tolerance = s.dtype == DType::bf16  ? std::ldexp(1.0, -6)
                           : s.dtype == DType::f16 ? std::ldexp(1.0, -9)
                                                   : std::ldexp(4 + std::sqrt(k), -23);
  const double error = relative_l2(got, expected);
  EXPECT(error <= tolerance, "%s: relative error %g > %g; %s", what, error, tolerance, text_of(p).c_str());
}

void compare(const Problem& p, const Oracle& oracle, const std::optional<Gradients>& r) {
  if (!r) return;
  expect_close(p, "grad_x", r->x, oracle.grad_x);
  expect_close(p, "grad_h0", r->h0, oracle.grad_h0);
  expect_close(p, "grad_c0", r->c0, oracle.grad_c0);
  for (size_t i = 0; i < r->weights.size(); ++i) expect_close(p, "grad_weights", r->weights[i], oracle.grad_weights[i]);
}

const std::vector<Case> kCases = {
    {1, 3, 5, 8, 1, 1, true, {}},    // one step, as a cell
    {3, 2, 7, 5, 1, 1, true, {}},    // tails in everything
    {3, 2, 0, 9, 1, 1, false, {}},   // no input, no biases
    {4, 1, 8, 32, 1, 1, true, {}},   // no padding
    {3, 3, 6, 20, 2, 2, true, {}},   // layers, both directions
    {4, 19, 4, 33, 1, 2, true, {}},  // more than one tile of sequences
    {5, 5, 6, 12, 2, 2, true, {5, 5, 3, 1, 1}},
    {3, 18, 3, 7, 1, 2, true, {18, 17, 2}},
};

void check_cases() {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (size_t i = 0; i < kCases.size(); ++i) {
      if (dtype == DType::bf16 && i != 1 && i != 6) continue;  // as f16 but for rounding
      const Problem p(kCases[i], dtype);
      const Oracle oracle(p);
      for (const LstmPath path : {LstmPath::persistent, LstmPath::step}) {
        const auto r = run(p, oracle, Order::time_first, path);
        compare(p, oracle, r);
        if (dtype != DType::f16 || (i != 1 && i != 6)) continue;
        for (const Order order : {Order::batch_first, Order::gaps}) {
          const auto other = run(p, oracle, order, path);
          EXPECT(r && other && same(*r, *other), "strides change the bits");
        }
      }
    }
}

// Gradients that aren't there count as zeros.
void check_absent() {
  for (const Given given : {Given{false, true, true}, Given{true, false, false}, Given{false, false, true}}) {
    Problem p(kCases[6], DType::f32);
    if (!given.output) p.grad_output.assign(p.grad_output.size(), 0.0f);
    if (!given.h_n) p.grad_h_n.assign(p.grad_h_n.size(), 0.0f);
    if (!given.c_n) p.grad_c_n.assign(p.grad_c_n.size(), 0.0f);
    const Oracle oracle(p);
    for (const LstmPath path : {LstmPath::persistent, LstmPath::step})
      compare(p, oracle, run(p, oracle, Order::time_first, path, given));
  }
}

// One pass behind the other.
void check_after_forward() {
  for (const DType dtype : {DType::f32, DType::f16}) {
    const Problem p(kCases[6], dtype);
    const Oracle oracle(p);
    compare(p, oracle, run(p, oracle, Order::batch_first, LstmPath::automatic, {}, true));
  }
}

// No schedule changes the bits. In the last case some warps need nothing of their own block's and can run ahead of it.
void check_schedules() {
  for (const Case& c : {kCases[4], kCases[6], Case{3, 3, 2, 40, 1, 1, true, {}}}) {
    const Problem p(c, DType::f16);
    const Oracle oracle(p);
    std::optional<Gradients> first;
    for (const auto& schedule : simt::schedules()) {
      simt::Use use(schedule);
      const auto r = run(p, oracle, Order::time_first, LstmPath::persistent);
      if (!first) compare(p, oracle, first = r);
      EXPECT(r && first && same(*r, *first), "%s: another result", schedule.name);
    }
  }
}

// Every tile, pinned, partly pinned and streamed, and more sequences than fit at once, give the gradients of the path
// that has none of that.
void check_tiles() {
  const On on(simt::device());
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Problem p({2, 35, 1, 40, 1, 1, true, {}}, dtype);
    const Oracle oracle(p);
    for (const int row_tiles : {1, 2, 4})
      for (const int unit_tiles : {1, 2, 4}) {
        if (row_tiles * unit_tiles > cuda::lstm::backward_most_tiles(dtype)) continue;
        // Shared memory for all of the weights, for five of their eight chunks, for none.
        for (const int pinned : {8, 5, 0}) {
          if (pinned == 0 && row_tiles * unit_tiles > 1) continue;
          cuda::Device& device = simt::device();
          device.multiprocessors = 40;
          device.shared_per_block = cuda::lstm::backward_partial_bytes(row_tiles, unit_tiles) +
                                    pinned * unit_tiles * cuda::lstm::backward_fragment_bytes(dtype);
          cuda::lstm::BackwardChoice c = cuda::lstm::backward_persistent(p.s, device, row_tiles, unit_tiles);
          EXPECT(c.persistent && c.pinned == pinned, "pinned %d", c.pinned);
          if (pinned == 5)
            c.groups = 1, c.launches = static_cast<int>((p.s.batch + 16 * row_tiles - 1) / (16 * row_tiles));
          cuda::lstm::BackwardLayer l = {};
          OnDevice reserve = reserve_of(p, oracle), w_hh(dtype, p.weights[1]), c0(dtype, p.c0),
                   grad_output(dtype, p.grad_output), grad_h_n(dtype, p.grad_h_n), grad_c_n(dtype, p.grad_c_n),
                   grad_h0(dtype, p.h0.size()), grad_c0(dtype, p.h0.size());
          const auto elements = static_cast<char*>(reserve.data());
          const int64_t c_offset = cuda::lstm_reserve_c(p.s, 0, 0) * static_cast<int64_t>(size_of(dtype));
          l.direction[0] = {w_hh.data(),     elements,        elements + c_offset, c0.data(),
                            grad_h_n.data(), grad_c_n.data(), grad_h0.data(),      grad_c0.data()};
          l.grad_output = {grad_output.data(), p.s.batch * p.s.hidden, p.s.hidden};
          l.steps = static_cast<int>(p.s.steps), l.batch = static_cast<int>(p.s.batch), l.directions = 1;
          l.hidden = static_cast<int>(p.s.hidden), l.pitch = static_cast<int>(cuda::lstm::backward_padded(p.s.hidden));
          l.vectors = true;
          OnDevice d_gates(dtype, static_cast<size_t>(p.rows * 4 * l.pitch));
          l.d_gates = d_gates.data();
          Bytes workspace(static_cast<size_t>(cuda::lstm::backward_persistent_workspace(p.s, c)));
          succeeded(cuda::lstm::backward_persistent_layer(l, dtype, c, workspace.data(), nullptr), "backward");
          const int failed = failures;
          expect_close(p, "grad_h0", grad_h0.floats(), oracle.grad_h0);
          expect_close(p, "grad_c0", grad_c0.floats(), oracle.grad_c0);
          if (failures > failed) std::printf("  with tiles %d x %d, %d pinned\n", row_tiles, unit_tiles, c.pinned);
        }
      }
  }
}

// A NaN stays with its sequence, and no NaN is taken for "not yet".
void check_nan() {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    Problem p({4, 3, 5, 12, 1, 1, true, {}}, dtype);
    const Oracle oracle(p);
    const auto clean = run(p, oracle, Order::time_first, LstmPath::persistent);
    const float nan = dtype == DType::f32 ? std::bit_cast<float>(0xffffffffu) : NAN;
    for (size_t u = 0; u < 12; ++u) p.grad_output[static_cast<size_t>(2 * 3 + 1) * 12 + u] = nan;
    const auto r = run(p, oracle, Order::time_first, LstmPath::persistent);
    for (size_t b = 0; clean && r && b < 3; ++b)
      for (size_t u = 0; u < 12; ++u) {
        const float got = r->h0[b * 12 + u];
        if (b == 1)
          EXPECT(std::isnan(got), "NaN");
        else
          EXPECT(got == clean->h0[b * 12 + u], "a neighbour noticed");
      }
  }
}

void check_bad_calls() {
  const Problem p(kCases[1], DType::f32);
  cuda::LstmBackwardArgs args;
  args.shape = p.s;
  cuda::LstmBackwardPlan plan;
  EXPECT(cuda::make_plan(args, &plan) && plan.workspace_bytes > 0, "a good shape");
  const int64_t unread[] = {1, 1, 1};
  const std::function<void(LstmShape&)> bad[] = {[](LstmShape& s) { s.steps = 0; },
                                                 [](LstmShape& s) { s.batch = -1; },
                                                 [](LstmShape& s) { s.hidden = 0; },
                                                 [](LstmShape& s) { s.layers = 0; },
                                                 [](LstmShape& s) { s.dtype = DType::i8; },
                                                 [](LstmShape& s) { s.directions = 3; },
                                                 [](LstmShape& s) { s.steps = s.batch = 1 << 20; },
                                                 [&](LstmShape& s) { s.batch_sizes = unread, s.starts = nullptr; }};
  for (const auto& change : bad) {
    args.shape = p.s;
    change(args.shape);
    EXPECT(!cuda::make_plan(args, &plan), "a bad shape");
  }
  // More blocks than multiprocessors: said, not tried.
  args.shape = p.s;
  args.shape.hidden = 1 << 14;
  args.path = LstmPath::persistent;
  EXPECT(!cuda::make_plan(args, &plan), "a persistent kernel that doesn't fit");
}

// No sequences: zeros for the weights.
void check_empty() {
  const Problem p({2, 0, 3, 4, 1, 1, true, {}}, DType::f16);
  const Oracle oracle(p);
  const auto r = run(p, oracle, Order::time_first, LstmPath::automatic);
  for (const auto& w : r->weights)
    for (const float v : w) EXPECT(v == 0, "zero");
}

void check_choice() {
  using namespace cuda::lstm;
  const cuda::Device a100, h100 = kH100;
  const auto shape = [](int64_t steps, int64_t batch, int64_t hidden, int directions, DType dtype) {
    LstmShape s;
    s.steps = steps, s.batch = batch, s.input = hidden, s.hidden = hidden, s.directions = directions, s.dtype = dtype;
    return s;
  };
  for (const cuda::Device& device : {a100, h100})
    for (const DType dtype : {DType::f32, DType::f16})
      for (const int directions : {1, 2})
        for (int64_t hidden = 1; hidden < 20000; hidden = hidden * 3 + 1)
          for (int64_t batch = 1; batch < 3000; batch = batch * 3 + 1) {
            const BackwardChoice c = choose_backward(shape(100, batch, hidden, directions, dtype), device);
            if (!c.persistent) continue;
            EXPECT(c.slices * c.groups * directions <= device.multiprocessors, "all blocks at once");
            EXPECT(c.shared_bytes <= device.shared_per_block, "shared memory");
            EXPECT(c.slices * c.unit_tiles * 8 >= hidden, "all units");
            EXPECT(int64_t{c.groups} * c.launches * c.row_tiles * 16 >= batch, "all sequences");
          }
  // The shape of the record to beat: pinned, on either.
  for (const cuda::Device& device : {a100, h100}) {
    const BackwardChoice c = choose_backward(shape(1024, 16, 768, 1, DType::f16), device);
    EXPECT(c.persistent && c.launches == 1 && !backward_streams(c, 768), "h 768: %d pinned", c.pinned);
  }
  EXPECT(!choose_backward(shape(100, 64, 8192, 1, DType::f16), h100).persistent, "8192 units don't fit");
  EXPECT(!choose_backward(shape(100, 2000, 1024, 1, DType::f16), h100).persistent, "large batches are GEMMs");
}

}  // namespace

int main() {
  check_choice();
  check_cases();
  check_absent();
  check_after_forward();
  check_schedules();
  check_tiles();
  check_nan();
  check_bad_calls();
  check_empty();
  return test::finish();
}
