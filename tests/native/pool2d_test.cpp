// The pools against plain loops in double: every ISA of the host, and wide512 as plain code.
#include "pykernels/pool2d.h"

#include <cmath>
#include <limits>

#include "cpu/pool2d/kernels.h"
#include "elements.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const Pool2dKernels pool2d_kernels;
}

using namespace pk;
using test::lay_out, test::Layout, test::place;

namespace {

// Runs on this table, or on that of the ISA in force.
const Pool2dKernels* wide = nullptr;

constexpr Layout kLayouts[] = {Layout::last, Layout::planes, Layout::last_slice, Layout::planes_columns, Layout::apart};

struct Case {
  int64_t n, c, h, w, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool ceil_mode;
};

double expected(const Pool2dArgs& a, const test::Elements<std::vector<char>>& x, int64_t n, int64_t c, int64_t p,
                int64_t q) {
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  int64_t inside = 0, counted = 0;
  for (int64_t u = 0; u < a.r; ++u) {
    for (int64_t v = 0; v < a.s; ++v) {
      const int64_t i = p * a.stride_h - a.pad_h + u * a.dilation_h, j = q * a.stride_w - a.pad_w + v * a.dilation_w;
      counted += i < a.h + a.pad_h && j < a.w + a.pad_w;
      if (i < 0 || i >= a.h || j < 0 || j >= a.w) continue;
      ++inside;
      const double e = x[place(a.x_stride, n, c, i, j)];
      if (std::isnan(e) || e > most) most = std::isnan(most) ? most : e;
      sum += e - a.zero_point;
    }
  }
  if (a.kind == PoolKind::max) return most;
  if (inside == 0) return 0;
  return sum / static_cast<double>(a.divisor ? a.divisor : a.count_include_pad ? counted : inside);
}

// Of int8, to the bit.
double expected_int8(const Pool2dArgs& a, double average) {
  if (a.kind == PoolKind::max) return std::fmax(average, -128.0);  // of nothing
  if (a.scale != 0.0f) return static_cast<float>(average) * a.scale;
  return std::fmin(std::fmax(std::nearbyint(static_cast<float>(average)) + a.zero_point, -128.0), 127.0);
}

void pool_case(const Case& k, PoolKind kind, DType dtype, Layout in, Layout out, bool include_pad, int64_t divisor,
               bool nans, const Executor& executor) {
  Pool2dArgs a;
  a.kind = kind, a.dtype = dtype, a.n = k.n, a.c = k.c, a.h = k.h, a.w = k.w, a.r = k.r, a.s = k.s;
  a.stride_h = k.stride_h, a.stride_w = k.stride_w, a.pad_h = k.pad_h, a.pad_w = k.pad_w;
  if (kind == PoolKind::max) a.dilation_h = k.dilation_h, a.dilation_w = k.dilation_w;
  a.ceil_mode = k.ceil_mode, a.count_include_pad = include_pad, a.divisor = divisor;
  const bool int8 = dtype == DType::i8, floats = int8 && kind == PoolKind::average && !include_pad;
  if (int8 && kind == PoolKind::average) a.zero_point = 19, a.scale = floats ? 0.37f : 0.0f;
  const float deviation = int8 ? 60.0f : 1.0f;
  test::Elements<std::vector<char>> x(dtype, test::normal(lay_out(in, k.n, k.c, k.h, k.w, a.x_stride), 1, deviation));
  if (nans) {
    for (size_t i = 3; i < x.size(); i += 17) x.set(i, i % 2 ? NAN : -INFINITY);
  }
  a.x = x.data();
  Pool2dPlan plan;
  const Status status = make_plan(a, &plan);
  if (kind == PoolKind::average && k.dilation_h * k.dilation_w > 1 && !status) return;  // padding for the wider window
  EXPECT(status, "%s", status.error);
  if (!status) return;
  const size_t size = lay_out(out, k.n, k.c, plan.p, plan.q, plan.args.y_stride);
  test::Elements<std::vector<char>> y(floats ? DType::f32 : dtype, std::vector<float>(size, 77.0f));
  plan.args.y = y.data();
  if (wide) plan.kernels = wide;
  run(plan, executor);
  // A divisor that is not the number of elements makes the rounding of the sum larger.
  const double size_of_error = divisor ? 0.1 * static_cast<double>(k.r * k.s) / std::fabs(divisor) : 0.1;
  int64_t wrong = 0;
  std::vector<bool> written(size);
  for (int64_t n = 0; n < k.n; ++n) {
    for (int64_t c = 0; c < k.c; ++c) {
      for (int64_t p = 0; p < plan.p; ++p) {
        for (int64_t q = 0; q < plan.q; ++q) {
          const size_t at = place(plan.args.y_stride, n, c, p, q);
          written[at] = true;
          const double real = expected(a, x, n, c, p, q), e = int8 ? expected_int8(a, real) : real, got = y[at];
          const double slack = kind == PoolKind::max || int8 ? 0 : dtype == DType::f32 ? 2e-6 : 1.0 / 128;
          if (std::isnan(e) ? !std::isnan(got)
                            : !(got == e || std::fabs(got - e) <= slack * (std::fabs(e) + size_of_error)))
            ++wrong;
        }
      }
    }
  }
  for (size_t i = 0; i < size; ++i) wrong += !written[i] && y[i] != 77.0f;
  EXPECT(wrong == 0, "%ld wrong: kind %d dtype %d layouts %d %d, n%ld c%ld %ldx%ld window %ldx%ld", wrong,
         static_cast<int>(kind), static_cast<int>(dtype), static_cast<int>(in), static_cast<int>(out), k.n, k.c, k.h,
         k.w, k.r, k.s);
}

void cases() {
  const Case shapes[] = {{2, 19, 9, 11, 3, 3, 2, 2, 1, 1, 1, 1, false},    {1, 72, 8, 8, 2, 2, 2, 2, 0, 0, 1, 1, false},
                         {1, 5, 7, 40, 3, 3, 1, 1, 1, 1, 1, 1, false},     {1, 8, 7, 9, 2, 3, 3, 2, 1, 0, 1, 1, true},
                         {3, 1, 5, 6, 2, 2, 2, 2, 0, 0, 1, 1, true},       {1, 33, 6, 5, 5, 5, 1, 1, 2, 2, 1, 1, false},
                         {1, 4, 10, 9, 3, 2, 1, 1, 1, 1, 2, 3, false},     {1, 6, 5, 37, 1, 5, 1, 4, 0, 2, 1, 1, true},
                         {1, 3, 2, 2300, 2, 3, 2, 2, 0, 1, 1, 1, true},    {2, 70, 7, 7, 7, 7, 1, 1, 0, 0, 1, 1, false},
                         {1, 131, 13, 1, 13, 1, 1, 1, 0, 0, 1, 1, false},  {1, 2, 2, 3, 1, 2, 3, 5, 0, 1, 1, 1, true},
                         {1, 2, 1, 1500, 1, 700, 1, 1, 0, 0, 1, 1, false}, {0, 3, 4, 4, 2, 2, 2, 2, 0, 0, 1, 1, false},
                         {2, 0, 4, 4, 2, 2, 2, 2, 0, 0, 1, 1, false},      {1, 9, 1, 4, 2, 2, 1, 1, 1, 1, 2, 2, false}};
  for (const Case& k : shapes) {
    for (const PoolKind kind : {PoolKind::max, PoolKind::average}) {
      for (const Layout in : kLayouts) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
          pool_case(k, kind, dtype, in, in, true, 0, false, serial_executor());
          pool_case(k, kind, dtype, in, in, false, 0, true, test::thread_executor(3));
        }
        pool_case(k, kind, DType::i8, in, in, true, 0, false, test::thread_executor(3));
        pool_case(k, kind, DType::i8, in, in, false, 0, false, test::thread_executor(2));
        pool_case(k, kind, DType::i8, in, in, true, -3, false, serial_executor());
        pool_case(k, kind, DType::f32, in, in, false, -3, false, serial_executor());
        for (const Layout out : kLayouts) {
          pool_case(k, kind, DType::f32, in, out, true, 0, false, serial_executor());
          pool_case(k, kind, DType::i8, in, out, true, 0, false, serial_executor());
        }
      }
    }
  }
}

