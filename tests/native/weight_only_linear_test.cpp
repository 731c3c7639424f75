// weight_only_linear against double precision: every ISA of this machine and the AVX-512 tilings as plain code; sizes
// on both sides of every tile, packed and not, strides, bf16, activations, threads, malformed packed weights.
#include "pykernels/weight_only_linear.h"

#include <cstring>
#include <functional>

#include "cpu/weight_only_linear/kernels.h"
#include "cpu/weight_only_linear/layout.h"
#include "elements.h"
#include "test.h"

namespace pk::wide512 {
extern const WeightOnlyLinearKernels weight_only_linear_kernels;
}

using namespace pk;
using namespace pk::test;

namespace {

struct Shape {
  int64_t m, n, k;
};

struct Problem {
  Shape s;
  DType dtype;
  bool has_bias;
  Activation activation;
  std::vector<float> x, scale, bias;
  std::vector<int8_t> weight;

  Problem(const Shape& s, DType dtype, bool has_bias, Activation activation)
      : s(s), dtype(dtype), has_bias(has_bias), activation(activation) {
    x = normal(static_cast<size_t>(s.m * s.k), 1);
    if (s.m > 4) std::fill_n(x.begin() + s.k, s.k, 0.0f);
    if (s.m > 4)
      for (int64_t i = 0; i < s.k; ++i) x[static_cast<size_t>(2 * s.k + i)] *= 1e-30f;
    if (dtype != DType::f32)
      for (float& v : x) v = widen(narrow(v, dtype), dtype);
    scale = normal(static_cast<size_t>(s.n), 2, 0.01f), bias = normal(static_cast<size_t>(s.n), 3);
    for (const float v : normal(static_cast<size_t>(s.n * s.k), 4, 60.0f))
      weight.push_back(v < -128 ? -128 : v > 127 ? 127 : static_cast<int8_t>(v));
  }

  std::vector<double> expected() const {
    std::vector<double> y;
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j < s.n; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < s.k; ++k)
          sum += static_cast<double>(x[static_cast<size_t>(i * s.k + k)]) * weight[static_cast<size_t>(j * s.k + k)];
        sum = sum * scale[static_cast<size_t>(j)] + (has_bias ? bias[static_cast<size_t>(j)] : 0.0f);
        y.push_back(activation == Activation::relu && sum < 0 ? 0.0 : sum);
      }
    return y;
  }
};

// 64-byte aligned.
struct Workspace {
  explicit Workspace(int64_t bytes) : memory(static_cast<size_t>(bytes) + 64) {}
  char* data() { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
  std::vector<char> memory;
};

// table: nullptr for the ISA in force. Rows of x are `gap` further apart than they are long.
std::vector<float> run(const Problem& p, const WeightOnlyLinearKernels* table, bool packed, const Executor& executor,
                       int64_t gap = 0) {
  const Shape& s = p.s;
  std::vector<float> wide(static_cast<size_t>(s.m * (s.k + gap)), NAN);
  for (int64_t i = 0; i < s.m; ++i) std::copy_n(p.x.begin() + i * s.k, s.k, wide.begin() + i * (s.k + gap));
  Elements<std::vector<char>> x(p.dtype, wide), y(p.dtype, static_cast<size_t>(s.m * s.n));
  WeightOnlyLinearArgs args;
  args.m = s.m, args.n = s.n, args.k = s.k;
  args.dtype = p.dtype;
  args.x = x.data(), args.x_stride = s.k + gap;
  args.weight = p.weight.data(), args.scale = p.scale.data(), args.bias = p.has_bias ? p.bias.data() : nullptr;
  args.activation = p.activation;
  Workspace block(0);
  if (packed) {
    WeightOnlyLinearPackingPlan plan;
    EXPECT(make_packing_plan(s.n, s.k, &plan), "packing plan");
    if (table) plan.kernels = table;
    if (table)
      plan.packed_bytes =
          kWeightOnlyLinearHeaderBytes + weight_only_linear_offsets(s.n, s.k, table->panel, table->group).end;
    block = Workspace(plan.packed_bytes);
    pack(plan, args.weight, args.scale, args.bias, block.data(), executor);
    args.packed = block.data(), args.packed_bytes = plan.packed_bytes;
  }
  WeightOnlyLinearPlan plan;
  if (table) {
    plan.args = args, plan.kernels = table;
    table->plan(&plan);
  } else {
    const Status status = make_plan(args, &plan);
    EXPECT(status, "plan: %s", status.error);
  }
  plan.args.y = y.data();
  run(plan, Workspace(plan.workspace_bytes).data(), executor);
  return y.floats();
}

const std::vector<Shape> kShapes = {{1, 1, 1},      {1, 63, 40},    {1, 64, 7},   {1, 300, 513}, {1, 512, 1100},
                                    {2, 65, 33},    {3, 70, 64},    {4, 129, 96}, {5, 64, 200},  {9, 100, 65},
                                    {10, 33, 70},   {13, 130, 129}, {48, 31, 5},  {49, 300, 9},  {97, 70, 66},
                                    {50, 40, 1030}, {3, 20, 0},     {60, 20, 0}};

// A sum of k products errs by about sqrt(k) 2^-24, and the scale, the bias and a chunk's sum round once more each.
void check_isa(const char* name, const WeightOnlyLinearKernels* table) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Shape& s : kShapes) {
      const Problem p(s, dtype, s.n % 2 == 0, s.m % 2 ? Activation::none : Activation::relu);
      const std::vector<double> expected = p.expected();
      const double tolerance =
          std::ldexp(4 + std::sqrt(static_cast<double>(s.k)), -24) + (dtype == DType::bf16 ? std::ldexp(1.0, -8) : 0.0);
      for (const bool packed : {true, false}) {
        const std::vector<float> y = run(p, table, packed, serial_executor());
        const double error = relative_l2(y, expected);
        EXPECT(error <= tolerance, "%s: %ld x %ld x %ld %s: error %g", name, static_cast<long>(s.m),
               static_cast<long>(s.n), static_cast<long>(s.k), packed ? "packed" : "as it lies", error);
        for (const int threads : {2, 3})
          EXPECT(run(p, table, packed, thread_executor(threads), 5) == y, "%s: threads or strides change the bits",
                 name);
      }
    }
  // Large enough to be shared.
  for (const Shape& s : std::vector<Shape>{{1, 1000, 700}, {4, 700, 400}, {6, 500, 300}, {100, 600, 200}}) {
    const Problem p(s, DType::f32, true, Activation::none);
    for (const bool packed : {true, false}) {
      const std::vector<float> y = run(p, table, packed, serial_executor());
      for (const int threads : {2, 3, 4})
        EXPECT(run(p, table, packed, thread_executor(threads)) == y, "%s: %d threads change the bits", name, threads);
    }
  }
}

