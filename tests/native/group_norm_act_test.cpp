// Group norm + residual + activation against plain loops in double: every ISA of the host, and wide512 as plain code.
#include "pykernels/group_norm_act.h"

#include <cmath>

#include "cpu/batch_norm_act/kernels.h"
#include "cpu/group_norm_act/kernels.h"
#include "elements.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const GroupNormActKernels group_norm_act_kernels;
extern const BatchNormActKernels batch_norm_act_kernels;
}  // namespace pk::wide512

using namespace pk;
using test::lay_out, test::Layout, test::place;

namespace {

// Runs on this table, or on that of the ISA in force.
const GroupNormActKernels* wide = nullptr;

constexpr Layout kLayouts[] = {Layout::last, Layout::planes, Layout::last_slice, Layout::planes_slice};

struct Case {
  int64_t n, c, h, w, groups;
  float mean;
};

void norm_case(const Case& k, DType dtype, Layout in, Layout out, bool affine, bool residual,
               const Executor& executor) {
  GroupNormActArgs a;
  a.n = k.n, a.c = k.c, a.h = k.h, a.w = k.w, a.groups = k.groups, a.dtype = dtype;
  a.activation = residual ? Activation::leaky_relu : Activation::none;
  a.negative_slope = 0.2f;
  std::vector<float> values = test::normal(lay_out(in, k.n, k.c, k.h, k.w, a.x.stride), 1);
  for (float& v : values) v += k.mean;
  test::Elements<std::vector<char>> x(dtype, values);
  const size_t size = lay_out(out, k.n, k.c, k.h, k.w, a.y_stride);
  test::Elements<std::vector<char>> added(dtype, test::normal(size, 2)), y(dtype, std::vector<float>(size, 77.0f));
  const auto c = static_cast<size_t>(k.c);
  const std::vector<float> weight = test::normal(c, 3), bias = test::normal(c, 4);
  a.x.data = x.data(), a.y = y.data();
  if (affine) a.weight = weight.data(), a.bias = bias.data();
  if (residual) {
    a.residual.data = added.data();
    std::memcpy(a.residual.stride, a.y_stride, sizeof a.y_stride);
  }
  GroupNormActPlan plan;
  const Status status = make_plan(a, &plan);
  EXPECT(status, "%s", status.error);
  if (!status) return;
  if (wide) plan.kernels = wide, plan.apply.kernels = &wide512::batch_norm_act_kernels;
  std::vector<float> workspace(plan.workspace_bytes / 4);
  run(plan, workspace.data(), executor);
  int64_t wrong = 0;
  std::vector<bool> written(size);
  const int64_t channels = k.c / k.groups;
  for (int64_t n = 0; n < k.n; ++n) {
    for (int64_t group = 0; group < k.groups; ++group) {
      const auto each = [&](auto body) {
        for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
          for (int64_t h = 0; h < k.h; ++h) {
            for (int64_t w = 0; w < k.w; ++w) {
              body(size_t(c), double(x[place(a.x.stride, n, c, h, w)]), place(a.y_stride, n, c, h, w));
            }
          }
        }
      };
      double sum = 0, squares = 0;
      const auto count = double(channels * k.h * k.w);
      each([&](size_t, double v, size_t) { sum += v; });
      const double mean = sum / count;
      each([&](size_t, double v, size_t) { squares += (v - mean) * (v - mean); });
      const double inverse = 1 / std::sqrt(squares / count + a.eps);
      each([&](size_t c, double v, size_t at) {
        written[at] = true;
        const double by = inverse * (affine ? double(weight[c]) : 1), plus = affine ? double(bias[c]) : 0;
        double e = (v - mean) * by + plus + (residual ? double(added[at]) : 0);
        if (residual && e < 0) e *= double(0.2f);
        // Roundings of scale, shift and the sum; what the variance is off by; what is stored.
        const double size_of_parts = std::fabs(v * by) + std::fabs(mean * by) + std::fabs(plus) + 3;
        const double slack = 0x1p-23 * size_of_parts + 4e-6 * std::fabs((v - mean) * by);
        wrong += !(std::fabs(y[at] - e) <= slack + (dtype == DType::f32 ? 0 : std::fabs(e) * 0x1p-8));
      });
    }
  }
  for (size_t i = 0; i < size; ++i) wrong += !written[i] && y[i] != 77.0f;
  EXPECT(wrong == 0, "%ld wrong: dtype %d layouts %d %d, n%ld c%ld %ldx%ld groups %ld mean %g", wrong,
         static_cast<int>(dtype), static_cast<int>(in), static_cast<int>(out), k.n, k.c, k.h, k.w, k.groups,
         double(k.mean));
}

