// The LSTM's forward kernels against double precision, in the SIMT harness: every dtype, all paths, raw and packed
// weights, ragged sizes, packed sequences, both directions, layers in flight, with and without what backward needs,
// under all schedules; and the choice of path, blocks and spans for many shapes and devices.
#include "pykernels/cuda/lstm.h"

#include "cuda/lstm/choose.h"
#include "cuda/on_device.h"
#include "lstm_reference.h"

using namespace pk;
using namespace pk::test;
using cuda::Device;
using cuda::LstmPath;

namespace {

using Sequence = SequenceIn<Bytes>;

struct How {
  LstmPath path = LstmPath::automatic;
  bool packed = false, save = false, tf32 = false;
  Order order = Order::time_first;
};

struct Results {
  std::vector<float> output, h_n, c_n, reserve;
};

Results run(const Problem& p, const How& how) {
  const LstmShape& s = p.s;
  std::vector<OnDevice> weights;
  for (const auto& w : p.weights) weights.emplace_back(s.dtype, w);
  const auto pointers = pointers_to<const void*>(weights);
  Sequence x(p, how.order, s.input), output(p, how.order, s.directions * s.hidden);
  x.set(p.x);
  OnDevice h0(s.dtype, p.h0), c0(s.dtype, p.c0), h_n(s.dtype, p.h0.size()), c_n(s.dtype, p.h0.size());
  cuda::LstmPackingPlan packing = {};
  if (how.packed) EXPECT(cuda::make_packing_plan(s, &packing), "packing plan");
  Bytes packed(static_cast<size_t>(packing.packed_bytes));
  cuda::LstmForwardArgs f;
  f.shape = s;
  f.x = x.view(), f.output = output.view();
  f.h0 = h0.data(), f.c0 = c0.data(), f.h_n = h_n.data(), f.c_n = c_n.data();
  f.path = how.path, f.tf32 = how.tf32, f.save = how.save;
  f.weights = pointers.data();
  if (how.packed) {
    EXPECT(cuda::pack(packing, pointers.data(), packed.data(), nullptr), "pack");
    f.weights = nullptr, f.packed = packed.data(), f.packed_bytes = packing.packed_bytes;
  }
  cuda::LstmForwardPlan plan;
  succeeded(cuda::make_plan(f, &plan), "plan");
  OnDevice reserve(s.dtype, static_cast<size_t>(plan.reserve_elements));
  plan.args.reserve = reserve.data();
  run_planned(plan, 256);
  return {output.dense(), h_n.floats(), c_n.floats(), reserve.floats()};
}

double tolerance_of(const Problem& p, bool tf32) {
  if (p.s.dtype == DType::bf16) return std::ldexp(1.0, -7);
  if (p.s.dtype == DType::f16 || tf32) return std::ldexp(1.0, -10);
  return std::ldexp(8 + std::sqrt(static_cast<double>(2 * p.s.hidden + p.s.input + p.s.steps)), -23);
}

const char* name_of(LstmPath p) {
  return p == LstmPath::cluster ? "cluster" : p == LstmPath::persistent ? "persistent" : "step";
}

bool check(const Problem& p, const Oracle& oracle, const How& how, const char* schedule) {
  const int before = test::failures;
  const Results r = run(p, how);
  const double tolerance = tolerance_of(p, how.tf32);
  check_close("output", r.output, oracle.output, tolerance);
  check_close("h_n", r.h_n, oracle.h_n, tolerance);
  check_close("c_n", r.c_n, oracle.c_n, tolerance);
  if (how.save) {
    const LstmShape& s = p.s;
    std::vector<float> gates, c;
    Doubles expected_gates, expected_c;
    for (int cell = 0; cell < s.layers * s.directions; ++cell) {
      const int layer = cell / s.directions, d = cell % s.directions;
      const auto H = static_cast<size_t>(s.hidden);
      const auto from = r.reserve.begin() + cuda::lstm_reserve_gates(s, layer, d);
      const auto c_from = r.reserve.begin() + cuda::lstm_reserve_c(s, layer, d);
      for (size_t row = 0; row < static_cast<size_t>(p.rows); ++row)
        for (size_t u = 0; u < H; ++u) {
          for (size_t g = 0; g < 4; ++g) {
            gates.push_back(from[static_cast<long>((row * H + u) * 4 + g)]);
            expected_gates.push_back(oracle.gates[static_cast<size_t>(cell)][row * 4 * H + g * H + u]);
          }
          c.push_back(c_from[static_cast<long>(row * H + u)]);
          expected_c.push_back(oracle.cells[static_cast<size_t>(cell)][row * H + u]);
        }
    }
    check_close("reserve: gates", gates, expected_gates, tolerance);
    check_close("reserve: c", c, expected_c, tolerance);
    for (int layer = 0; layer + 1 < s.layers; ++layer) {
      const auto from = r.reserve.begin() + cuda::lstm_reserve_output(s, layer);
      const std::vector<float> between(from, from + p.rows * s.directions * s.hidden);
      check_close("reserve: output", between, oracle.outputs[static_cast<size_t>(layer)], tolerance);
    }
  }
  if (test::failures > before)
    std::printf("  in %s: %s, %s%s%s\n", schedule, text_of(p).c_str(), name_of(how.path), how.packed ? ", packed" : "",
                how.save ? ", save" : "");
  return test::failures == before;
}

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr LstmPath kPaths[] = {LstmPath::persistent, LstmPath::step, LstmPath::cluster};
// Steps, batch, input, hidden, layers, directions, bias, batch_sizes.
const std::vector<Case> kCases = {
    {4, 1, 1, 1, 1, 1, true, {}},
    {5, 3, 7, 9, 1, 1, true, {}},
    {4, 2, 0, 8, 1, 2, true, {}},
    {3, 17, 8, 16, 1, 1, false, {}},
    {5, 2, 16, 40, 2, 1, true, {}},
    {4, 5, 6, 10, 2, 2, true, {5, 3, 3, 1}},
    {6, 9, 8, 24, 3, 1, true, {9, 9, 8, 3, 3, 1}},
    {1, 6, 8, 16, 2, 1, true, {}},
    {1, 40, 5, 8, 1, 2, true, {}},
    {2, 37, 3, 16, 1, 2, true, {37, 34}},  // more than a group of 32 sequences
    {40, 2, 3, 8, 3, 1, true, {}},         // a wavefront of three layers
};

void check_cases(const std::vector<Case>& cases) {
  const On on(kH100);
  size_t n = 0;
  for (const Case& c : cases) {
    for (const DType dtype : kDTypes) {
      const Problem p(c, dtype);
      const Oracle oracle(p);
      for (size_t i = 0; i < std::size(kPaths); ++i, ++n) {
        const LstmPath path = kPaths[i];
        if (path == LstmPath::cluster && c.batch > 32) continue;  // than a group of sequences
        // Over the table each combination meets each schedule, but not in every case.
        const auto& schedule = simt::schedules()[n % simt::schedules().size()];
        simt::Use use(schedule);
        How how;
        how.path = path, how.packed = n % 2 == 1, how.save = n / 2 % 2 == 1;
        how.order = static_cast<Order>((n / 3 + n / 9) % 3);
        check(p, oracle, how, schedule.name);
      }
    }
  }
}

bool same(const Results& a, const Results& b) {
  return same_bits(a.output, b.output) && same_bits(a.h_n, b.h_n) && same_bits(a.c_n, b.c_n) &&
         same_bits(a.reserve, b.reserve);
}

// The exchange between blocks, whoever is late: every schedule gives the same bits.
void check_schedules() {
  const On on(kH100);
  for (const DType dtype : {DType::f32, DType::f16}) {
    const Problem p({4, 9, 8, 24, 1, 2, true, {9, 5, 5, 2}}, dtype);
    const Oracle oracle(p);
    Results grid;
    for (const LstmPath path : kPaths) {
      How how;
      how.path = path, how.save = true;
      const Results first = run(p, how);
      if (path == LstmPath::persistent) grid = first;
      if (path == LstmPath::cluster) EXPECT(same(first, grid), "the cluster's bits are not the grid's");
      for (const auto& schedule : simt::schedules()) {
        simt::Use use(schedule);
        if (!check(p, oracle, how, schedule.name)) return;
        EXPECT(same(run(p, how), first), "%s: other bits", schedule.name);
      }
    }
  }
}

// Sixteen units a block, weights that overflow the registers, groups of fewer sequences, spans of few steps.
void check_devices() {
  Device small = simt::device();
  small.multiprocessors = 20;
  {
    const On on(small);
    for (const DType dtype : kDTypes) {
      const Problem p({4, 3, 5, 161, 1, 1, true, {}}, dtype);
      EXPECT(cuda::lstm::choose(p.s, small, LstmPath::persistent).m_tiles == 4, "16 units a block");
      check(p, Oracle(p), {LstmPath::persistent, true}, "16 units a block");
    }
  }
  {
    const On on(kH100);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Problem p({4, 3, 5, 161, 1, 1, true, {}}, dtype);
      const cuda::lstm::Choice plan = cuda::lstm::choose(p.s, kH100, LstmPath::cluster);
      EXPECT(plan.cluster && plan.m_tiles == 4 && plan.blocks == 11, "16 units a block of a cluster");
      check(p, Oracle(p), {LstmPath::cluster}, "16 units a block of a cluster");
    }
  }
  {
    const Problem p({4, 2, 4, 264, 1, 1, true, {}}, DType::f32);
    check(p, Oracle(p), {LstmPath::persistent}, "weights in shared memory");
  }
  small = simt::device();
  small.multiprocessors = 1;
  {
    const On on(small);
    for (const DType dtype : kDTypes) {
      EXPECT(cuda::lstm::choose_tile(4 * 34, 40, 2, small.multiprocessors) == cuda::lstm::ProductTile::large,
             "large products");
      const Problem p({4, 34, 16, 40, 1, 2, true, {}}, dtype);
      check(p, Oracle(p), {LstmPath::step, true}, "large products");
    }
    const Problem p({2, 34, 16, 8, 1, 1, true, {}}, DType::f32);
    check(p, Oracle(p), {LstmPath::step, true, false, true}, "TF32");
  }
  small = simt::device();
  small.shared_per_block = 36 << 10;
  {
    const On on(small);
    const Problem p({4, 33, 4, 64, 1, 1, true, {33, 20, 20, 1}}, DType::f32);
    EXPECT(cuda::lstm::choose(p.s, small, LstmPath::persistent).tiles < 4, "smaller groups");
    check(p, Oracle(p), {LstmPath::persistent, false, true}, "smaller groups");
  }
  small = kH100;
  small.l2_bytes = 2 * 16 * 8 * 4 * 2 * 3;  // three steps of both directions
  {
    const On on(small);
    for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{}, {4, 4, 4, 3, 3, 2, 1, 1}}) {
      const Problem p({8, 4, 6, 8, 2, 2, true, sizes}, DType::f16);
      const Oracle oracle(p);
      for (const LstmPath path : kPaths) {
        EXPECT(cuda::lstm::choose(p.s, small, path).span == 3, "spans");
        check(p, oracle, {path, false, true}, "spans");
      }
    }
  }
}

