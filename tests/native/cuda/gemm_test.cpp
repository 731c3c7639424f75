// csrc/cuda/gemm against a product in double: every element and output type, every way operands may lie, tails, biases,
// accumulation and slices of K, under all schedules; and the choice of tile and slices.
#include "pykernels/cuda/gemm.h"

#include "cuda/gemm/choose.h"
#include "cuda/on_device.h"
#include "cuda/ptx.cuh"
#include "cuda/tf32.h"

using namespace pk::cuda;
using pk::DType;
using pk::Status;
using pk::test::OnDevice;

namespace {

struct Case {
  const char* name;
  int m, n, k;
  bool a_columns, b_columns;  // contiguous along m, n
  DType dtype, out_dtype;
  bool tf32;
  int biases;
  bool accumulate;
  GemmChoice asked;
  int gap = 0;  // elements between rows
};

void check(const Case& c) {
  const auto lines = [&](int rows, bool columns) { return static_cast<size_t>(columns ? c.k : rows); };
  const auto stride = [&](int rows, bool columns) { return static_cast<size_t>((columns ? rows : c.k) + c.gap); };
  const size_t a_stride = stride(c.m, c.a_columns), b_stride = stride(c.n, c.b_columns);
  const auto values = [&](size_t n, unsigned seed) {
    auto v = pk::test::normal(n, seed);
    for (float& x : v) {
      if (c.tf32) x = pk::to_tf32(x);
    }
    return v;
  };
  OnDevice a(c.dtype, values(lines(c.m, c.a_columns) * a_stride, 1));
  OnDevice b(c.dtype, values(lines(c.n, c.b_columns) * b_stride, 2));
  OnDevice bias(c.dtype, values(static_cast<size_t>(c.n), 3)), bias2(c.dtype, values(static_cast<size_t>(c.n), 4));
  const size_t out_stride = static_cast<size_t>(c.n + c.gap), outs = static_cast<size_t>(c.m) * out_stride;
  const auto before = pk::test::normal(outs, 5);

  GemmArgs g;
  g.m = c.m, g.n = c.n, g.k = c.k;
  g.dtype = c.dtype, g.tf32 = c.tf32;
  g.a = a.data(), g.b = b.data();
  g.a_stride_m = c.a_columns ? 1 : static_cast<int64_t>(a_stride);
  g.a_stride_k = c.a_columns ? static_cast<int64_t>(a_stride) : 1;
  g.b_stride_n = c.b_columns ? 1 : static_cast<int64_t>(b_stride);
  g.b_stride_k = c.b_columns ? static_cast<int64_t>(b_stride) : 1;
  if (c.biases > 0) g.bias = bias.data();
  if (c.biases > 1) g.bias2 = bias2.data();
  g.out_dtype = c.out_dtype, g.out_stride = static_cast<int64_t>(out_stride);
  g.accumulate = c.accumulate;
  g.asked = c.asked;

  OnDevice first(c.out_dtype, before);
  std::vector<double> want(outs);
  for (int i = 0; i < c.m; ++i) {
    for (size_t j = 0; j < out_stride; ++j) {
      const size_t at = static_cast<size_t>(i) * out_stride + j;
      if (static_cast<int>(j) >= c.n) {
        want[at] = first[at];  // between rows nothing is written
        continue;
      }
      double sum = c.accumulate ? first[at] : 0.0;
      if (c.biases > 0) sum += bias[j];
      if (c.biases > 1) sum += bias2[j];
      for (int p = 0; p < c.k; ++p) {
        const double left = a[c.a_columns ? p * a_stride + i : i * a_stride + p];
        sum += left * b[c.b_columns ? p * b_stride + j : j * b_stride + p];
      }
      want[at] = sum;
    }
  }
  const double tolerance = c.out_dtype == DType::f32 ? 1e-6 : c.out_dtype == DType::f16 ? 5e-4 : 4e-3;
  GemmPlan plan;
  pk::test::succeeded(make_plan(g, &plan), c.name);
  std::vector<float> once;
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    OnDevice out(c.out_dtype, before);
    plan.args.out = out.data();
    pk::test::run_planned(plan);
    const std::vector<float> got = out.floats();
    const double difference = pk::test::relative_l2(got, want);
    EXPECT(difference <= tolerance, "%s: %dx%dx%d %s: %g", c.name, c.m, c.n, c.k, schedule.name, difference);
    if (once.empty()) once = got;
    EXPECT(got == once, "%s: %s gives other bits", c.name, schedule.name);
  }
}