void cases() {
  const Case shapes[] = {{2, 24, 5, 7, 4, 0}, {1, 64, 9, 8, 32, 0.5f}, {3, 6, 6, 11, 6, 0},     {1, 72, 40, 41, 8, 3},
                         {2, 5, 3, 3, 1, 0},  {1, 33, 17, 1, 3, 1},    {1, 8, 1, 19, 2, 0},     {2, 16, 1, 1, 4, 0},
                         {4, 1, 9, 9, 1, 0},  {1, 12, 33, 32, 3, 1e3}, {1, 20, 64, 64, 20, 50}, {0, 8, 4, 4, 2, 0},
                         {2, 0, 4, 4, 1, 0},  {1, 8, 0, 4, 2, 0},      {1, 4, 185, 181, 2, 2}};
  for (const Case& k : shapes) {
    for (const Layout in : kLayouts) {
      for (const Layout out : kLayouts) {
        norm_case(k, DType::f32, in, out, true, true, serial_executor());
        norm_case(k, DType::f32, in, out, false, false, test::thread_executor(3));
      }
      if (k.mean < 10) norm_case(k, DType::bf16, in, in, true, false, serial_executor());
    }
  }
}

// The second pass is planned once, with the call: what runs later is what was chosen then.
void second_pass_is_planned() {
  static int64_t calls;
  static const BatchNormActKernels counting = {
      [](const BatchNormActArgs& b, const Executor&) { calls += b.x->data && b.scale && b.shift && b.y; }};
  for (const Layout layout : {Layout::planes, Layout::last}) {
    GroupNormActArgs a;
    a.n = 2, a.c = 6, a.h = a.w = 3, a.groups = 3;
    const std::vector<float> x(lay_out(layout, a.n, a.c, a.h, a.w, a.x.stride));
    std::vector<float> y(lay_out(layout, a.n, a.c, a.h, a.w, a.y_stride));
    a.x.data = x.data(), a.y = y.data();
    GroupNormActPlan plan;
    EXPECT(make_plan(a, &plan), "plan");
    plan.apply.kernels = &counting;
    std::vector<float> workspace(plan.workspace_bytes / 4);
    calls = 0;
    run(plan, workspace.data(), serial_executor());
    EXPECT(calls == (layout == Layout::planes ? 6 : 2), "%ld calls", calls);
  }
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    GroupNormActArgs a;
    a.n = 1, a.c = 4, a.h = a.w = 4, a.groups = 2;
    lay_out(Layout::planes, a.n, a.c, a.h, a.w, a.x.stride);
    change(a);
    GroupNormActPlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](GroupNormActArgs& a) { a.dtype = DType::i8; }, "x:");
  refused([](GroupNormActArgs& a) { a.groups = 3; }, "groups");
  refused([](GroupNormActArgs& a) { a.groups = 0; }, "groups");
  refused([](GroupNormActArgs& a) { a.eps = -1; }, "eps");
  refused([](GroupNormActArgs& a) { a.n = -1; }, "x:");
  refused([](GroupNormActArgs& a) { a.activation = static_cast<Activation>(99); }, "activation");
  refused([](GroupNormActArgs& a) { a.x.stride[3] = 2; }, "pixels at equal distances");
  refused([](GroupNormActArgs& a) { a.x.stride[2] = 5; }, "pixels at equal distances");
  refused([](GroupNormActArgs& a) { a.n = a.c = a.h = a.w = int64_t{1} << 30; }, "too large");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (test::is_int8_only(isa)) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    cases();
  }
  EXPECT(force_isa(nullptr), "back");
  second_pass_is_planned();
  refusals();
  if (test::is_quick()) return test::finish();
  wide = &wide512::group_norm_act_kernels;
  cases();
  return test::finish();
}