// A map of many elements: the error of a mean doesn't grow with it.
void large_mean() {
  const int64_t c = 24, side = 256;
  std::vector<float> x = test::normal(static_cast<size_t>(c * side * side), 5), y(static_cast<size_t>(c));
  for (float& v : x) v = std::fabs(v);
  for (const bool last : {true, false}) {
    Pool2dArgs a;
    a.kind = PoolKind::average, a.n = 1, a.c = c, a.h = a.w = a.r = a.s = side, a.x = x.data();
    lay_out(last ? Layout::last : Layout::planes, 1, c, side, side, a.x_stride);
    Pool2dPlan plan;
    const Status status = make_plan(a, &plan);
    EXPECT(status, "%s", status.error);
    if (wide) plan.kernels = wide;
    plan.args.y = y.data(), plan.args.y_stride[1] = 1;
    run(plan, serial_executor());
    for (int64_t i = 0; i < c; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < side * side; ++j) sum += x[static_cast<size_t>(i * a.x_stride[1] + j * (last ? c : 1))];
      const double error = y[static_cast<size_t>(i)] * double(side * side) / sum - 1;
      EXPECT(std::fabs(error) < 1e-6, "relative error %g of a mean", error);
    }
  }
}

// Sums of int8 that 16 bits don't hold.
void extreme_sums() {
  const int64_t c = 70, h = 23, w = 41;
  for (const int8_t value : {int8_t{-128}, int8_t{127}}) {
    const std::vector<int8_t> x(static_cast<size_t>(c * h * w), value);
    for (const Layout layout : {Layout::last, Layout::planes}) {
      for (const int64_t margin : {0, 1}) {  // one window, or four
        Pool2dArgs a;
        a.kind = PoolKind::average, a.dtype = DType::i8, a.n = 1, a.c = c, a.h = h, a.w = w, a.x = x.data();
        a.r = h - margin, a.s = w - margin;
        lay_out(layout, 1, c, h, w, a.x_stride);
        Pool2dPlan plan;
        const Status status = make_plan(a, &plan);
        EXPECT(status, "%s", status.error);
        if (wide) plan.kernels = wide;
        std::vector<int8_t> y(lay_out(layout, 1, c, plan.p, plan.q, plan.args.y_stride) - 1);
        plan.args.y = y.data();
        run(plan, serial_executor());
        EXPECT(y == std::vector<int8_t>(y.size(), value), "value %d layout %d", value, static_cast<int>(layout));
      }
    }
  }
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    Pool2dArgs a;
    a.n = 1, a.c = 2, a.h = a.w = 4, a.r = a.s = 2;
    change(a);
    Pool2dPlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](Pool2dArgs& a) { a.kind = static_cast<PoolKind>(2); }, "kind");
  refused([](Pool2dArgs& a) { a.dtype = DType::i32; }, "x:");
  refused([](Pool2dArgs& a) { a.zero_point = 3; }, "zero_point");
  refused([](Pool2dArgs& a) { a.dtype = DType::i8, a.kind = PoolKind::average, a.zero_point = 128; }, "zero_point");
  refused([](Pool2dArgs& a) { a.dtype = DType::i8, a.scale = 1; }, "scale");
  refused([](Pool2dArgs& a) { a.kind = PoolKind::average, a.scale = 1; }, "scale");
  refused([](Pool2dArgs& a) { a.dtype = DType::i8, a.kind = PoolKind::average, a.r = a.s = 4096, a.h = a.w = 8192; },
          "2^23");
  refused([](Pool2dArgs& a) { a.h = 0; }, "H and W");
  refused([](Pool2dArgs& a) { a.n = -1; }, "n and c");
  refused([](Pool2dArgs& a) { a.r = 0; }, "kernel_size");
  refused([](Pool2dArgs& a) { a.r = 5; }, "no smaller than the window");
  refused([](Pool2dArgs& a) { a.stride_w = 0; }, "stride");
  refused([](Pool2dArgs& a) { a.dilation_w = 0; }, "dilation");
  refused([](Pool2dArgs& a) { a.kind = PoolKind::average, a.dilation_w = 2; }, "dilation");
  refused([](Pool2dArgs& a) { a.pad_h = 2; }, "padding");
  refused([](Pool2dArgs& a) { a.pad_w = -1; }, "padding");
  refused([](Pool2dArgs& a) { a.divisor = int64_t{1} << 40; }, "divisor");
  refused([](Pool2dArgs& a) { a.n = a.c = a.h = a.w = int64_t{1} << 30; }, "too large");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (test::is_int8_only(isa)) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    cases();
    large_mean();
    extreme_sums();
  }
  EXPECT(force_isa(nullptr), "back");
  refusals();
  if (test::is_quick()) return test::finish();
  wide = &wide512::pool2d_kernels;
  cases();
  large_mean();
  extreme_sums();
  return test::finish();
}
