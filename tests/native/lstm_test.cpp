// The LSTM against a plain double-precision one, forward and backward: every ISA of this machine and the AVX-512
// tilings as plain code, ragged sizes, packed sequences, both directions, strides, bf16, int8 weights, any number of
// threads, hostile executors, malformed packed weights.
#include "pykernels/lstm.h"

#include <chrono>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cpu/lstm/kernels.h"
#include "cpu/lstm/layout.h"
#include "lstm_reference.h"
#include "test.h"

namespace pk {
PK_DECLARE_TABLES(LstmKernels, lstm_kernels)
namespace wide512 {
extern const LstmKernels lstm_kernels;
}
}  // namespace pk

using namespace pk;
using namespace pk::test;

namespace {

using Buffer = Elements<std::vector<char>>;
using Sequence = SequenceIn<std::vector<char>>;

struct Results {
  std::vector<float> output, h_n, c_n, reserve, grad_x, grad_h0, grad_c0;
  std::vector<std::vector<float>> grad_weights;
};

enum class Weights { raw, packed, int8 };

// The matrices of a problem in int8, with powers of two as scales. Those of the problem become what these stand for, to
// the bit.
struct Int8Weights {
  std::vector<std::vector<int8_t>> matrices;  // w_ih, w_hh of each layer and direction
  std::vector<std::vector<float>> scales;
  std::vector<Int8LstmWeights> cells;