void check_products() {
  constexpr DType f32 = DType::f32, f16 = DType::f16, bf16 = DType::bf16;
  // name, m, n, k, columns, types, tf32, biases, accumulate, plan, gap
  const Case cases[] = {
      {"gates", 40, 72, 48, false, false, f16, f16, false, 2, false, {1, 1}},
      {"gates large", 130, 72, 40, false, false, f16, f32, false, 1, false, {2, 1}},
      {"gates bf16", 40, 72, 48, false, false, bf16, bf16, false, 2, true, {1, 1}},
      {"gates bf16 large", 130, 72, 40, false, false, bf16, f32, false, 0, true, {2, 1}},
      {"gates f32", 40, 72, 48, false, false, f32, f32, false, 2, false, {1, 1}},
      {"gates f32 large", 130, 72, 40, false, false, f32, f32, false, 0, false, {2, 1}},
      {"gates tf32", 40, 72, 48, false, false, f32, f32, true, 2, false, {1, 1}},
      {"gates tf32 large", 130, 72, 40, false, false, f32, f32, true, 1, true, {2, 1}},
      {"grad x", 30, 72, 96, false, true, f16, f16, false, 0, false, {1, 1}},
      {"grad x large", 130, 40, 72, false, true, f16, f16, false, 0, true, {2, 1}},
      {"grad x bf16", 30, 72, 96, false, true, bf16, bf16, false, 0, false, {2, 2}},
      {"grad x f32", 30, 72, 96, false, true, f32, f32, false, 0, false, {1, 1}},
      {"grad x f32 large", 30, 72, 52, false, true, f32, f32, false, 0, false, {2, 1}},
      {"grad x tf32", 30, 72, 52, false, true, f32, f32, true, 0, false, {2, 2}},
      {"grad w", 72, 40, 203, true, true, f16, f16, false, 0, true, {1, 3}},
      {"grad w large", 136, 40, 131, true, true, f16, f32, false, 0, true, {2, 2}},
      {"grad w bf16", 72, 40, 203, true, true, bf16, f32, false, 1, true, {1, 3}},
      {"grad w f32", 72, 40, 103, true, true, f32, f32, false, 0, true, {1, 3}},
      {"grad w f32 large", 136, 40, 61, true, true, f32, f32, false, 0, false, {2, 2}},
      {"grad w tf32", 72, 40, 61, true, true, f32, f32, true, 0, false, {1, 64}},
      // Nothing aligned: odd strides, odd sizes, a gap that breaks the alignment of rows.
      {"strided", 67, 35, 41, false, false, f16, f16, false, 2, true, {}},
      {"strided bf16", 5, 67, 41, false, true, bf16, bf16, false, 1, false, {}},
      {"strided f32", 65, 7, 37, true, true, f32, f32, false, 0, true, {2, 2}},
      {"strided tf32", 9, 5, 37, true, false, f32, f32, true, 0, false, {}},
      {"gap", 17, 24, 40, false, false, f16, f16, false, 1, true, {}, 8},
      // Rows are aligned and K is not: what lies between rows is no zero.
      {"padded rows", 17, 24, 37, false, false, f32, f32, false, 0, false, {}, 3},
      {"odd gap", 17, 24, 40, false, true, f16, f32, false, 1, true, {}, 3},
      {"a column by a row", 64, 1, 16, true, false, f16, f16, false, 0, false, {}},
      {"one", 1, 1, 1, false, false, f32, f32, false, 2, true, {}},
      {"no products", 9, 12, 0, false, false, f16, f16, false, 2, true, {1, 4}},
      {"many bands", 600, 130, 8, false, false, f32, f32, false, 0, false, {1, 1}},
  };
  for (const Case& c : cases) check(c);

  // Hopper's kernel. Two multiprocessors make one cluster, which takes all tiles in turn.
  const Case hopper_cases[] = {
      {"hopper", 136, 264, 136, false, false, f16, f16, false, 2, true, {3, 1}},
      {"hopper bf16", 40, 72, 200, false, false, bf16, f32, false, 1, true, {3, 1}},
      {"hopper slices", 40, 300, 392, false, false, bf16, bf16, false, 2, true, {3, 3}},
      {"hopper, odd k", 300, 20, 61, false, false, f16, f32, false, 0, false, {3, 1}, 3},
      {"hopper, chosen", 40, 72, 48, false, false, f16, f16, false, 2, false, {}},
  };
  Device two = pk::test::kH100;
  two.multiprocessors = 2;
  const pk::test::On on(two);
  for (const Case& c : hopper_cases) check(c);
}

