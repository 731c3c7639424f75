// Squeeze-and-excitation against plain loops in double: every ISA of the host, and wide512 as plain code.
#include "pykernels/squeeze_excite.h"

#include <cmath>
#include <cstring>

#include "activated.h"
#include "cpu/squeeze_excite/kernels.h"
#include "elements.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const SqueezeExciteKernels squeeze_excite_kernels;
}

using namespace pk;
using test::lay_out, test::Layout, test::place;

namespace {

using Elements = test::Elements<std::vector<char>>;

// Runs on this table, or on that of the ISA in force.
const SqueezeExciteKernels* wide = nullptr;

constexpr Layout kLayouts[] = {Layout::last, Layout::planes, Layout::last_slice, Layout::planes_columns, Layout::apart};

struct Case {
  int64_t n, c, m, h, w;
};

void squeeze_case(const Case& k, DType dtype, Layout in, Layout out, Activation activation, Activation gate,
                  bool biases, bool in_place, const Executor& executor) {
  SqueezeExciteArgs a;
  a.dtype = dtype, a.n = k.n, a.c = k.c, a.h = k.h, a.w = k.w, a.m = k.m, a.activation = activation, a.gate = gate;
  const auto size = [](int64_t count) { return static_cast<size_t>(count); };
  const bool int8 = dtype == DType::i8;
  if (int8) a.x_scale = 0.03f, a.x_zero = 5, a.y_inverse = 40.0f, a.y_zero = -7;
  const auto random = [&](size_t count, unsigned seed, float scale) {
    return Elements(int8 ? DType::f32 : dtype, test::normal(count, seed, scale));
  };
  const auto maps = [&](size_t count, unsigned seed) {
    return Elements(dtype, test::normal(count, seed, int8 ? 40.0f : 1.0f));
  };
  const auto real = [&](double x) { return int8 ? (x - a.x_zero) * double(a.x_scale) : x; };
  Elements x = maps(lay_out(in, k.n, k.c, k.h, k.w, a.x_stride), 1), copy = x;
  Elements reduce = random(size(k.m * k.c), 2, 0.5f), expand = random(size(k.c * k.m), 3, 0.5f);
  Elements b1 = random(size(k.m), 4, 1), b2 = random(size(k.c), 5, 1);
  Elements made = maps(lay_out(out, k.n, k.c, k.h, k.w, a.y_stride), 6);
  if (in_place) std::memcpy(a.y_stride, a.x_stride, sizeof a.y_stride);
  Elements& y = in_place ? x : made;
  a.x = x.data(), a.y = y.data(), a.reduce = reduce.data(), a.expand = expand.data();
  if (biases) a.reduce_bias = b1.data(), a.expand_bias = b2.data();
  const Elements before = y;
  SqueezeExcitePlan plan;
  const Status status = make_plan(a, &plan);
  EXPECT(status, "%s", status.error);
  if (wide) plan.kernels = wide;
  std::vector<char> workspace(static_cast<size_t>(plan.workspace_bytes));
  run(plan, workspace.data(), executor);

  test::Doubles got, expected;
  std::vector<char> written(y.size());
  for (int64_t n = 0; n < k.n; ++n) {
    test::Doubles means(size(k.c)), hidden(size(k.m));
    for (int64_t c = 0; c < k.c; ++c) {
      for (int64_t i = 0; i < k.h * k.w; ++i) means[size(c)] += real(copy[place(a.x_stride, n, c, i / k.w, i % k.w)]);
      means[size(c)] /= static_cast<double>(k.h * k.w);
    }
    for (int64_t m = 0; m < k.m; ++m) {
      double sum = biases ? b1[size(m)] : 0;
      for (int64_t c = 0; c < k.c; ++c) sum += double(reduce[size(m * k.c + c)]) * means[size(c)];
      hidden[size(m)] = test::activated(sum, activation, 0.01);
    }
    for (int64_t c = 0; c < k.c; ++c) {
      double sum = biases ? b2[size(c)] : 0;
      for (int64_t m = 0; m < k.m; ++m) sum += double(expand[size(c * k.m + m)]) * hidden[size(m)];
      const double factor = test::activated(sum, gate, 0.01);
      for (int64_t i = 0; i < k.h * k.w; ++i) {
        expected.push_back(factor * real(copy[place(a.x_stride, n, c, i / k.w, i % k.w)]));
        const size_t to = place(a.y_stride, n, c, i / k.w, i % k.w);
        got.push_back(y[to]);
        written[to] = 1;
      }
    }
  }
  if (int8) {  // each as near to its real value as rounding and the gate's error let it be
    double most = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double on_grid = std::fmin(std::fmax(expected[i] * double(a.y_inverse) + a.y_zero, -128.0), 127.0);
      most = std::fmax(most, std::fabs(got[i] - on_grid));
      expected[i] = got[i];
    }
    EXPECT(most < 0.501, "%g off: %ld channels, %ld x %ld", most, static_cast<long>(k.c), static_cast<long>(k.h),
           static_cast<long>(k.w));
  }
  const double error = test::relative_l2(got, expected), bound = dtype == DType::f32 ? 2e-6 : 8e-3;
  EXPECT(error < bound, "%g: %ld images, %ld channels, %ld between, %ld x %ld", error, static_cast<long>(k.n),
         static_cast<long>(k.c), static_cast<long>(k.m), static_cast<long>(k.h), static_cast<long>(k.w));
  bool kept = true;
  for (size_t i = 0; i < written.size(); ++i) kept = kept && (written[i] || y[i] == before[i]);
  EXPECT(kept, "something else was written");
}

