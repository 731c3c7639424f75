// What is done to each element of int8, against its formulas, to the bit: every ISA of the host, and wide512 as plain
// code.
#include "pykernels/int8_pointwise.h"

#include <cmath>
#include <cstring>

#include "cpu/int8_pointwise/kernels.h"
#include "elements.h"
#include "images.h"
#include "test.h"

namespace pk::wide512 {
extern const Int8PointwiseKernels int8_pointwise_kernels;
extern const Int8AffineKernels int8_affine_kernels;
}  // namespace pk::wide512

using namespace pk;
using test::lay_out, test::Layout, test::place;

namespace {

using Elements = test::Elements<std::vector<char>>;
using Kind = Int8PointwiseKind;

// Runs on this table, or on that of the ISA in force.
const Int8PointwiseKernels* wide = nullptr;
const Int8AffineKernels* wide_affine = nullptr;

constexpr Layout kLayouts[] = {Layout::last,         Layout::planes,       Layout::last_slice,
                               Layout::planes_slice, Layout::last_columns, Layout::planes_columns};

struct Sizes {
  int64_t n, c, h, w;
};

// Numbers, many of which lie between two of the grid; and such as no grid has.
Elements numbers(DType dtype, size_t count, float scale, unsigned seed) {
  std::vector<float> values = test::normal(count, seed, 60.0f);
  for (size_t i = 0; i < count; ++i) {
    if (i % 2) values[i] = std::nearbyint(values[i]) + 0.5f;
    values[i] *= scale;
    if (i % 31 == 7) values[i] = i % 62 == 7 ? NAN : i % 4 == 1 ? INFINITY : -1e30f;
  }
  return Elements(dtype, values);
}

float rounded(float t, int32_t zero) {
  if (std::isnan(t)) t = 0;
  return std::fmin(std::fmax(std::nearbyint(t) + static_cast<float>(zero), -128.0f), 127.0f);
}

float activated(Activation activation, float negative_slope, float t) {
  if (activation == Activation::relu || activation == Activation::relu6) t = std::fmax(t, 0.0f);
  if (activation == Activation::relu6) t = std::fmin(t, 6.0f);
  if (activation == Activation::leaky_relu) t = t > 0 ? t : t * negative_slope;
  return t;
}

float expected(const Int8PointwiseArgs& a, float x, float b) {
  switch (a.kind) {
    case Kind::quantize:
      return rounded(x * a.y_inverse, a.y_zero);
    case Kind::dequantize:
      return (x - static_cast<float>(a.x_zero)) * a.x_scale;
    case Kind::add: {
      float t = (x - static_cast<float>(a.x_zero)) * a.x_scale;
      t = t + (b - static_cast<float>(a.b_zero)) * a.b_scale;
      return rounded(activated(a.activation, a.negative_slope, t) * a.y_inverse, a.y_zero);
    }
    case Kind::lookup:
      return a.table[static_cast<int>(x) + 128];
  }
  return 0;
}

// Are there elements with no room between them?
bool has_neighbours(const int64_t (&size)[4], const int64_t (&stride)[4]) {
  bool one = true, adjacent = false;
  for (int d = 0; d < 4; ++d) one = one && size[d] == 1, adjacent = adjacent || (size[d] > 1 && stride[d] == 1);
  return one || adjacent;
}

void pointwise_case(Int8PointwiseArgs a, const Sizes& s, Layout in, Layout out, const Executor& executor) {
  const DType x_type = a.kind == Kind::quantize ? a.dtype : DType::i8;
  const DType y_type = a.kind == Kind::dequantize ? a.dtype : DType::i8;
  int64_t x_stride[4], y_stride[4];
  const size_t x_count = lay_out(in, s.n, s.c, s.h, s.w, x_stride),
               y_count = lay_out(out, s.n, s.c, s.h, s.w, y_stride);
  Elements x = numbers(x_type, x_count, x_type == DType::i8 ? 1.0f : 1 / a.y_inverse, 1);
  Elements b = numbers(DType::i8, x_count, 1.0f, 2), y(y_type, std::vector<float>(y_count, 77.0f));
  a.dim = 4, a.x = x.data(), a.y = y.data(), a.b = a.kind == Kind::add ? b.data() : nullptr;
  const int64_t size[] = {s.n, s.c, s.h, s.w};
  std::memcpy(a.size, size, sizeof size);
  std::memcpy(a.x_stride, x_stride, sizeof x_stride), std::memcpy(a.b_stride, x_stride, sizeof x_stride);
  std::memcpy(a.y_stride, y_stride, sizeof y_stride);
  Int8PointwisePlan plan;
  const Status status = make_plan(a, &plan);
  const bool turns = a.kind == Kind::quantize || a.kind == Kind::dequantize;
  const bool alike = turns || test::by_channels(in) == test::by_channels(out);
  if (!status && !(alike && has_neighbours(size, x_stride) && has_neighbours(size, y_stride))) return;
  EXPECT(status, "%s: kind %d layouts %d %d", status.error, static_cast<int>(a.kind), static_cast<int>(in),
         static_cast<int>(out));
  if (!status) return;
  if (wide) plan.kernels = wide;
  run(plan, executor);
  std::vector<bool> written(y_count);
  int64_t wrong = 0;
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t c = 0; c < s.c; ++c) {
      for (int64_t h = 0; h < s.h; ++h) {
        for (int64_t w = 0; w < s.w; ++w) {
          const size_t from = place(x_stride, n, c, h, w), to = place(y_stride, n, c, h, w);
          written[to] = true;
          float e = expected(a, x[from], b[from]);
          if (y_type == DType::bf16) e = test::widen(test::narrow(e, y_type), y_type);
          wrong += !(y[to] == e);
        }
      }
    }
  }
  for (size_t i = 0; i < y_count; ++i) wrong += !written[i] && y[i] != 77.0f;
  EXPECT(wrong == 0, "%ld wrong: kind %d dtype %d layouts %d %d, n%ld c%ld %ldx%ld", static_cast<long>(wrong),
         static_cast<int>(a.kind), static_cast<int>(a.dtype), static_cast<int>(in), static_cast<int>(out),
         static_cast<long>(s.n), static_cast<long>(s.c), static_cast<long>(s.h), static_cast<long>(s.w));
}