// NaN and infinities reach what they reach in plain arithmetic, and never pass for a word that is yet to come.
void check_extremes() {
  const On on(kH100);
  for (const DType dtype : kDTypes) {
    Problem p({5, 4, 3, 10, 1, 1, true, {}}, dtype);
    const Results clean = run(p, {LstmPath::persistent});
    p.x[static_cast<size_t>((2 * 4 + 1) * 3)] = NAN;
    p.x[static_cast<size_t>((3 * 4 + 2) * 3 + 1)] = INFINITY;
    p.h0[2 * 10] = -NAN;  // sequence 2
    const Oracle oracle(p);
    for (const LstmPath path : kPaths) {
      const Results r = run(p, {path});
      for (size_t i = 0; i < r.output.size(); ++i) {
        const size_t b = i / 10 % 4, t = i / 40;
        const double e = oracle.output[i];
        if (path != LstmPath::step && (b == 0 || b == 3 || (b == 1 && t < 2))) {
          EXPECT(r.output[i] == clean.output[i], "a neighbour noticed at %zu", i);
        }
        EXPECT(std::isnan(e) == std::isnan(r.output[i]), "%s: NaN at %zu", text_of(p).c_str(), i);
      }
    }
  }
}

void check_refusals() {
  const Problem p({4, 2, 6, 10, 1, 1, true, {}}, DType::f32);
  const void* none = nullptr;
  cuda::LstmForwardArgs f;
  f.weights = &none;
  cuda::LstmForwardPlan plan;
  const auto refused = [&](auto&& change) {
    f.shape = p.s;
    change(f.shape);
    return !cuda::make_plan(f, &plan);
  };
  const int64_t sizes[] = {2, 2, 1, 1}, others[] = {1, 1, 1, 1}, starts[] = {0, 1, 2, 3, 4};
  EXPECT(refused([](LstmShape& s) { s.dtype = DType::i8; }), "dtype");
  EXPECT(refused([](LstmShape& s) { s.steps = 0; }), "steps");
  EXPECT(refused([](LstmShape& s) { s.batch = -1; }), "batch");
  EXPECT(refused([](LstmShape& s) { s.hidden = 0; }), "hidden");
  EXPECT(refused([](LstmShape& s) { s.directions = 3; }), "directions");
  EXPECT(refused([](LstmShape& s) { s.layers = 0; }), "layers");
  EXPECT(refused([](LstmShape& s) { s.steps = s.batch = 1 << 24, s.hidden = 1 << 20; }), "too large");
  EXPECT(refused([&](LstmShape& s) { s.batch_sizes = sizes, s.starts = nullptr; }),
         "batch sizes that lstm_starts has not read");
  EXPECT(refused([&](LstmShape& s) { s.batch_sizes = others, s.starts = starts; }), "sizes of another batch");
  f.shape = p.s;
  EXPECT(cuda::make_plan(f, &plan), "the good one");
  f.weights = nullptr;
  EXPECT(!cuda::make_plan(f, &plan), "no weights");
  f.packed = &none, f.packed_bytes = 16;
  EXPECT(!cuda::make_plan(f, &plan), "packed weights of another length");
  f.packed = nullptr;
  f.weights = &none;
  // A path that can't run.
  Device small = simt::device();
  small.multiprocessors = 1;
  const On on(small);
  f.path = LstmPath::persistent;
  f.shape.hidden = 17;
  EXPECT(!cuda::make_plan(f, &plan), "two blocks on one multiprocessor");
  f.path = LstmPath::cluster;
  EXPECT(!cuda::make_plan(f, &plan), "a cluster on another architecture");
  f.path = LstmPath::step;
  EXPECT(cuda::make_plan(f, &plan) && plan.workspace_bytes > 0 && plan.reserve_elements == 0, "a step");
}

