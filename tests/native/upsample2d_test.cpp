// Upsampling against plain loops in double: every ISA of the host, and wide512 as plain code.
#include "pykernels/upsample2d.h"

#include <cmath>

#include "cpu/upsample2d/kernels.h"
#include "elements.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const Upsample2dKernels upsample2d_kernels;
}

using namespace pk;
using test::lay_out, test::Layout, test::place;

namespace {

// Runs on this table, or on that of the ISA in force.
const Upsample2dKernels* wide = nullptr;

constexpr Layout kLayouts[] = {Layout::last, Layout::planes, Layout::last_slice, Layout::planes_columns, Layout::apart};

struct Case {
  int64_t n, c, h, w, p, q;
  double scale_h, scale_w;
};

// Where y's pixel i lies in x.
double position(UpsampleMode mode, int64_t i, int64_t in, int64_t out, double scale) {
  const double step = scale > 0 ? 1 / scale : double(in) / double(out), center = (double(i) + 0.5) * step;
  switch (mode) {
    case UpsampleMode::nearest:
      return out == in || out == 2 * in ? double(i * in / out) : std::floor(float(i) * float(step));
    case UpsampleMode::nearest_exact:
      return std::floor(float((double(i) + 0.5) * double(float(step))));
    case UpsampleMode::bilinear:
      return out == in ? double(i) : std::fmax(center - 0.5, 0.0);
    case UpsampleMode::bilinear_corners:
      return out > 1 ? double(i) * double(in - 1) / double(out - 1) : 0.0;
  }
  return 0;
}

void upsample_case(const Case& k, UpsampleMode mode, DType dtype, Layout in, Layout out, const Executor& executor) {
  Upsample2dArgs a;
  a.mode = mode, a.dtype = dtype, a.n = k.n, a.c = k.c, a.h = k.h, a.w = k.w, a.p = k.p, a.q = k.q;
  a.scale_h = k.scale_h, a.scale_w = k.scale_w;
  test::Elements<std::vector<char>> x(
      dtype, test::normal(lay_out(in, k.n, k.c, k.h, k.w, a.x_stride), 1, dtype == DType::i8 ? 60.0f : 1.0f));
  const size_t size = lay_out(out, k.n, k.c, k.p, k.q, a.y_stride);
  test::Elements<std::vector<char>> y(dtype, std::vector<float>(size, 77.0f));
  a.x = x.data(), a.y = y.data();
  Upsample2dPlan plan;
  const Status status = make_plan(a, &plan);
  EXPECT(status, "%s", status.error);
  if (!status) return;
  if (wide) plan.kernels = wide;
  run(plan, executor);
  const bool nearest = mode == UpsampleMode::nearest || mode == UpsampleMode::nearest_exact;
  int64_t wrong = 0;
  std::vector<bool> written(size);
  for (int64_t n = 0; n < k.n; ++n) {
    for (int64_t c = 0; c < k.c; ++c) {
      const auto pixel = [&](double row, double column) {
        const int64_t i = std::min(int64_t(row), k.h - 1), j = std::min(int64_t(column), k.w - 1);
        return double(x[place(a.x_stride, n, c, i, j)]);
      };
      for (int64_t p = 0; p < k.p; ++p) {
        for (int64_t q = 0; q < k.q; ++q) {
          const double row = position(mode, p, k.h, k.p, k.scale_h), column = position(mode, q, k.w, k.q, k.scale_w);
          const double i = std::floor(row), j = std::floor(column), u = nearest ? 0 : row - i,
                       v = nearest ? 0 : column - j;
          const double parts[] = {pixel(i, j) * (1 - u) * (1 - v), pixel(i, j + 1) * (1 - u) * v,
                                  pixel(i + 1, j) * u * (1 - v), pixel(i + 1, j + 1) * u * v};
          double sum = 0, size_of_parts = 0;
          for (const double part : parts) sum += part, size_of_parts += std::fabs(part);
          const size_t at = place(a.y_stride, n, c, p, q);
          written[at] = true;
          // Two roundings of weights, one of their product, and at most four of the sum; and of what is stored.
          const double stored = dtype == DType::f32 ? 0 : dtype == DType::i8 ? 0.5 : std::fabs(sum) * 0x1p-8;
          const double slack = size_of_parts * 8 * 0x1p-24 + stored;
          wrong += !(std::fabs(y[at] - sum) <= (nearest ? 0 : slack));
        }
      }
    }
  }
  for (size_t i = 0; i < size; ++i) wrong += !written[i] && y[i] != 77.0f;
  EXPECT(wrong == 0, "%ld wrong: mode %d dtype %d layouts %d %d, n%ld c%ld %ldx%ld to %ldx%ld", wrong,
         static_cast<int>(mode), static_cast<int>(dtype), static_cast<int>(in), static_cast<int>(out), k.n, k.c, k.h,
         k.w, k.p, k.q);
}

void cases() {
  const Case shapes[] = {{2, 19, 5, 7, 10, 14, 0, 0}, {1, 72, 4, 4, 8, 8, 2, 2},     {1, 5, 3, 9, 12, 36, 4, 4},
                         {1, 8, 7, 9, 10, 13, 0, 0},  {3, 1, 5, 6, 7, 9, 1.5, 1.6},  {1, 33, 6, 5, 6, 5, 0, 0},
                         {1, 4, 10, 9, 4, 3, 0, 0},   {1, 3, 2, 400, 3, 1300, 0, 0}, {2, 12, 1, 1, 6, 5, 0, 0},
                         {1, 9, 4, 5, 1, 1, 0, 0},    {0, 3, 4, 4, 2, 2, 0, 0},      {2, 0, 4, 4, 2, 2, 0, 0},
                         {1, 6, 9, 7, 27, 15, 3, 2.2}};
  for (const Case& k : shapes) {
    for (int32_t mode = 0; mode < kUpsampleModes; ++mode) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
        for (const Layout in : kLayouts) {
          for (const Layout out : kLayouts) {
            upsample_case(k, static_cast<UpsampleMode>(mode), dtype, in, out, serial_executor());
          }
          upsample_case(k, static_cast<UpsampleMode>(mode), dtype, in, in, test::thread_executor(3));
        }
      }
    }
  }
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    Upsample2dArgs a;
    a.n = 1, a.c = 2, a.h = a.w = 4, a.p = a.q = 8;
    change(a);
    Upsample2dPlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](Upsample2dArgs& a) { a.mode = static_cast<UpsampleMode>(4); }, "mode");
  refused([](Upsample2dArgs& a) { a.dtype = DType::i32; }, "x:");
  refused([](Upsample2dArgs& a) { a.h = 0; }, "H and W");
  refused([](Upsample2dArgs& a) { a.n = -1; }, "x:");
  refused([](Upsample2dArgs& a) { a.q = 0; }, "size");
  refused([](Upsample2dArgs& a) { a.scale_w = -1; }, "scale_factor");
  refused([](Upsample2dArgs& a) { a.scale_h = NAN; }, "scale_factor");
  refused([](Upsample2dArgs& a) { a.scale_h = INFINITY; }, "scale_factor");
  refused([](Upsample2dArgs& a) { a.n = a.c = a.h = a.w = int64_t{1} << 30; }, "too large");
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
  wide = &wide512::upsample2d_kernels;
  cases();
  return test::finish();
}