  explicit Int8Weights(Problem& p) {
    const size_t per_cell = p.s.bias ? 4 : 2, gates = static_cast<size_t>(4 * p.s.hidden);
    for (size_t i = 0; i < p.weights.size(); ++i) {
      if (i % per_cell >= 2) continue;
      std::vector<float>& w = p.weights[i];
      const size_t k = w.size() / gates;
      matrices.emplace_back(w.size()), scales.emplace_back(gates, 1.0f);
      for (size_t j = 0; j < gates; ++j) {
        float largest = 0;
        for (size_t n = j * k; n < (j + 1) * k; ++n) largest = std::max(largest, std::fabs(w[n]));
        float& scale = scales.back()[j];
        if (largest > 0) scale = std::exp2(std::ceil(std::log2(largest / 127)));
        for (size_t n = j * k; n < (j + 1) * k; ++n) {
          matrices.back()[n] = n == j * k && j % 3 == 0 ? -128 : static_cast<int8_t>(std::lrint(w[n] / scale));
          w[n] = static_cast<float>(matrices.back()[n]) * scale;
        }
      }
    }
    for (size_t cell = 0; cell < p.weights.size() / per_cell; ++cell) {
      Int8LstmWeights w{matrices[2 * cell].data(), matrices[2 * cell + 1].data(), scales[2 * cell].data(),
                        scales[2 * cell + 1].data()};
      if (p.s.bias) w.b_ih = p.weights[4 * cell + 2].data(), w.b_hh = p.weights[4 * cell + 3].data();
      cells.push_back(w);
    }
  }
};

// 64-byte aligned.
struct Workspace {
  explicit Workspace(int64_t bytes) : memory(static_cast<size_t>(bytes) + 64) {}
  void* data() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
  std::vector<char> memory;
};

// Of floats, or of an Int8LstmWeights for each layer and direction.
template <class W>
std::vector<char> pack(const LstmShape& s, const W* weights, const Executor& executor) {
  LstmPackingPlan plan;
  if constexpr (std::is_same_v<W, Int8LstmWeights>) {
    EXPECT(make_int8_packing_plan(s, &plan), "packing plan");
  } else {
    EXPECT(make_packing_plan(s, &plan), "packing plan");
  }
  std::vector<char> packed(static_cast<size_t>(plan.packed_bytes));
  pk::pack(plan, weights, packed.data(), executor);
  return packed;
}

// A plan of `args`, by the public entry points and the ISA in force, or by `table`.
template <class Plan, class Args>
Plan planned(const Args& args, DType weights, const LstmKernels* table, const Executor& executor) {
  Plan plan;
  if (!table) {
    const Status status = make_plan(args, executor.threads, &plan);
    EXPECT(status, "plan: %s", status.error);
    return plan;
  }
  const LstmShape& s = args.shape;
  plan.args = args;
  plan.kernels = table;
  plan.reserve_elements = lstm_rows(s) * s.directions * s.hidden * (6 * s.layers - 1);
  plan.weights = weights;
  if constexpr (std::is_same_v<Args, LstmForwardArgs>)
    table->plan_forward(&plan, executor.threads);
  else
    table->plan_backward(&plan, executor.threads);
  return plan;
}

// table: nullptr for the ISA in force; int8: the problem's weights as such, where these are to be used.
Results run(const Problem& p, const LstmKernels* table, Weights how, Order order, const Executor& executor,
            bool backward, const Int8Weights* int8 = nullptr) {
  const LstmShape& s = p.s;
  const int64_t width = s.directions * s.hidden;
  std::vector<Buffer> weights;
  for (const auto& w : p.weights) weights.emplace_back(s.dtype, w);
  const auto pointers = pointers_to<const void*>(weights);
  Sequence x(p, order, s.input), output(p, order, width);
  x.set(p.x);
  Buffer h0(s.dtype, p.h0), c0(s.dtype, p.c0), h_n(s.dtype, p.h0.size()), c_n(s.dtype, p.h0.size());
  Results r;

  LstmForwardArgs f;
  f.shape = s;
  f.x = x.view();
  f.h0 = h0.data(), f.c0 = c0.data();
  f.save = backward;
  f.weights = pointers.data();
  std::vector<char> packed;
  const DType kept = how == Weights::int8 ? DType::i8 : s.dtype;
  if (how != Weights::raw) {
    if (table) {
      packed.resize(static_cast<size_t>(packed_bytes_of(s, kept, table->lanes)));
      if (how == Weights::int8)
        table->pack_int8(s, int8->cells.data(), packed.data(), executor);
      else
        table->pack(s, pointers.data(), packed.data(), executor);
    } else {
      packed = how == Weights::int8 ? pack(s, int8->cells.data(), executor) : pack(s, pointers.data(), executor);
    }
    f.packed = packed.data(), f.packed_bytes = static_cast<int64_t>(packed.size());
  }
  auto forward = planned<LstmForwardPlan>(f, kept, table, executor);
  EXPECT(backward || table || forward.reserve_elements == 0, "a reserve that nobody wants");
  if (backward) r.reserve.resize(static_cast<size_t>(forward.reserve_elements));
  forward.args.output = output.view();
  forward.args.h_n = h_n.data(), forward.args.c_n = c_n.data();
  forward.args.reserve = backward ? r.reserve.data() : nullptr;
  run(forward, Workspace(forward.workspace_bytes).data(), executor);
  r.output = output.dense(), r.h_n = h_n.floats(), r.c_n = c_n.floats();
  if (!backward) return r;

  Sequence grad_output(p, order, width), grad_x(p, order, s.input);
  grad_output.set(p.grad_output);
  Buffer grad_h_n(s.dtype, p.grad_h_n), grad_c_n(s.dtype, p.grad_c_n), grad_h0(s.dtype, p.h0.size()),
      grad_c0(s.dtype, p.h0.size());
  std::vector<Buffer> grads;
  for (const auto& w : p.weights) grads.emplace_back(s.dtype, w.size());
  const auto to = pointers_to<void*>(grads);
  LstmBackwardArgs b;
  b.shape = s;
  b.grad_output = grad_output.view(), b.grad_h_n = grad_h_n.data(), b.grad_c_n = grad_c_n.data();
  b.x = f.x, b.h0 = f.h0, b.c0 = f.c0, b.weights = f.weights, b.output = output.view(), b.reserve = r.reserve.data();
  b.grad_x = grad_x.view(), b.grad_h0 = grad_h0.data(), b.grad_c0 = grad_c0.data(), b.grad_weights = to.data();
  const auto plan = planned<LstmBackwardPlan>(b, s.dtype, table, executor);
  EXPECT(plan.reserve_elements == static_cast<int64_t>(r.reserve.size()), "the reserve's size");
  run(plan, Workspace(plan.workspace_bytes).data(), executor);
  r.grad_x = grad_x.dense(), r.grad_h0 = grad_h0.floats(), r.grad_c0 = grad_c0.floats();
  for (const auto& g : grads) r.grad_weights.push_back(g.floats());
  return r;
}

bool same(const Results& a, const Results& b) {
  bool all = same_bits(a.output, b.output) && same_bits(a.h_n, b.h_n) && same_bits(a.c_n, b.c_n) &&
             same_bits(a.reserve, b.reserve) && same_bits(a.grad_x, b.grad_x) && same_bits(a.grad_h0, b.grad_h0) &&
             same_bits(a.grad_c0, b.grad_c0);
  for (size_t i = 0; all && i < a.grad_weights.size(); ++i) all = same_bits(a.grad_weights[i], b.grad_weights[i]);
  return all;
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
Executor late_starters() {
  return {4, [](int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
            std::vector<std::thread> pool;
            for (int64_t i = begin; i < end; ++i)
              pool.emplace_back([=] {
                std::this_thread::sleep_for(std::chrono::microseconds(150 * (i - begin)));
                body(i, i + 1, context);
              });
            for (auto& t : pool) t.join();
          }};
}

const std::vector<Case> kCases = {
    {1, 9, 1, 1, 1, 1, true, {}},
    {5, 3, 7, 5, 1, 1, true, {}},
    {3, 8, 0, 9, 1, 1, true, {}},
    {6, 2, 33, 40, 2, 2, true, {}},
    {4, 13, 20, 67, 1, 1, false, {}},
    {120, 1, 5, 24, 1, 2, true, {}},
    {70, 3, 9, 17, 2, 1, true, {}},
    {7, 5, 12, 19, 3, 2, false, {5, 5, 4, 2, 2, 1, 1}},
    {6, 21, 10, 70, 2, 2, true, {21, 20, 9, 9, 3, 1}},
    {3, 100, 6, 16, 1, 2, true, {100, 99, 98}},
    {6, 100, 5, 11, 1, 1, true, {}},
};

// A sum of k products in float32 errs by about 2^-24 sqrt(k); the gates' curves don't enlarge it.
void compare(const char* isa, const Problem& p, const Oracle& oracle, const Results& r) {
  const int before = test::failures;
  const LstmShape& s = p.s;
  const double k = static_cast<double>(4 * s.hidden + s.input + p.rows);
  const double tolerance = s.dtype == DType::bf16 ? std::ldexp(1.0, -7) : std::ldexp(4 + std::sqrt(k), -23);
  check_close("output", r.output, oracle.output, tolerance);
  check_close("h_n", r.h_n, oracle.h_n, tolerance);
  check_close("c_n", r.c_n, oracle.c_n, tolerance);
  if (!r.grad_weights.empty()) {
    check_close("grad_x", r.grad_x, oracle.grad_x, tolerance);
    check_close("grad_h0", r.grad_h0, oracle.grad_h0, tolerance);
    check_close("grad_c0", r.grad_c0, oracle.grad_c0, tolerance);
    for (size_t i = 0; i < r.grad_weights.size(); ++i)
      check_close("grad_weights", r.grad_weights[i], oracle.grad_weights[i], tolerance);
  }
  if (test::failures > before) std::printf("  in %s: %s\n", isa, text_of(p).c_str());
}

void check_isa(const char* name, const LstmKernels* table) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Case& c : kCases) {
      const Problem p(c, dtype);
      const Oracle oracle(p);
      const Results r = run(p, table, Weights::raw, Order::time_first, serial_executor(), true);
      compare(name, p, oracle, r);
      for (const Order order : {Order::batch_first, Order::gaps}) {
        const Results other = run(p, table, Weights::raw, order, test::thread_executor(2), true);
        EXPECT(same(r, other), "%s: strides change the bits", name);
      }
      compare(name, p, oracle, run(p, table, Weights::packed, Order::time_first, serial_executor(), false));
    }
}