// Numbers that are no numbers stay in their row, and in their column.
void check_extremes(const char* name) {
  for (const int64_t m : {3, 60}) {
    Problem p({m, 70, 30}, DType::f32, true, Activation::none);
    const std::vector<float> clean = run(p, nullptr, true, serial_executor());
    p.x[1 * 30 + 3] = NAN, p.x[2 * 30 + 29] = INFINITY, p.scale[5] = NAN;
    const std::vector<float> y = run(p, nullptr, true, serial_executor());
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < 70; ++j) {
        const float v = y[static_cast<size_t>(i * 70 + j)];
        if (i == 1 || j == 5) {
          EXPECT(std::isnan(v), "%s: NaN at %ld, %ld", name, static_cast<long>(i), static_cast<long>(j));
        } else if (i != 2) {
          EXPECT(v == clean[static_cast<size_t>(i * 70 + j)], "%s: a neighbour noticed", name);
        } else {
          EXPECT(!std::isfinite(v), "%s: infinity", name);
        }
      }
  }
}

bool accepted(const Shape& s, const void* packed, int64_t bytes) {
  WeightOnlyLinearArgs args;
  args.m = s.m, args.n = s.n, args.k = s.k;
  args.packed = packed, args.packed_bytes = bytes;
  WeightOnlyLinearPlan plan;
  return static_cast<bool>(make_plan(args, &plan));
}

void check_malformed(const char* name) {
  const Problem p({2, 70, 30}, DType::f32, true, Activation::none);
  WeightOnlyLinearPackingPlan plan;
  EXPECT(make_packing_plan(70, 30, &plan), "%s: packing plan", name);
  const int64_t bytes = plan.packed_bytes;
  std::vector<char> good(static_cast<size_t>(bytes));
  pack(plan, p.weight.data(), p.scale.data(), p.bias.data(), good.data(), serial_executor());
  EXPECT(accepted({2, 70, 30}, good.data(), bytes), "%s: a good block", name);
  for (const int64_t size : {int64_t{0}, int64_t{10}, bytes - 1, bytes / 2})
    EXPECT(!accepted({2, 70, 30}, good.data(), size), "%s: %ld bytes", name, static_cast<long>(size));
  // Fields of the header: magic 8, version, panel, group, one unused 4 each, n, k, bytes 8.
  for (const size_t at : {0u, 8u, 12u, 16u, 24u, 32u, 40u}) {
    std::vector<char> block = good;
    block[at] = static_cast<char>(block[at] ^ 3);
    EXPECT(!accepted({2, 70, 30}, block.data(), bytes), "%s: header byte %zu", name, at);
  }
  const int64_t large = int64_t{1} << 40;
  for (const Shape& s : std::vector<Shape>{
           {2, 71, 30}, {2, 70, 31}, {-1, 70, 30}, {INT64_MAX, 70, 30}, {2, large, large}, {large, large, 30}})
    EXPECT(!accepted(s, good.data(), bytes), "%s: another shape", name);
  EXPECT(!make_packing_plan(large, large, &plan) && !make_packing_plan(-1, 3, &plan), "%s: too large a weight", name);
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    EXPECT(force_isa(isa_name(isa)), "force");
    check_isa(isa_name(isa), nullptr);
    check_extremes(isa_name(isa));
    check_malformed(isa_name(isa));
  }
  EXPECT(force_isa(nullptr), "unforce");
  check_isa("wide512", &wide512::weight_only_linear_kernels);
  return test::finish();
}
