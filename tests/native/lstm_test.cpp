// The LSTM against a plain double-precision one, forward and backward: every ISA of this machine and the AVX-512
// tilings as plain code, ragged sizes, packed sequences, both directions, strides, bf16, any number of threads, hostile
// executors, malformed packed weights.
#include "pykernels/lstm.h"

#include <chrono>
#include <cstring>
#include <functional>

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

struct Results {
  std::vector<float> output, h_n, c_n, reserve, grad_x, grad_h0, grad_c0;
  std::vector<std::vector<float>> grad_weights;
};

enum class Weights { raw, packed };

// 64-byte aligned.
struct Workspace {
  explicit Workspace(int64_t bytes) : memory(static_cast<size_t>(bytes) + 64) {}
  void* data() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
  std::vector<char> memory;
};

// table: nullptr for the public entry points and the ISA in force.
Results run(const Problem& p, const LstmKernels* table, Weights how, Order order, const Executor& executor,
            bool backward) {
  const LstmShape& s = p.s;
  const int64_t width = s.directions * s.hidden;
  std::vector<Buffer> weights;
  std::vector<const void*> pointers;
  for (const auto& w : p.weights) weights.emplace_back(s.dtype, w);
  for (auto& w : weights) pointers.push_back(w.data());
  Sequence x(p, order, s.input), output(p, order, width);
  x.set(p.x);
  Buffer h0(s.dtype, p.h0), c0(s.dtype, p.c0), h_n(s.dtype, p.h0.size()), c_n(s.dtype, p.h0.size());
  Results r;
  int64_t floats = 0, bytes = 0;
  if (backward) EXPECT(lstm_reserve_size(s, &floats), "reserve");
  r.reserve.resize(static_cast<size_t>(floats));

  LstmForward f;
  f.shape = s;
  f.x = x.view(), f.output = output.view();
  f.h0 = h0.data(), f.c0 = c0.data(), f.h_n = h_n.data(), f.c_n = c_n.data();
  f.reserve = backward ? r.reserve.data() : nullptr;
  f.weights = pointers.data();
  std::vector<char> packed;
  if (how == Weights::packed) {
    if (table)
      bytes = packed_bytes_of(s, table->lanes);
    else
      EXPECT(lstm_packed_bytes(s, &bytes), "packed bytes");
    packed.resize(static_cast<size_t>(bytes));
    if (table)
      table->pack(s, pointers.data(), packed.data(), executor);
    else
      EXPECT(lstm_pack(s, pointers.data(), packed.data(), bytes, executor), "pack");
    f.packed = packed.data(), f.packed_bytes = bytes;
  }
  if (table)
    f.workspace_bytes = table->forward_workspace(f, executor.threads);
  else
    EXPECT(lstm_forward_workspace(f, executor.threads, &f.workspace_bytes), "workspace");
  Workspace workspace(f.workspace_bytes);
  f.workspace = workspace.data();
  if (table) {
    table->forward(f, executor);
  } else {
    const Status status = lstm_forward(f, executor);
    EXPECT(status, "forward: %s", status.error);
  }
  r.output = output.dense(), r.h_n = h_n.floats(), r.c_n = c_n.floats();
  if (!backward) return r;

  Sequence grad_output(p, order, width), grad_x(p, order, s.input);
  grad_output.set(p.grad_output);
  Buffer grad_h_n(s.dtype, p.grad_h_n), grad_c_n(s.dtype, p.grad_c_n), grad_h0(s.dtype, p.h0.size()),
      grad_c0(s.dtype, p.h0.size());
  std::vector<Buffer> grads;
  std::vector<void*> to;
  for (const auto& w : p.weights) grads.emplace_back(s.dtype, w.size());
  for (auto& g : grads) to.push_back(g.data());
  LstmBackward b;
  b.shape = s;
  b.grad_output = grad_output.view(), b.grad_h_n = grad_h_n.data(), b.grad_c_n = grad_c_n.data();
  b.x = f.x, b.h0 = f.h0, b.c0 = f.c0, b.weights = f.weights, b.output = f.output, b.reserve = r.reserve.data();
  b.grad_x = grad_x.view(), b.grad_h0 = grad_h0.data(), b.grad_c0 = grad_c0.data(), b.grad_weights = to.data();
  if (table)
    b.workspace_bytes = table->backward_workspace(b, executor.threads);
  else
    EXPECT(lstm_backward_workspace(b, executor.threads, &b.workspace_bytes), "workspace");
  Workspace other(b.workspace_bytes);
  b.workspace = other.data();
  if (table) {
    table->backward(b, executor);
  } else {
    const Status status = lstm_backward(b, executor);
    EXPECT(status, "backward: %s", status.error);
  }
  r.grad_x = grad_x.dense(), r.grad_h0 = grad_h0.floats(), r.grad_c0 = grad_c0.floats();
  for (const auto& g : grads) r.grad_weights.push_back(g.floats());
  return r;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
bool same(const Results& a, const Results& b) {
  bool all = same(a.output, b.output) && same(a.h_n, b.h_n) && same(a.c_n, b.c_n) && same(a.reserve, b.reserve) &&
             same(a.grad_x, b.grad_x) && same(a.grad_h0, b.grad_h0) && same(a.grad_c0, b.grad_c0);
  for (size_t i = 0; all && i < a.grad_weights.size(); ++i) all = same(a.grad_weights[i], b.grad_weights[i]);
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
  if (test::failures > before)
    std::printf("  in %s: t %ld b %ld i %ld h %ld layers %d directions %d %s\n", isa, static_cast<long>(s.steps),
                static_cast<long>(s.batch), static_cast<long>(s.input), static_cast<long>(s.hidden), s.layers,
                s.directions, s.dtype == DType::bf16 ? "bf16" : "f32");
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

// Large enough that every thread gets its share.
void check_threads(const char* name, const LstmKernels* table) {
  const std::vector<Case> cases = {{40, 3, 16, 130, 1, 2, true, {}},
                                   {250, 1, 8, 140, 2, 1, true, {}},
                                   {30, 9, 12, 150, 2, 2, true, {9, 9, 9, 9, 9, 8, 8, 8, 8, 8, 7, 7, 6, 6, 5,
                                                                 5, 5, 4, 4, 4, 4, 3, 3, 3, 2, 2, 1, 1, 1, 1}}};
  for (const Case& c : cases)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Problem p(c, dtype);
      for (const Weights how : {Weights::raw, Weights::packed}) {
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

void check_malformed(const char* name) {
  const Problem p({2, 2, 6, 10, 2, 1, true, {}}, DType::f32);
  std::vector<const void*> pointers;
  for (const auto& w : p.weights) pointers.push_back(w.data());
  int64_t bytes = 0;
  EXPECT(lstm_packed_bytes(p.s, &bytes), "bytes");
  std::vector<char> good(static_cast<size_t>(bytes));
  EXPECT(lstm_pack(p.s, pointers.data(), good.data(), bytes, serial_executor()), "pack");
  bool bias = false;
  EXPECT(lstm_check_packed(p.s, good.data(), bytes, &bias) && bias, "%s: a good block", name);
  EXPECT(!lstm_pack(p.s, pointers.data(), good.data(), bytes - 1, serial_executor()), "pack into too little");
  for (const int64_t size : {int64_t{0}, int64_t{10}, bytes - 1, bytes / 2, bytes + 64}) {
    std::vector<char> block(static_cast<size_t>(size));
    std::memcpy(block.data(), good.data(), static_cast<size_t>(size < bytes ? size : bytes));
    EXPECT(!lstm_check_packed(p.s, block.data(), size, &bias), "%s: %ld bytes", name, static_cast<long>(size));
  }
  // Every field of the header: magic 8, version, lanes, dtype, layers, directions 4 each, bias, input, hidden, bytes.
  for (const size_t at : {0u, 8u, 12u, 16u, 20u, 24u, 32u, 40u, 48u}) {
    std::vector<char> block = good;
    block[at] = static_cast<char>(block[at] ^ 3);
    EXPECT(!lstm_check_packed(p.s, block.data(), bytes, &bias), "%s: header byte %zu", name, at);
  }
  const std::function<void(LstmShape&)> changes[] = {
      [](LstmShape& s) { s.input = 7; },           [](LstmShape& s) { s.hidden = 11; },
      [](LstmShape& s) { s.layers = 1; },          [](LstmShape& s) { s.directions = 2; },
      [](LstmShape& s) { s.dtype = DType::bf16; }, [](LstmShape& s) { s.hidden = int64_t{1} << 60; },
      [](LstmShape& s) { s.layers = 0; }};
  for (const auto& change : changes) {
    LstmShape s = p.s;
    change(s);
    EXPECT(!lstm_check_packed(s, good.data(), bytes, &bias), "%s: another shape", name);
  }
  // Each size within its own limit, their products not: refused wherever a size is made of them.
  const std::function<void(LstmShape&)> large[] = {
      [](LstmShape& s) { s.hidden = 1 << 24, s.layers = 1 << 16, s.directions = 2, s.batch = 0; },
      [](LstmShape& s) { s.hidden = 1 << 24, s.layers = 1 << 10; },
      [](LstmShape& s) { s.hidden = s.input = 1 << 24, s.layers = 1 << 6, s.dtype = DType::bf16; }};
  for (const auto& change : large) {
    LstmShape s = p.s;
    change(s);
    int64_t size;
    EXPECT(!lstm_packed_bytes(s, &size), "%s: packed bytes of too large a shape", name);
    EXPECT(!lstm_check_packed(s, good.data(), bytes, &bias), "%s: a block for too large a shape", name);
    EXPECT(!lstm_reserve_size(s, &size), "%s: reserve of too large a shape", name);
  }
  LstmForward call;
  LstmBackward backward;
  int64_t need;
  const std::function<void(LstmShape&)> long_ones[] = {
      [](LstmShape& s) { s.batch = INT64_MAX; }, [](LstmShape& s) { s.steps = INT64_MAX; },
      [](LstmShape& s) { s.steps = s.batch = int64_t{1} << 32; },
      [](LstmShape& s) { s.steps = s.batch = 1 << 20, s.hidden = 1 << 20; }};
  for (const auto& change : long_ones) {
    call.shape = p.s;
    change(call.shape);
    backward.shape = call.shape;
    EXPECT(!lstm_reserve_size(call.shape, &need), "%s: reserve of too long a sequence", name);
    EXPECT(!lstm_forward_workspace(call, 2, &need), "%s: too long a sequence", name);
    EXPECT(!lstm_backward_workspace(backward, 2, &need), "%s: too long a sequence, backward", name);
  }
  const int64_t rising[] = {1, 2}, wrong[] = {2, 0};
  const std::function<void(LstmShape&)> bad[] = {[](LstmShape& s) { s.steps = 0; },
                                                 [](LstmShape& s) { s.batch = -1; },
                                                 [](LstmShape& s) { s.dtype = DType::i8; },
                                                 [](LstmShape& s) { s.directions = 3; },
                                                 [&](LstmShape& s) { s.batch_sizes = rising; },
                                                 [&](LstmShape& s) { s.batch_sizes = wrong; }};
  for (const auto& change : bad) {
    call.shape = p.s;
    change(call.shape);
    EXPECT(!lstm_forward_workspace(call, 1, &need), "%s: a bad shape", name);
  }
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (isa == Isa::avx512_vnni) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    check_isa(isa_name(isa), nullptr);
    check_threads(isa_name(isa), nullptr);
    check_extremes(isa_name(isa));
    check_malformed(isa_name(isa));
    // A block packed for one ISA is refused by another of other width.
    if (isa == Isa::avx2) {
      const Problem p(kCases[1], DType::f32);
      std::vector<const void*> pointers;
      for (const auto& w : p.weights) pointers.push_back(w.data());
      int64_t bytes = 0;
      bool bias;
      EXPECT(lstm_packed_bytes(p.s, &bytes), "bytes");
      std::vector<char> block(static_cast<size_t>(bytes));
      EXPECT(lstm_pack(p.s, pointers.data(), block.data(), bytes, serial_executor()), "pack");
      EXPECT(force_isa("scalar"), "force");
      EXPECT(!lstm_check_packed(p.s, block.data(), bytes, &bias), "another ISA's block");
    }
  }
  EXPECT(force_isa(nullptr), "unforce");
  check_isa("wide512", &wide512::lstm_kernels);
  check_threads("wide512", &wide512::lstm_kernels);
  return test::finish();
}