// int8 weights on float rows, against the oracle of what they stand for; strides and threads change no bit.
void check_int8(const char* name, const LstmKernels* table) {
  std::vector<Case> cases = kCases;
  cases.push_back({40, 3, 16, 130, 1, 2, true, {}});
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Case& c : cases) {
      Problem p(c, dtype);
      const Int8Weights int8(p);
      const Results r = run(p, table, Weights::int8, Order::time_first, serial_executor(), false, &int8);
      compare(name, p, Oracle(p), r);
      for (const Order order : {Order::batch_first, Order::gaps}) {
        const Results other = run(p, table, Weights::int8, order, test::thread_executor(3), false, &int8);
        EXPECT(same(r, other), "%s: strides or threads change the bits of int8", name);
      }
    }
}

// Large enough that every thread gets its share.
void check_threads(const char* name, const LstmKernels* table) {
  const std::vector<Case> cases = {{40, 3, 16, 130, 1, 2, true, {}},
                                   {250, 1, 8, 140, 2, 1, true, {}},
                                   {30, 9, 12, 150, 2, 2, true, {9, 9, 9, 9, 9, 8, 8, 8, 8, 8, 7, 7, 6, 6, 5,
                                                                 5, 5, 4, 4, 4, 4, 3, 3, 3, 2, 2, 1, 1, 1, 1}}};
  for (Case c : cases) {
    if (test::is_quick() && c.sizes.empty()) c.steps = 12;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Problem p(c, dtype);
      for (const Weights how : {Weights::raw, Weights::packed}) {
        if (test::is_quick() && (dtype == DType::bf16) != (how == Weights::packed)) continue;
        const Results one = run(p, table, how, Order::time_first, serial_executor(), true);
        for (const int threads : {2, 3, 4})
          EXPECT(same(one, run(p, table, how, Order::time_first, test::thread_executor(threads), true)),
                 "%s: %d threads change the bits", name, threads);
        const Executor hostile[] = {one_after_the_other(), all_at_once_on_one(), late_starters()};
        for (const Executor& executor : hostile)
          EXPECT(same(one, run(p, table, how, Order::time_first, executor, true)), "%s: an executor changes the bits",
                 name);
      }
    }
  }
}