void cases() {
  constexpr Case kCases[] = {{2, 40, 9, 5, 7},   {1, 67, 17, 3, 3},   {3, 5, 2, 1, 6}, {1, 1, 1, 4, 1},
                             {2, 130, 33, 1, 1}, {1, 520, 300, 2, 2}, {2, 8, 0, 3, 3}};
  constexpr Activation kGates[] = {Activation::sigmoid, Activation::hardsigmoid};
  constexpr Activation kBetween[] = {Activation::relu, Activation::silu, Activation::hardswish};
  int turn = 0;
  for (const Case& k : kCases) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
      for (const Layout in : kLayouts) {
        const Activation between = kBetween[turn % 3], gate = kGates[turn % 2];
        for (const Layout out : kLayouts) {
          squeeze_case(k, dtype, in, out, between, gate, turn % 4 != 0, false, serial_executor());
          ++turn;
        }
        squeeze_case(k, dtype, in, in, between, gate, true, true, serial_executor());
        squeeze_case(k, dtype, in, in, between, gate, true, false, test::thread_executor(3));
      }
    }
  }
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    SqueezeExciteArgs a;
    a.n = 1, a.c = 4, a.m = 2, a.h = a.w = 4;
    change(a);
    SqueezeExcitePlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](SqueezeExciteArgs& a) { a.dtype = DType::i32; }, "x:");
  refused([](SqueezeExciteArgs& a) { a.dtype = DType::i8, a.y_zero = 128; }, "zero_point");
  refused([](SqueezeExciteArgs& a) { a.dtype = DType::i8, a.h = a.w = 4096; }, "2^23");
  refused([](SqueezeExciteArgs& a) { a.activation = static_cast<Activation>(-1); }, "activation");
  refused([](SqueezeExciteArgs& a) { a.gate = static_cast<Activation>(kActivations); }, "activation");
  refused([](SqueezeExciteArgs& a) { a.h = 0; }, "H and W");
  refused([](SqueezeExciteArgs& a) { a.m = -1; }, "n, c and m");
  refused([](SqueezeExciteArgs& a) { a.n = a.c = a.h = a.w = int64_t{1} << 30; }, "too large");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (test::is_int8_only(isa)) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    cases();
  }
  EXPECT(force_isa(nullptr), "back");
  refusals();
  if (test::is_quick()) return test::finish();
  wide = &wide512::squeeze_excite_kernels;
  cases();
  return test::finish();
}
