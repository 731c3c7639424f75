// The shuffles against their formulas, element by element: every ISA of the host, and wide512 as plain code.
#include "pykernels/shuffle.h"

#include <cstring>

#include "cpu/shuffle/kernels.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const ShuffleKernels shuffle_kernels;
}  // namespace pk::wide512

using namespace pk;
using test::by_channels, test::lay_out, test::Layout, test::place;

namespace {

// Runs on this table, or on that of the ISA in force.
const ShuffleKernels* wide = nullptr;

constexpr Layout kLayouts[] = {Layout::last,         Layout::planes,       Layout::last_slice,
                               Layout::planes_slice, Layout::last_columns, Layout::planes_columns};

struct Sizes {
  int64_t n, c, h, w;
};

// Of x that element (c, h, w) of y is.
Sizes source_of(ShuffleKind kind, int64_t channels, int64_t k, const Sizes& y) {
  switch (kind) {
    case ShuffleKind::channels:
      return {y.n, y.c % k * (channels / k) + y.c / k, y.h, y.w};
    case ShuffleKind::up:
      return {y.n, (y.c * k + y.h % k) * k + y.w % k, y.h / k, y.w / k};
    case ShuffleKind::down:
      return {y.n, y.c / (k * k), y.h * k + y.c / k % k, y.w * k + y.c % k};
  }
  return {};
}

template <class T>
void shuffle_case(ShuffleKind kind, const Sizes& x, int64_t k, int64_t pieces, Layout in, Layout out,
                  const Executor& executor) {
  ShuffleArgs a;
  a.kind = kind, a.n = x.n, a.c = x.c, a.h = x.h, a.w = x.w, a.k = k, a.pieces = pieces, a.element_bytes = sizeof(T);
  Sizes to = x;
  if (kind == ShuffleKind::up) to = {x.n, x.c / (k * k), x.h * k, x.w * k};
  if (kind == ShuffleKind::down) to = {x.n, x.c * k * k, x.h / k, x.w / k};
  const int64_t each = x.c / pieces;
  std::vector<std::vector<T>> given(static_cast<size_t>(pieces));
  for (size_t p = 0; p < given.size(); ++p) {
    given[p].resize(lay_out(in, x.n, each, x.h, x.w, a.x_stride[p]));
    for (size_t i = 0; i < given[p].size(); ++i) given[p][i] = static_cast<T>(i * 31 + p * 7919 + 1);
    a.x[p] = given[p].data();
  }
  const T untouched = static_cast<T>(-1);
  std::vector<T> y(lay_out(out, to.n, to.c, to.h, to.w, a.y_stride), untouched), expected = y;
  a.y = y.data();
  ShufflePlan plan;
  EXPECT(make_plan(a, &plan), "plan");
  if (wide) plan.kernels = wide;
  run(plan, executor);
  for (int64_t n = 0; n < to.n; ++n) {
    for (int64_t c = 0; c < to.c; ++c) {
      for (int64_t h = 0; h < to.h; ++h) {
        for (int64_t w = 0; w < to.w; ++w) {
          const Sizes s = source_of(kind, x.c, k, {n, c, h, w});
          const auto p = static_cast<size_t>(s.c / each);
          expected[place(a.y_stride, n, c, h, w)] = given[p][place(a.x_stride[p], s.n, s.c % each, s.h, s.w)];
        }
      }
    }
  }
  EXPECT(y == expected, "kind %d k%ld pieces %ld bytes %zu layouts %d %d, n%ld c%ld %ldx%ld", static_cast<int>(kind), k,
         pieces, sizeof(T), static_cast<int>(in), static_cast<int>(out), x.n, x.c, x.h, x.w);
}

template <class T>
void cases() {
  for (const Layout in : kLayouts) {
    for (const Layout out : kLayouts) {
      if (by_channels(in) != by_channels(out)) continue;
      for (const int64_t k : {1, 2, 3, 4, 5, 8}) {
        for (const Executor& executor : {serial_executor(), test::thread_executor(3)}) {
          shuffle_case<T>(ShuffleKind::channels, {2, 37 * k, 3, 5}, k, 1, in, out, executor);
          shuffle_case<T>(ShuffleKind::channels, {2, 37 * k, 3, 5}, k, k, in, out, executor);
          shuffle_case<T>(ShuffleKind::up, {2, 5 * k * k, 3, 37}, k, 1, in, out, executor);
          shuffle_case<T>(ShuffleKind::down, {2, 5, 2 * k, 37 * k}, k, 1, in, out, executor);
        }
        shuffle_case<T>(ShuffleKind::up, {1, 70 * k * k, 1, 2}, k, 1, in, out, serial_executor());
        shuffle_case<T>(ShuffleKind::down, {1, 70, k, 2 * k}, k, 1, in, out, serial_executor());
      }
      shuffle_case<T>(ShuffleKind::channels, {1, 128, 2, 2}, 64, 64, in, out, serial_executor());
      shuffle_case<T>(ShuffleKind::channels, {0, 4, 2, 2}, 2, 1, in, out, serial_executor());
      shuffle_case<T>(ShuffleKind::channels, {1, 2, 1, 1}, 2, 2, in, out, serial_executor());
    }
  }
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    ShuffleArgs a;
    a.n = 1, a.c = 8, a.h = 4, a.w = 6, a.k = 2;
    lay_out(Layout::last, 1, 8, 4, 6, a.x_stride[0]);
    lay_out(Layout::last, 1, 8, 4, 6, a.y_stride);
    change(a);
    ShufflePlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](ShuffleArgs& a) { a.kind = static_cast<ShuffleKind>(3); }, "kind");
  refused([](ShuffleArgs& a) { a.element_bytes = 8; }, "elements");
  refused([](ShuffleArgs& a) { a.n = -1; }, "negative");
  refused([](ShuffleArgs& a) { a.n = a.c = a.h = a.w = int64_t{1} << 30; }, "too large");
  refused([](ShuffleArgs& a) { a.k = 0; }, "k:");
  refused([](ShuffleArgs& a) { a.k = 65; }, "k:");
  refused([](ShuffleArgs& a) { a.k = 3; }, "groups divide");
  refused([](ShuffleArgs& a) { a.kind = ShuffleKind::up, a.k = 9; }, "k:");
  refused([](ShuffleArgs& a) { a.kind = ShuffleKind::up, a.k = 3; }, "square");
  refused([](ShuffleArgs& a) { a.kind = ShuffleKind::down, a.k = 3; }, "H and W");
  refused([](ShuffleArgs& a) { a.pieces = 3; }, "one for each group");
  refused([](ShuffleArgs& a) { a.y_stride[1] = 24, a.y_stride[2] = 6, a.y_stride[3] = 1; }, "alike");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (test::is_int8_only(isa)) continue;
    EXPECT(force_isa(isa_name(isa)), "force");
    cases<uint32_t>();
    cases<uint16_t>();
    cases<uint8_t>();
  }
  EXPECT(force_isa(nullptr), "back");
  refusals();
  if (test::is_quick()) return test::finish();
  wide = &wide512::shuffle_kernels;
  cases<uint32_t>();
  cases<uint16_t>();
  cases<uint8_t>();
  return test::finish();
}