// A sequence with a NaN or an infinity: its own numbers follow the oracle's, its neighbours don't notice.
void check_extremes(const char* name) {
  Problem p({6, 4, 5, 20, 1, 1, true, {}}, DType::f32);
  const Results clean = run(p, nullptr, Weights::raw, Order::time_first, serial_executor(), false);
  p.x[static_cast<size_t>((2 * 4 + 1) * 5)] = NAN;
  p.x[static_cast<size_t>((3 * 4 + 2) * 5 + 1)] = INFINITY;
  p.x[static_cast<size_t>((3 * 4 + 3) * 5 + 1)] = -3e38f;
  const Oracle oracle(p);
  const Results r = run(p, nullptr, Weights::raw, Order::time_first, serial_executor(), false);
  for (size_t i = 0; i < r.output.size(); ++i) {
    const size_t b = i / 20 % 4, t = i / 80;
    const double e = oracle.output[i];
    if (b == 0 || t < 2) EXPECT(r.output[i] == clean.output[i], "%s: a neighbour noticed at %zu", name, i);
    EXPECT(std::isnan(e) == std::isnan(r.output[i]), "%s: NaN at %zu", name, i);
    if (!std::isnan(e)) EXPECT(std::fabs(e - r.output[i]) < 1e-5, "%s: %g for %g", name, r.output[i], e);
  }
  for (size_t i = 0; i < 20; ++i) EXPECT(std::isnan(r.h_n[20 + i]), "%s: NaN in h_n", name);
}