void cases() {
  const Sizes sizes[] = {{2, 3, 7, 9},  {1, 3, 40, 40}, {2, 19, 5, 7},  {1, 64, 4, 16}, {1, 130, 3, 5},
                         {3, 1, 5, 67}, {1, 5, 1, 1},   {2, 35, 1, 90}, {0, 3, 4, 4},   {1, 2, 1, 2100}};
  int8_t table[256];
  for (int i = 0; i < 256; ++i) table[i] = static_cast<int8_t>(i * 37 + 11);
  Int8PointwiseArgs a;
  a.x_scale = 0.03f, a.b_scale = 0.7f, a.y_inverse = static_cast<float>(1 / 0.31), a.table = table;
  for (const Sizes& s : sizes) {
    for (const Layout in : kLayouts) {
      for (const Layout out : kLayouts) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
          a.dtype = dtype, a.x_zero = -5, a.y_zero = 3, a.b_zero = 0;
          a.kind = Kind::quantize;
          pointwise_case(a, s, in, out, serial_executor());
          pointwise_case(a, s, in, out, test::thread_executor(3));
          a.kind = Kind::dequantize;
          pointwise_case(a, s, in, out, serial_executor());
          pointwise_case(a, s, in, out, test::thread_executor(3));
        }
        a.kind = Kind::lookup;
        pointwise_case(a, s, in, out, serial_executor());
        a.kind = Kind::add, a.b_zero = 9;
        for (const Activation act : {Activation::none, Activation::relu, Activation::relu6, Activation::leaky_relu}) {
          a.activation = act;
          pointwise_case(a, s, in, out, test::thread_executor(2));
        }
        a.activation = Activation::none;
      }
    }
  }
  // Many elements, the ends of the grid, and sums that are halves.
  a.y_zero = -128;
  for (const float scale : {0.03f, 0.5f}) {
    a.kind = Kind::add, a.x_scale = a.b_scale = scale, a.y_inverse = 1;
    pointwise_case(a, {3, 70, 33, 17}, Layout::last, Layout::last, test::thread_executor(4));
  }
  a.kind = Kind::quantize, a.y_inverse = 1e20f;
  pointwise_case(a, {3, 70, 33, 17}, Layout::planes, Layout::last, test::thread_executor(4));
}

// Of `channels` in each piece.
void affine_case(const Sizes& s, const std::vector<int64_t>& channels, Layout in, Layout out, Activation activation,
                 const Executor& executor) {
  Int8AffineArgs a;
  a.n = s.n, a.h = s.h, a.w = s.w;
  a.y_inverse = static_cast<float>(1 / 0.31), a.y_zero = -9, a.activation = activation, a.negative_slope = 0.25f;
  std::vector<Elements> xs;
  std::vector<Int8Piece> pieces;
  for (const int64_t c : channels) {
    Int8Piece piece;
    piece.channels = c;
    xs.push_back(numbers(DType::i8, lay_out(in, s.n, c, s.h, s.w, piece.stride), 1.0f, static_cast<unsigned>(c)));
    pieces.push_back(piece);
    a.c += c;
  }
  for (size_t i = 0; i < xs.size(); ++i) pieces[i].data = static_cast<const int8_t*>(xs[i].data());
  const auto scale = test::normal(static_cast<size_t>(a.c), 3, 0.1f), shift = test::normal(static_cast<size_t>(a.c), 4);
  Elements y(DType::i8, std::vector<float>(lay_out(out, s.n, a.c, s.h, s.w, a.y_stride), 77.0f));
  a.x = pieces.data(), a.pieces = static_cast<int64_t>(pieces.size());
  a.scale = scale.data(), a.shift = shift.data(), a.y = static_cast<int8_t*>(y.data());
  Int8AffinePlan plan;
  const Status status = make_plan(a, &plan);
  EXPECT(status, "%s", status.error);
  if (wide_affine) plan.kernels = wide_affine;
  run(plan, executor);
  std::vector<bool> written(y.size());
  int64_t wrong = 0, c = 0;
  for (size_t i = 0; i < xs.size(); c += channels[i++]) {
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t k = 0; k < channels[i]; ++k) {
        for (int64_t h = 0; h < s.h; ++h) {
          for (int64_t w = 0; w < s.w; ++w) {
            const size_t to = place(a.y_stride, n, c + k, h, w), of = static_cast<size_t>(c + k);
            written[to] = true;
            float t = xs[i][place(pieces[i].stride, n, k, h, w)] * scale[of];
            t = t + shift[of];
            wrong += !(y[to] == rounded(activated(activation, a.negative_slope, t) * a.y_inverse, a.y_zero));
          }
        }
      }
    }
  }
  for (size_t i = 0; i < y.size(); ++i) wrong += !written[i] && y[i] != 77.0f;
  EXPECT(wrong == 0, "%ld wrong: affine, layouts %d %d, n%ld c%ld %ldx%ld", static_cast<long>(wrong),
         static_cast<int>(in), static_cast<int>(out), static_cast<long>(s.n), static_cast<long>(a.c),
         static_cast<long>(s.h), static_cast<long>(s.w));
}

