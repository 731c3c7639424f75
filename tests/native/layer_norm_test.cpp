// Layer norm against plain loops in double: every ISA of the host, and wide512 as plain code.
#include "pykernels/layer_norm.h"

#include <cmath>
#include <cstring>

#include "cpu/layer_norm/kernels.h"
#include "elements.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const LayerNormKernels layer_norm_kernels;
}  // namespace pk::wide512

using namespace pk;
using test::by_channels, test::lay_out, test::Layout, test::place;

namespace {

// Runs on this table, or on that of the ISA in force.
const LayerNormKernels* wide = nullptr;

constexpr Layout kLayouts[] = {Layout::last, Layout::planes, Layout::last_slice, Layout::planes_slice};

struct Case {
  int64_t n, c, h, w;
  float mean;
};

std::vector<float> norm_case(const Case& k, DType dtype, DType of_weights, Layout in, Layout out, bool affine,
                             const Executor& executor) {
  LayerNormArgs a;
  a.n = k.n, a.c = k.c, a.h = k.h, a.w = k.w, a.dtype = dtype, a.weight_dtype = of_weights;
  const size_t taken = lay_out(in, k.n, k.c, k.h, k.w, a.x_stride),
               given = lay_out(out, k.n, k.c, k.h, k.w, a.y_stride);
  test::Elements<std::vector<char>> x(dtype, taken), y(dtype, given);
  test::Elements<std::vector<char>> weight(of_weights, static_cast<size_t>(k.c)), bias(of_weights, weight.size());
  const auto numbers = test::normal(taken, 1), w = test::normal(weight.size(), 2), b = test::normal(weight.size(), 3);
  for (size_t i = 0; i < taken; ++i) x.set(i, k.mean + numbers[i]);
  for (size_t i = 0; i < given; ++i) y.set(i, 7);
  for (size_t i = 0; i < weight.size(); ++i) weight.set(i, w[i]), bias.set(i, b[i]);
  a.x = x.data(), a.y = y.data();
  if (affine) a.weight = weight.data(), a.bias = bias.data();
  LayerNormPlan plan;
  EXPECT(make_plan(a, &plan), "plan");
  if (wide) plan.kernels = wide;
  run(plan, executor);

  std::vector<bool> ours(given);
  int64_t wrong = 0;
  for (int64_t n = 0; n < k.n; ++n) {
    for (int64_t h = 0; h < k.h; ++h) {
      for (int64_t w = 0; w < k.w; ++w) {
        const auto at = [&](const int64_t (&stride)[4], int64_t c) { return place(stride, n, c, h, w); };
        double mean = 0, squares = 0;
        for (int64_t c = 0; c < k.c; ++c) mean += static_cast<double>(x[at(a.x_stride, c)]);
        mean /= static_cast<double>(k.c);
        for (int64_t c = 0; c < k.c; ++c) squares += std::pow(static_cast<double>(x[at(a.x_stride, c)]) - mean, 2);
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(k.c) + a.eps);
        for (int64_t c = 0; c < k.c; ++c) {
          const double by = affine ? static_cast<double>(weight[static_cast<size_t>(c)]) : 1;
          const double shift = affine ? static_cast<double>(bias[static_cast<size_t>(c)]) : 0;
          const double normal = (static_cast<double>(x[at(a.x_stride, c)]) - mean) * inverse;
          const size_t i = at(a.y_stride, c);
          ours[i] = true;
          // A few roundings of float32, of the deviations too, whose mean is 0; bfloat16's own of the result.
          const double result = normal * by + shift, size = std::fabs(normal * by) + std::fabs(by) + std::fabs(shift);
          const double bound = 0x1p-24 * 8 * size + (dtype == DType::bf16 ? 0x1p-8 * std::fabs(result) : 0) + 1e-30;
          wrong += !(std::fabs(static_cast<double>(y[i]) - result) <= bound);
        }
      }
    }
  }
  for (size_t i = 0; i < given; ++i) wrong += !ours[i] && y[i] != 7;
  EXPECT(wrong == 0, "%ld wrong: dtypes %d %d layouts %d %d, n%ld c%ld %ldx%ld mean %g", wrong, static_cast<int>(dtype),
         static_cast<int>(of_weights), static_cast<int>(in), static_cast<int>(out), k.n, k.c, k.h, k.w, double(k.mean));
  return y.floats();
}

const Case kCases[] = {{1, 96, 7, 9, 0}, {2, 37, 5, 13, 1000}, {3, 1, 3, 5, 0},   {2, 5, 1, 1, 10}, {1, 300, 1, 7, 0},
                       {2, 16, 4, 1, 0}, {1, 5000, 2, 1, 100}, {1, 8, 11, 12, 0}, {0, 8, 4, 4, 0},  {2, 0, 4, 4, 0}};

void all_cases() {
  for (const Case& k : kCases) {
    for (const Layout in : kLayouts) {
      for (const Layout out : kLayouts) {
        if (by_channels(in) != by_channels(out)) continue;
        for (const bool affine : {false, true}) {
          norm_case(k, DType::f32, DType::f32, in, out, affine, serial_executor());
          if (k.mean != 0) continue;
          norm_case(k, DType::bf16, DType::f32, in, out, affine, serial_executor());
          norm_case(k, DType::bf16, DType::bf16, in, out, affine, serial_executor());
        }
      }
    }
  }
}

// Ranges that begin and end anywhere give the same bits as one.
void threads_case() {
  const Case k = {2, 40, 30, 31, 3};
  for (const Layout layout : {Layout::last, Layout::planes}) {
    const auto one = norm_case(k, DType::f32, DType::f32, layout, layout, true, serial_executor());
    EXPECT(norm_case(k, DType::f32, DType::f32, layout, layout, true, test::thread_executor(3)) == one, "bits");
  }
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    LayerNormArgs a;
    a.n = 1, a.c = 4, a.h = 2, a.w = 3;
    lay_out(Layout::last, a.n, a.c, a.h, a.w, a.x_stride);
    lay_out(Layout::last, a.n, a.c, a.h, a.w, a.y_stride);
    change(a);
    LayerNormPlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](LayerNormArgs& a) { a.dtype = DType::i8; }, "x:");
  refused([](LayerNormArgs& a) { a.weight_dtype = DType::bf16; }, "weight:");
  refused([](LayerNormArgs& a) { a.c = -1; }, "x:");
  refused([](LayerNormArgs& a) { a.eps = -1; }, "eps:");
  refused([](LayerNormArgs& a) { a.n = a.h = int64_t{1} << 40; }, "too large");
  refused([](LayerNormArgs& a) { a.x_stride[2] = 13; }, "pixels at equal distances");
  refused([](LayerNormArgs& a) { a.y_stride[1] = 6, a.y_stride[2] = 3, a.y_stride[3] = 1; }, "alike");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (test::is_int8_only(isa)) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    all_cases();
    threads_case();
  }
  EXPECT(force_isa(nullptr), "back");
  refusals();
  if (test::is_quick()) return test::finish();
  wide = &wide512::layer_norm_kernels;
  all_cases();
  return test::finish();
}