// Is a call with this block of packed weights planned?
bool accepted(const LstmShape& shape, const void* packed, int64_t bytes) {
  LstmForwardArgs args;
  args.shape = shape;
  args.packed = packed, args.packed_bytes = bytes;
  LstmForwardPlan plan;
  return static_cast<bool>(make_plan(args, 1, &plan));
}
// A call with unpacked weights, which planning doesn't read?
bool accepted(const LstmShape& shape) {
  const void* weights[1] = {};
  LstmForwardArgs args;
  args.shape = shape;
  args.weights = weights;
  args.save = true;
  LstmForwardPlan plan;
  return static_cast<bool>(make_plan(args, 1, &plan));
}
bool accepted_backward(const LstmShape& shape) {
  LstmBackwardArgs args;
  args.shape = shape;
  LstmBackwardPlan plan;
  return static_cast<bool>(make_plan(args, 1, &plan));
}

void check_malformed(const char* name) {
  const Problem p({2, 2, 6, 10, 2, 1, true, {}}, DType::f32);
  std::vector<const void*> pointers;
  for (const auto& w : p.weights) pointers.push_back(w.data());
  const std::vector<char> good = pack(p.s, pointers.data(), serial_executor());
  const auto bytes = static_cast<int64_t>(good.size());
  EXPECT(accepted(p.s, good.data(), bytes), "%s: a good block", name);
  EXPECT(accepted(p.s) && accepted_backward(p.s), "%s: a good shape", name);
  EXPECT(!accepted(p.s, nullptr, 0), "%s: no weights", name);
  for (const int64_t size : {int64_t{0}, int64_t{10}, bytes - 1, bytes / 2, bytes + 64}) {
    std::vector<char> block(static_cast<size_t>(size));
    std::memcpy(block.data(), good.data(), static_cast<size_t>(size < bytes ? size : bytes));
    EXPECT(!accepted(p.s, block.data(), size), "%s: %ld bytes", name, static_cast<long>(size));
  }
  // Every field of the header: magic 8, version, lanes, dtype, layers, directions 4 each, bias, input, hidden, bytes.
  for (const size_t at : {0u, 8u, 12u, 16u, 20u, 24u, 32u, 40u, 48u}) {
    std::vector<char> block = good;
    block[at] = static_cast<char>(block[at] ^ 3);
    EXPECT(!accepted(p.s, block.data(), bytes), "%s: header byte %zu", name, at);
  }
  const std::function<void(LstmShape&)> changes[] = {
      [](LstmShape& s) { s.input = 7; },           [](LstmShape& s) { s.hidden = 11; },
      [](LstmShape& s) { s.layers = 1; },          [](LstmShape& s) { s.directions = 2; },
      [](LstmShape& s) { s.dtype = DType::bf16; }, [](LstmShape& s) { s.hidden = int64_t{1} << 60; },
      [](LstmShape& s) { s.layers = 0; }};
  for (const auto& change : changes) {
    LstmShape s = p.s;
    change(s);
    EXPECT(!accepted(s, good.data(), bytes), "%s: another shape", name);
  }
  // int8 goes with either dtype, but a float block doesn't pass for it.
  Problem rounded({2, 2, 6, 10, 2, 1, true, {}}, DType::f32);
  const std::vector<char> int8 = pack(p.s, Int8Weights(rounded).cells.data(), serial_executor());
  LstmShape narrow = p.s;
  narrow.dtype = DType::bf16;
  for (const LstmShape& s : {p.s, narrow})
    EXPECT(accepted(s, int8.data(), static_cast<int64_t>(int8.size())), "%s: an int8 block", name);
  EXPECT(!accepted(p.s, int8.data(), static_cast<int64_t>(int8.size()) - 1), "%s: a short int8 block", name);
  std::vector<char> relabelled = good;
  relabelled[16] = static_cast<char>(DType::i8);
  EXPECT(!accepted(p.s, relabelled.data(), bytes), "%s: a float block as int8", name);
  // Each size within its own limit, their products not: refused wherever a size is made of them.
  const std::function<void(LstmShape&)> large[] = {
      [](LstmShape& s) { s.hidden = 1 << 24, s.layers = 1 << 16, s.directions = 2, s.batch = 0; },
      [](LstmShape& s) { s.hidden = 1 << 24, s.layers = 1 << 10; },
      [](LstmShape& s) { s.hidden = s.input = 1 << 24, s.layers = 1 << 6, s.dtype = DType::bf16; }};
  for (const auto& change : large) {
    LstmShape s = p.s;
    change(s);
    LstmPackingPlan packing;
    EXPECT(!make_packing_plan(s, &packing), "%s: packed bytes of too large a shape", name);
    EXPECT(!accepted(s, good.data(), bytes), "%s: a block for too large a shape", name);
    EXPECT(!accepted(s), "%s: a call of too large a shape", name);
  }
  const std::function<void(LstmShape&)> long_ones[] = {
      [](LstmShape& s) { s.batch = INT64_MAX; }, [](LstmShape& s) { s.steps = INT64_MAX; },
      [](LstmShape& s) { s.steps = s.batch = int64_t{1} << 32; },
      [](LstmShape& s) { s.steps = s.batch = 1 << 20, s.hidden = 1 << 20; }};
  for (const auto& change : long_ones) {
    LstmShape s = p.s;
    change(s);
    EXPECT(!accepted(s), "%s: too long a sequence", name);
    EXPECT(!accepted_backward(s), "%s: too long a sequence, backward", name);
  }
  const std::function<void(LstmShape&)> bad[] = {[](LstmShape& s) { s.steps = 0; }, [](LstmShape& s) { s.batch = -1; },
                                                 [](LstmShape& s) { s.dtype = DType::i8; },
                                                 [](LstmShape& s) { s.directions = 3; }};
  for (const auto& change : bad) {
    LstmShape s = p.s;
    change(s);
    EXPECT(!accepted(s), "%s: a bad shape", name);
    EXPECT(!accepted_backward(s), "%s: a bad shape, backward", name);
  }
}