// What holds of every plan, and what is expected of some.
void check_choice() {
  const Device a100, h100 = kH100;
  for (const Device& device : {a100, h100}) {
    for (const DType dtype : kDTypes)
      for (const int64_t hidden : {1, 7, 128, 200, 512, 768, 1024, 1536, 2048, 4096})
        for (const int64_t batch : {1, 8, 16, 33, 64, 128, 129, 1000})
          for (const int directions : {1, 2})
            for (const int layers : {1, 2, 6}) {
              LstmShape s;
              s.steps = 1000, s.batch = batch, s.input = s.hidden = hidden;
              s.layers = layers, s.directions = directions, s.dtype = dtype;
              const cuda::lstm::Choice plan = cuda::lstm::choose(s, device, LstmPath::automatic);
              EXPECT(plan.span >= 1 && plan.span <= s.steps, "span");
              EXPECT(plan.layers_at_once >= 1 && plan.layers_at_once * directions <= cuda::lstm::kWorkers, "workers");
              if (!plan.persistent) continue;
              EXPECT(plan.blocks * directions * plan.layers_at_once <= device.multiprocessors, "resident");
              EXPECT(plan.shared_bytes <= device.shared_per_block, "shared memory");
              EXPECT(plan.blocks * cuda::lstm::units_of(plan.m_tiles) >= hidden, "all units");
              EXPECT(batch <= cuda::lstm::kPersistentBatch, "batch");
              if (!plan.cluster) continue;
              EXPECT(device.capability == 90 && plan.blocks <= cuda::lstm::kClusterBlocks, "a cluster");
              EXPECT(batch <= plan.tiles * cuda::lstm::kTileRows, "one group");
            }
  }
  LstmShape s;
  s.steps = 1024, s.batch = 16, s.input = s.hidden = 768, s.dtype = DType::f16;
  const auto plan = [&](const Device& device) { return cuda::lstm::choose(s, device, LstmPath::automatic); };
  EXPECT(plan(h100).persistent && plan(h100).blocks == 96 && plan(h100).m_tiles == 2, "h 768 on an H100");
  EXPECT(plan(h100).pinned_bytes == 48 << 10, "h 768: bytes pinned");
  EXPECT(plan(h100).shared_bytes < 48 << 10, "h 768: all of W_hh in registers");
  s.directions = 2;
  EXPECT(plan(h100).persistent && plan(h100).blocks == 48, "h 768, both directions");
  s.directions = 1, s.hidden = 256, s.layers = 3;
  EXPECT(plan(h100).layers_at_once == 3 && plan(h100).span < 1024, "h 256: a wavefront");
  EXPECT(plan(h100).cluster && plan(h100).blocks == 16 && plan(h100).m_tiles == 4, "h 256: a cluster");
  EXPECT(!plan(a100).cluster && plan(a100).persistent, "h 256 on an A100");
  s.hidden = 128;
  EXPECT(plan(h100).cluster && plan(h100).blocks == 16 && plan(h100).m_tiles == 2, "h 128: a cluster");
  s.batch = 17;
  EXPECT(!plan(h100).cluster && plan(h100).persistent, "too large a batch for a cluster");
  EXPECT(cuda::lstm::choose(s, h100, LstmPath::cluster).cluster, "but not if told to");
  s.batch = 16, s.hidden = 257;
  EXPECT(!plan(h100).cluster && plan(h100).persistent, "h 257 needs more than 16 blocks");
  Device part = h100;
  part.multiprocessors = 60, s.hidden = 128;
  EXPECT(!plan(part).cluster && plan(part).persistent, "a part of a device");
  s.hidden = 4096;
  EXPECT(!plan(h100).persistent, "h 4096 doesn't fit");
  s.hidden = 1024, s.steps = 1;
  EXPECT(!plan(h100).persistent, "a cell");
}

}  // namespace

int main() {
  check_cases(kCases);
  check_schedules();
  check_devices();
  check_extremes();
  check_refusals();
  check_choice();
  return test::finish();
}