void affine_cases() {
  const std::vector<int64_t> pieces[] = {{19}, {64, 7, 0, 32, 1}, {1}, {130, 70}};
  for (const auto& channels : pieces) {
    for (const Layout in : {Layout::last, Layout::planes, Layout::last_slice, Layout::planes_columns, Layout::apart}) {
      for (const Layout out : {Layout::last, Layout::planes, Layout::last_columns, Layout::apart}) {
        for (const Activation act : {Activation::none, Activation::relu, Activation::relu6, Activation::leaky_relu}) {
          affine_case({2, 0, 3, 21}, channels, in, out, act, serial_executor());
        }
        affine_case({1, 0, 40, 35}, channels, in, out, Activation::relu, test::thread_executor(3));
        affine_case({0, 0, 4, 4}, channels, in, out, Activation::relu, serial_executor());
        affine_case({3, 0, 1, 1}, channels, in, out, Activation::none, test::thread_executor(2));
      }
    }
  }
}

void affine_refusals() {
  const auto refused = [](auto change, const char* word) {
    Int8Piece piece;
    piece.channels = 3;
    Int8AffineArgs a;
    a.n = a.h = a.w = 2, a.c = 3, a.x = &piece, a.pieces = 1;
    change(a);
    Int8AffinePlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](Int8AffineArgs& a) { a.y_zero = -129; }, "zero_point");
  refused([](Int8AffineArgs& a) { a.activation = static_cast<Activation>(kActivations); }, "activation");
  refused([](Int8AffineArgs& a) { a.c = 4; }, "channels");
  refused([](Int8AffineArgs& a) { a.w = -1; }, "negative");
  refused([](Int8AffineArgs& a) { a.n = a.h = a.w = int64_t{1} << 30; }, "too large");
}

void refusals() {
  const auto refused = [](auto change, const char* word) {
    Int8PointwiseArgs a;
    a.dim = 2, a.size[0] = 3, a.size[1] = 4;
    a.x_stride[0] = a.y_stride[0] = a.b_stride[0] = 4, a.x_stride[1] = a.y_stride[1] = a.b_stride[1] = 1;
    change(a);
    Int8PointwisePlan plan;
    const Status s = make_plan(a, &plan);
    EXPECT(!s && std::strstr(s.error, word), "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  refused([](Int8PointwiseArgs& a) { a.kind = static_cast<Kind>(4); }, "kind");
  refused([](Int8PointwiseArgs& a) { a.dtype = DType::i8; }, "x:");
  refused([](Int8PointwiseArgs& a) { a.dim = 9; }, "dimensions");
  refused([](Int8PointwiseArgs& a) { a.y_zero = 128; }, "zero_point");
  refused([](Int8PointwiseArgs& a) { a.activation = static_cast<Activation>(kActivations); }, "activation");
  refused([](Int8PointwiseArgs& a) { a.kind = Kind::lookup; }, "table");
  refused([](Int8PointwiseArgs& a) { a.size[0] = -1; }, "too large");
  refused([](Int8PointwiseArgs& a) { a.size[0] = a.size[1] = int64_t{1} << 30; }, "too large");
  refused([](Int8PointwiseArgs& a) { a.y_stride[0] = 8, a.y_stride[1] = 2; }, "out: expected adjacent");
  refused([](Int8PointwiseArgs& a) { a.x_stride[0] = 8, a.x_stride[1] = 2; }, "x: expected adjacent");
  refused([](Int8PointwiseArgs& a) { a.kind = Kind::add, a.b_stride[0] = 1, a.b_stride[1] = 3; }, "adjacent");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    EXPECT(force_isa(isa_name(isa)), "force");
    cases();
    affine_cases();
  }
  EXPECT(force_isa(nullptr), "back");
  refusals();
  affine_refusals();
  if (test::is_quick()) return test::finish();
  wide = &wide512::int8_pointwise_kernels, wide_affine = &wide512::int8_affine_kernels;
  cases();
  affine_cases();
  return test::finish();
}