// batch_sizes are read once, by lstm_starts; a plan takes them only with what that has made of them.
void check_batch_sizes() {
  const int64_t good[] = {3, 3, 1};
  int64_t starts[4];
  EXPECT(lstm_starts(good, 3, starts), "good sizes");
  EXPECT(starts[0] == 0 && starts[1] == 3 && starts[2] == 6 && starts[3] == 7, "starts");
  for (const std::vector<int64_t>& bad :
       std::vector<std::vector<int64_t>>{{1, 2}, {2, 0}, {0}, {-1}, {2, 2, 3}, {INT64_MAX, INT64_MAX}}) {
    std::vector<int64_t> to(bad.size() + 1);
    EXPECT(!lstm_starts(bad.data(), static_cast<int64_t>(bad.size()), to.data()), "sizes from %ld",
           static_cast<long>(bad[0]));
  }
  LstmShape s = {3, 3, 4, 8, 1, 1, true, DType::f32, good, starts};
  EXPECT(accepted(s) && accepted_backward(s), "packed sequences");
  s.batch = 2;
  EXPECT(!accepted(s) && !accepted_backward(s), "another batch than the first size");
  s.batch = 3, s.starts = nullptr;
  EXPECT(!accepted(s) && !accepted_backward(s), "sizes that nobody has read");
}

}  // namespace

int main() {
  check_batch_sizes();
  for (const Isa isa : test::host_isas()) {
    if (test::is_int8_only(isa)) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    check_isa(isa_name(isa), nullptr);
    check_int8(isa_name(isa), nullptr);
    check_threads(isa_name(isa), nullptr);
    check_extremes(isa_name(isa));
    check_malformed(isa_name(isa));
    // A block packed for one ISA is refused by another of other width.
    if (isa == Isa::avx2) {
      const Problem p(kCases[1], DType::f32);
      std::vector<const void*> pointers;
      for (const auto& w : p.weights) pointers.push_back(w.data());
      const std::vector<char> block = pack(p.s, pointers.data(), serial_executor());
      EXPECT(force_isa("scalar"), "force");
      EXPECT(!accepted(p.s, block.data(), static_cast<int64_t>(block.size())), "another ISA's block");
    }
  }
  EXPECT(force_isa(nullptr), "unforce");
  if (test::is_quick()) return test::finish();
  check_isa("wide512", &wide512::lstm_kernels);
  check_int8("wide512", &wide512::lstm_kernels);
  check_threads("wide512", &wide512::lstm_kernels);
  return test::finish();
}