// Whatever NaN an operand holds, the sums that it is part of are NaN: the one that GPUs compute has all bits set.
void check_nan() {
  for (const bool tf32 : {false, true}) {
    for (const uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7fc00000u}) {
      float a[4] = {1.0f, 0.0f, 2.0f, 1.0f}, b[4] = {3.0f, 1.0f, 2.0f, 1.0f}, out[1] = {};
      std::memcpy(a + 1, &bits, sizeof bits);
      GemmArgs g;
      g.m = g.n = 1, g.k = 4, g.a = a, g.b = b, g.out = out, g.tf32 = tf32;
      g.a_stride_m = g.b_stride_n = 4, g.out_stride = 1;
      GemmPlan plan;
      EXPECT(make_plan(g, &plan) && run(plan, nullptr, nullptr) && std::isnan(out[0]), "%x, tf32 %d: %g", bits, tf32,
             out[0]);
    }
  }
}

void check_refusals() {
  GemmPlan plan;
  const auto refused = [&](auto change) {
    GemmArgs g;
    g.m = g.n = g.k = 2;
    g.a_stride_m = g.b_stride_n = g.out_stride = 2;
    change(g);
    return !make_plan(g, &plan);
  };
  EXPECT(refused([](GemmArgs& g) { g.m = -1; }));
  EXPECT(refused([](GemmArgs& g) { g.k = int64_t{1} << 31; }));
  EXPECT(refused([](GemmArgs& g) { g.dtype = DType::i8; }));
  EXPECT(refused([](GemmArgs& g) { g.out_dtype = DType::bf16; }));
  EXPECT(refused([](GemmArgs& g) { g.asked.tile = 4; }));
  EXPECT(refused([](GemmArgs& g) { g.asked.tile = 3; }));
  EXPECT(!refused([](GemmArgs& g) { g.k = 64, g.asked.split = 2; }) && plan.workspace_bytes > 0);
  EXPECT(make_plan(GemmArgs{}, &plan) && plan.workspace_bytes == 0 && run(plan, nullptr, nullptr));
}

void check_choices() {
  Device a100;
  const auto choose = [&](int64_t m, int64_t n, int64_t k) {
    return choose_gemm(m, n, k, DType::f16, false, false, a100);
  };
  // The input projection of a long sequence fills the device by itself.
  EXPECT(choose(16384, 3072, 768).tile == 2 && choose(16384, 3072, 768).split == 1);
  // A weight's gradient is small and its sums long: slices; the more the fewer tiles.
  EXPECT(choose(3072, 768, 16384).split > 1);
  EXPECT(choose(512, 128, 65536).split > choose(3072, 768, 65536).split);
  EXPECT(choose(512, 128, 1 << 22).split <= kGemmMostSplits);
  // A step's few rows: small tiles, so that more multiprocessors read the weight.
  EXPECT(choose(16, 4096, 1024).tile == 1);
  EXPECT(choose(16, 64, 128).split == 1);
  EXPECT(choose(0, 0, 0).split == 1);
  // Nothing but the arguments decides.
  Device small = a100;
  small.multiprocessors = 4;
  EXPECT(choose_gemm(3072, 768, 16384, DType::f16, false, false, small).split == 1);
  // Hopper's tile where there is work for it, on Hopper alone.
  EXPECT(choose_gemm(16384, 3072, 768, DType::f16, false, true, a100).tile == 3);
  EXPECT(choose_gemm(16, 4096, 1024, DType::f16, false, true, a100).tile == 1);
}

}  // namespace

int main() {
  check_products();
  check_nan();
  check_refusals();
  check_choices();
  return pk::test::finish();
}
