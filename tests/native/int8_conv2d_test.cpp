// int8 convolution against plain loops, to the bit: every ISA of the host, and as plain code the two 64-byte forms,
// with dot4 (wide512, what avx512_vnni compiles) and with dot2 (wide512_pairs, what avx512 compiles).
//
// `int8_conv2d_test N` tries N random calls more, with any geometry, zero points, epilogue and memory format.
#include "pykernels/int8_conv2d.h"

#include <cstdlib>
#include <cstring>
#include <limits>

#include "cpu/int8_conv2d/choose.h"
#include "int8_matmul_reference.h"
#include "test.h"

#define PK_ISA wide512_pairs
#define PK_LANES 16
#define PK_REGISTERS 32
#include "cpu/int8_conv2d/conv.cpp"

namespace pk::wide512 {
extern const Int8ConvKernels int8_conv_kernels;
}  // namespace pk::wide512

using namespace pk;

namespace {

// Runs on this table, or on that of the ISA in force.
const Int8ConvKernels* wide = nullptr;

struct Case {
  ConvShape s;
  Int8ConvOptions o;
  bool scale = true, bias = true, table = false, extremes = false;
  int residual = 0;   // 1: int8, 2: float
  int beyond = 1000;  // so many of 1000 values of x are anything, the others near its zero point
  bool x_planes = false, y_planes = false, residual_planes = false;
  unsigned seed = 1;
};

ConvShape shape(int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, int64_t r, int64_t s, int64_t stride = 1,
                int64_t pad = 0, int64_t dilation = 1, int64_t groups = 1) {
  return {n, c, h, w, k, r, s, stride, stride, pad, pad, pad, pad, dilation, dilation, groups};
}

void set_strides(int64_t (&stride)[4], int64_t c, int64_t h, int64_t w, bool planes) {
  const int64_t of_planes[4] = {c * h * w, h * w, w, 1}, adjacent[4] = {c * h * w, 1, w * c, c};
  std::memcpy(stride, planes ? of_planes : adjacent, sizeof stride);
}

int64_t at(const int64_t (&stride)[4], int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * stride[0] + c * stride[1] + h * stride[2] + w * stride[3];
}

// Rounded by itself, whatever the compiler would contract.
float rounded(float x) {
  volatile float kept = x;
  return kept;
}

float activated(float t, Activation activation, float slope) {
  switch (activation) {
    case Activation::relu:
      return t < 0 ? 0 : t;
    case Activation::leaky_relu:
      return t > 0 ? t : rounded(t * slope);
    case Activation::relu6:
      return t < 0 ? 0 : t > 6 ? 6 : t;
    default:
      return t;
  }
}

struct Data {
  std::vector<int8_t> x, weight, residual, table;
  std::vector<float> scale, bias, float_residual;
  int64_t x_stride[4], y_stride[4], residual_stride[4];
};

Data data_of(const Case& t) {
  const ConvShape& s = t.s;
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  Data d;
  const int64_t outputs = s.n * s.k * s.p() * s.q(), terms = s.c / s.groups * s.r * s.s;
  d.x = test::random_bytes(size(s.n * s.c * s.h * s.w), t.seed, t.extremes);
  std::mt19937 generator(t.seed + 7);
  for (int8_t& x : d.x) {
    if (static_cast<int>(generator() % 1000) >= t.beyond) {
      x = static_cast<int8_t>(
          std::max(-128, std::min(127, t.o.x_zero_point + static_cast<int>(generator() % 61) - 30)));
    }
  }
  d.weight = test::random_bytes(size(s.k * terms), t.seed + 1, t.extremes);
  d.residual = test::random_bytes(size(outputs), t.seed + 2, false);
  d.table = test::random_bytes(256, t.seed + 3, false);
  d.float_residual = test::normal(size(outputs), t.seed + 4, 30.0f);
  d.scale = test::normal(size(s.k), t.seed + 5, 1.0f / 74.0f / std::sqrt(static_cast<float>(terms + 1)));
  d.bias = test::normal(size(s.k), t.seed + 6, 20.0f);
  set_strides(d.x_stride, s.c, s.h, s.w, t.x_planes);
  set_strides(d.y_stride, s.k, s.p(), s.q(), t.y_planes);
  set_strides(d.residual_stride, s.k, s.p(), s.q(), t.residual_planes);
  return d;
}

// y, of a type that holds every dtype's values.
std::vector<double> expected(const Case& t, const Data& d) {
  const ConvShape& s = t.s;
  const Int8ConvOptions& o = t.o;
  const int64_t cg = s.c / s.groups, kg = s.k / s.groups, p = s.p(), q = s.q();
  std::vector<double> y(static_cast<size_t>(s.n * s.k * p * q));
  for (int64_t n = 0; n < s.n; ++n) {
    for (int64_t k = 0; k < s.k; ++k) {
      for (int64_t i = 0; i < p; ++i) {
        for (int64_t j = 0; j < q; ++j) {
          int64_t sum = 0;
          for (int64_t c = 0; c < cg; ++c) {
            for (int64_t r = 0; r < s.r; ++r) {
              for (int64_t v = 0; v < s.s; ++v) {
                const int64_t h = i * s.stride_h - s.pad_top + r * s.dilation_h;
                const int64_t w = j * s.stride_w - s.pad_left + v * s.dilation_w;
                if (h < 0 || h >= s.h || w < 0 || w >= s.w) continue;
                const int64_t from = at(d.x_stride, n, k / kg * cg + c, h, w);
                sum += (d.x[static_cast<size_t>(from)] - o.x_zero_point) *
                       d.weight[static_cast<size_t>(((k * cg + c) * s.r + r) * s.s + v)];
              }
            }
          }
          double& to = y[static_cast<size_t>(at(d.y_stride, n, k, i, j))];
          if (o.out_dtype == DType::i32) {
            to = static_cast<double>(sum);
            continue;
          }
          float f = static_cast<float>(sum);
          const auto channel = static_cast<size_t>(k);
          if (t.scale) f = rounded(f * d.scale[channel]);
          if (t.bias) f = rounded(f + d.bias[channel]);
          const auto from = static_cast<size_t>(at(d.residual_stride, n, k, i, j));
          if (t.residual == 1) {
            f = rounded(f + rounded(o.residual_scale * static_cast<float>(d.residual[from] - o.residual_zero_point)));
          } else if (t.residual == 2) {
            f = rounded(f + rounded(o.residual_scale * d.float_residual[from]));
          }
          f = rounded(activated(f, o.activation, o.negative_slope) * o.out_scale);
          if (o.out_dtype == DType::i8) {
            f = f != f ? 0.0f : std::nearbyint(std::fmax(-1e6f, std::fmin(1e6f, f)));
            f = std::fmin(127.0f, std::fmax(-128.0f, f + static_cast<float>(o.out_zero_point)));
            if (t.table) f = d.table[static_cast<size_t>(f + 128.0f)];
          }
          to = f;
        }
      }
    }
  }
  return y;
}

std::vector<char> pack(const Case& t, const Data& d) {
  const int64_t cg = t.s.c / t.s.groups;
  Int8ConvPackingPlan plan;
  Int8ConvPacking args;
  args.shape = t.s, args.options = t.o;
  args.weight = {d.weight.data(), {cg * t.s.r * t.s.s, t.s.r * t.s.s, t.s.s, 1}};
  args.scale = t.scale ? d.scale.data() : nullptr;
  args.bias = t.bias ? d.bias.data() : nullptr;
  args.table = t.table ? d.table.data() : nullptr;
  const Status s = make_packing_plan(args, &plan);
  EXPECT(s, "%s", s.error);
  if (wide) plan.kernels = wide;
  std::vector<char> blob(static_cast<size_t>(plan.packed_bytes), 0x55);
  pk::pack(plan, blob.data(), test::executor_of<2>());
  return blob;
}

template <class T>
void run_case(const Case& t, const Data& d, const Executor& executor) {
  const std::vector<char> blob = pack(t, d);
  const ConvShape& s = t.s;
  std::vector<T> y(static_cast<size_t>(s.n * s.k * s.p() * s.q()) + 1, T{77});
  Int8ConvArgs args;
  args.n = s.n, args.h = s.h, args.w = s.w;
  args.x.data = d.x.data();
  std::memcpy(args.x.stride, d.x_stride, sizeof args.x.stride);
  args.packed = blob.data(), args.packed_bytes = static_cast<int64_t>(blob.size());
  if (t.residual != 0) {
    args.residual.data = t.residual == 1 ? static_cast<const void*>(d.residual.data()) : d.float_residual.data();
    args.residual_dtype = t.residual == 1 ? DType::i8 : DType::f32;
    std::memcpy(args.residual.stride, d.residual_stride, sizeof args.residual.stride);
  }
  args.y = y.data();
  std::memcpy(args.y_stride, d.y_stride, sizeof args.y_stride);
  Int8ConvPlan plan;
  const Int8ConvKernels* const table = wide;
  if (table == nullptr) {
    const Status status = make_plan(args, executor.threads, &plan);
    EXPECT(status, "%s", status.error);
  } else {  // a blob packed by `wide` is another ISA's
    Int8ConvHeader header;
    std::memcpy(&header, blob.data(), sizeof header);
    plan.args = args, plan.shape = header.shape, plan.options = t.o, plan.kernels = table;
    plan.shape.n = s.n, plan.shape.h = s.h, plan.shape.w = s.w;
    if (s.n > 0) {
      plan.blocking = choose_conv(plan.shape, s.c > 1 && args.x.stride[1] != 1, header.winograd == WinogradForm::packed,
                                  table->tiling, executor.threads);
      plan.workspace_bytes = workspace_of(plan.blocking);
    }
  }
  std::vector<char> workspace(static_cast<size_t>(plan.workspace_bytes) + 1, 0x55);
  pk::run(plan, workspace.data() + 1, executor);
  const std::vector<double> e = expected(t, d);
  int64_t wrong = 0;
  double got = 0, wanted = 0;
  for (size_t i = 0; i < e.size(); ++i) {
    if (static_cast<double>(y[i]) == e[i]) continue;
    if (wrong++ == 0) got = static_cast<double>(y[i]), wanted = e[i];
  }
  EXPECT(wrong == 0 && y.back() == T{77},
         "%lld of %zu wrong (%g for %g): n %lld c %lld %lldx%lld k %lld %lldx%lld stride %lld groups %lld, dtype %d, "
         "residual %d, planes %d%d, threads %d",
         static_cast<long long>(wrong), e.size(), got, wanted, static_cast<long long>(s.n), static_cast<long long>(s.c),
         static_cast<long long>(s.h), static_cast<long long>(s.w), static_cast<long long>(s.k),
         static_cast<long long>(s.r), static_cast<long long>(s.s), static_cast<long long>(s.stride_h),
         static_cast<long long>(s.groups), static_cast<int>(t.o.out_dtype), t.residual, t.x_planes, t.y_planes,
         executor.threads);
}

void run_case(const Case& t, const Executor& executor) {
  switch (t.o.out_dtype) {
    case DType::i8:
      return run_case<int8_t>(t, data_of(t), executor);
    case DType::i32:
      return run_case<int32_t>(t, data_of(t), executor);
    default:
      return run_case<float>(t, data_of(t), executor);
  }
}

// Tails of every blocking, every algorithm, nothing at all.
const ConvShape kShapes[] = {
    shape(2, 16, 9, 9, 24, 3, 3, 1, 1),
    shape(1, 64, 14, 14, 64, 1, 1),
    shape(1, 3, 23, 19, 40, 7, 7, 2, 3),
    shape(1, 3, 9, 9, 33, 3, 3, 2, 1),
    shape(2, 70, 7, 6, 33, 3, 3, 1, 1),
    shape(1, 160, 5, 5, 48, 2, 2, 1, 0, 2),
    shape(1, 12, 8, 8, 18, 3, 3, 1, 1, 1, 3),
    shape(2, 33, 9, 17, 33, 3, 3, 1, 1, 1, 33),
    shape(1, 20, 12, 12, 20, 5, 5, 2, 2, 1, 20),
    shape(1, 6, 7, 7, 12, 3, 3, 1, 1, 1, 6),
    shape(1, 1, 5, 6, 3, 3, 3, 1, 2),
    shape(0, 8, 6, 6, 16, 3, 3, 1, 1),
    shape(2, 0, 6, 6, 8, 3, 3, 1, 1),
    shape(1, 513, 3, 3, 130, 1, 1, 2),
    shape(1, 32, 20, 20, 300, 1, 1),
    shape(1, 16, 4, 4, 16, 3, 3, 1, 4, 3),
    // Tap by tap, also with dilated taps, in groups and over images.
    shape(1, 128, 7, 7, 40, 3, 3, 1, 1),
    shape(3, 132, 4, 5, 33, 3, 3, 2, 1),
    shape(1, 128, 6, 6, 32, 3, 3, 1, 2, 2),
    shape(1, 256, 5, 5, 64, 3, 3, 1, 1, 1, 2),
    // Winograd: tiles and panels that are cut off, padding of none to two, images, several blocks.
    shape(1, 64, 14, 13, 40, 3, 3, 1, 1),
    shape(2, 32, 9, 10, 33, 3, 3, 1, 2),
    shape(3, 32, 10, 18, 48, 3, 3),
    shape(1, 32, 64, 40, 32, 3, 3, 1, 1),
    shape(1, 256, 8, 8, 64, 3, 3, 1, 1),
    // Several blocks of rows, and of columns; filters of one line.
    shape(1, 512, 14, 40, 3, 3, 3, 1, 1),
    shape(1, 260, 1, 1100, 3, 1, 3, 1, 1),
    shape(1, 512, 9, 9, 33, 1, 1, 2),
    // Depthwise in quads: one and two quads of lines, one and two rows of the output, few and many columns.
    shape(1, 24, 5, 150, 24, 3, 3, 1, 1, 1, 24),
    shape(2, 16, 8, 3, 16, 5, 5, 1, 2, 1, 16),
    shape(1, 17, 13, 13, 17, 7, 7, 1, 3, 1, 17),
    shape(1, 24, 12, 12, 24, 3, 3, 2, 1, 2, 24),
    shape(1, 32, 12, 12, 32, 9, 3, 1, 4, 1, 32),
    // Blocks of 64 channels, and of 32 and 16 of several pixels, at each stride; parts of a row; dilation at a stride.
    shape(1, 64, 6, 67, 64, 3, 3, 1, 1, 1, 64),
    shape(1, 96, 7, 9, 96, 3, 3, 2, 1, 1, 96),
    shape(2, 144, 5, 11, 144, 3, 3, 1, 1, 1, 144),
    shape(1, 80, 9, 66, 80, 3, 3, 2, 1, 1, 80),
    shape(1, 120, 6, 5, 120, 5, 5, 1, 2, 1, 120),
    shape(1, 48, 11, 31, 48, 5, 5, 2, 2, 1, 48),
    shape(1, 32, 9, 70, 32, 3, 3, 1, 1, 1, 32),
    shape(1, 96, 13, 14, 96, 3, 5, 3, 2, 2, 96),
    // As many columns as one vector, or a part of a panel.
    shape(1, 12, 5, 9, 16, 1, 1),
    shape(1, 40, 6, 7, 24, 1, 1),
    shape(1, 20, 4, 9, 56, 3, 3, 1, 1),
    shape(1, 16, 5, 5, 7, 1, 1),
    // Byte pairs (AVX2): one line; runs and tails; strides, dilation, groups; columns of a row; tap by tap.
    shape(1, 132, 9, 37, 70, 1, 1),
    shape(2, 256, 7, 6, 96, 1, 1, 2),
    shape(1, 68, 11, 13, 65, 3, 3, 2, 1),
    shape(1, 64, 9, 9, 64, 3, 3, 1, 2, 2),
    shape(1, 128, 19, 40, 130, 3, 3, 2, 1, 1, 2),
    shape(1, 64, 3, 1100, 64, 1, 3, 1, 1),
    shape(1, 128, 7, 7, 80, 3, 3, 2, 1),
};

void every_shape(const Executor& executor) {
  unsigned seed = 1;
  for (const ConvShape& s : kShapes) {
    Case t{s, {}};
    t.o.out_dtype = DType::i32, t.scale = t.bias = false, t.seed = ++seed;
    t.o.x_zero_point = seed % 2 ? 0 : static_cast<int>(seed * 37 % 256) - 128;
    run_case(t, executor);
    t.beyond = 10;
    run_case(t, executor);
    t.extremes = true;
    run_case(t, executor);
    t.beyond = 1000, t.x_planes = true;
    run_case(t, executor);
    t = Case{s, {}};
    t.seed = seed;
    t.o.out_dtype = DType::i8, t.o.x_zero_point = -128, t.o.out_zero_point = -100, t.o.activation = Activation::relu;
    run_case(t, executor);
    t.beyond = 20;
    run_case(t, executor);
    t.residual = 1, t.o.residual_scale = 0.37f, t.o.residual_zero_point = 11, t.o.out_scale = 1.7f;
    run_case(t, executor);
    t.o.activation = Activation::relu6, t.o.out_scale = 9.3f, t.y_planes = true, t.bias = false;
    run_case(t, executor);
    t.o.activation = Activation::leaky_relu, t.o.negative_slope = 0.3f, t.y_planes = false, t.table = true;
    run_case(t, executor);
    t = Case{s, {}};
    t.seed = seed, t.residual = 2, t.residual_planes = true, t.o.residual_scale = 0.7f;
    t.o.activation = Activation::relu;
    run_case(t, executor);
  }
}

void random_cases(int count) {
  std::mt19937 generator(99);
  const auto upto = [&](int64_t n) { return static_cast<int64_t>(generator() % static_cast<unsigned>(n + 1)); };
  for (int i = 0; i < count; ++i) {
    Case t{};
    ConvShape& s = t.s;
    s = shape(1 + upto(1), 1 + upto(40), 1 + upto(11), 1 + upto(11), 1 + upto(70), 1 + upto(3), 1 + upto(3));
    s.stride_h = 1 + upto(2), s.stride_w = 1 + upto(2), s.dilation_h = 1 + upto(1), s.dilation_w = 1 + upto(1);
    s.pad_top = upto(3), s.pad_left = upto(3), s.pad_bottom = upto(3), s.pad_right = upto(3);
    if (upto(3) == 0) s.groups = 1 + upto(7), s.c *= s.groups, s.k = s.groups * (1 + upto(20));
    if (upto(3) == 0) s.groups = s.k = s.c = 1 + upto(80);
    if (s.h + s.pad_top + s.pad_bottom < s.dilation_h * (s.r - 1) + 1) continue;
    if (s.w + s.pad_left + s.pad_right < s.dilation_w * (s.s - 1) + 1) continue;
    Int8ConvOptions& o = t.o;
    const auto zero = [&] { return upto(1) ? static_cast<int32_t>(upto(255)) - 128 : 0; };
    o.x_zero_point = zero();
    const int64_t kind = upto(4);
    o.out_dtype = kind == 0 ? DType::i32 : kind == 1 ? DType::f32 : DType::i8;
    t.beyond = upto(1) ? 1000 : static_cast<int>(upto(100));
    t.extremes = upto(3) == 0, t.seed = static_cast<unsigned>(i), t.x_planes = upto(2) == 0, t.y_planes = upto(2) == 0;
    t.scale = t.bias = false;
    if (kind != 0) {
      t.scale = upto(7) != 0, t.bias = upto(3) != 0, t.residual = static_cast<int>(upto(2));
      t.residual_planes = upto(2) == 0;
      const Activation activations[] = {Activation::none, Activation::relu, Activation::relu6, Activation::leaky_relu};
      o.activation = activations[upto(3)];
      o.residual_scale = static_cast<float>(1 + upto(9)) / 7.0f, o.residual_zero_point = zero();
      if (upto(1)) o.out_scale = static_cast<float>(1 + upto(30)) / 11.0f;
    }
    if (kind > 1) o.out_zero_point = zero(), t.table = upto(4) == 0;
    run_case(t, upto(1) ? test::executor_of<3>() : serial_executor());
  }
}

// All -128 with the longest filters: what is summed last fits, though what is summed on the way does not.
void limits() {
  for (const int64_t c : {kInt8MaxK, kInt8MaxKWithZeroPoint}) {
    Case t{shape(1, c, 1, 1, 1, 1, 1), {}};
    t.o.out_dtype = DType::i32, t.scale = t.bias = false;
    const auto size = static_cast<size_t>(c);
    t.o.x_zero_point = c == kInt8MaxK ? 0 : 127;
    Data d = data_of(t);
    d.x.assign(size, -128), d.weight.assign(size, -128);
    const std::vector<char> blob = pack(t, d);
    int32_t y = 0;
    Int8ConvArgs args;
    args.n = args.h = args.w = 1;
    args.x = {d.x.data(), {c, 1, c, c}};
    args.packed = blob.data(), args.packed_bytes = static_cast<int64_t>(blob.size()), args.y = &y;
    Int8ConvPlan plan;
    if (wide) return;
    EXPECT(make_plan(args, 1, &plan), "the longest");
    std::vector<char> workspace(static_cast<size_t>(plan.workspace_bytes));
    pk::run(plan, workspace.data(), serial_executor());
    EXPECT(y == (c == kInt8MaxK ? c << 14 : c * 255 * 128), "%d", y);
  }
}

// The largest sums that Winograd's 26 bits hold, and larger ones, which are done directly.
void winograd_limits() {
  for (const int64_t c : {224, 256}) {
    Case t{shape(1, c, 8, 8, 32, 3, 3, 1, 1), {}};
    t.o.out_dtype = DType::i32, t.o.x_zero_point = 127, t.scale = t.bias = false;
    Data d = data_of(t);
    d.x.assign(d.x.size(), -128), d.weight.assign(d.weight.size(), -128);
    const std::vector<char> blob = pack(t, d);
    Int8ConvHeader header;
    std::memcpy(&header, blob.data(), sizeof header);
    EXPECT(header.winograd == (c == 224 ? WinogradForm::packed : WinogradForm::does_not_fit), "c %lld",
           static_cast<long long>(c));
    run_case<int32_t>(t, d, serial_executor());
  }
}

// Halves go to even, NaN is what 0 is, and what is too large saturates: by hand.
void rounding() {
  Case t{shape(1, 1, 1, 1, 8, 1, 1), {}};
  t.o.out_dtype = DType::i8, t.o.out_zero_point = 3;
  Data d = data_of(t);
  d.x = {1}, d.weight = {1, 3, 5, -1, -3, 100, -100, 1};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  d.scale = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 1e30f, 1e30f, nan}, d.bias.assign(8, 0.0f);
  const std::vector<char> blob = pack(t, d);
  int8_t y[8];
  Int8ConvArgs args;
  args.n = args.h = args.w = 1;
  args.x = {d.x.data(), {1, 1, 1, 1}};
  args.packed = blob.data(), args.packed_bytes = static_cast<int64_t>(blob.size());
  args.y = y, args.y_stride[0] = 8, args.y_stride[1] = 1;
  Int8ConvPlan plan;
  EXPECT(make_plan(args, 1, &plan), "rounding");
  std::vector<char> workspace(static_cast<size_t>(plan.workspace_bytes));
  pk::run(plan, workspace.data(), serial_executor());
  const int expected[8] = {3, 5, 5, 3, 1, 127, -128, 3};
  for (int i = 0; i < 8; ++i) EXPECT(y[i] == expected[i], "%d: %d for %d", i, y[i], expected[i]);
}

void refusals() {
  const Case good{shape(1, 8, 4, 4, 8, 3, 3, 1, 1), {}};
  const Data d = data_of(good);
  Int8ConvPackingPlan packing;
  const auto refuses = [&](const ConvShape& s, const Int8ConvOptions& o, const char* word) {
    Int8ConvPacking args;
    args.shape = s, args.options = o, args.scale = d.scale.data();
    const Status status = make_packing_plan(args, &packing);
    EXPECT(!status && std::strstr(status.error, word), "expected '%s', got '%s'", word, status ? "" : status.error);
  };
  Int8ConvOptions o;
  refuses(shape(1, kInt8MaxK + 1, 1, 1, 1, 1, 1), o, "131071");
  o.x_zero_point = 1;
  refuses(shape(1, kInt8MaxKWithZeroPoint + 1, 1, 1, 1, 1, 1), o, "65793");
  o.x_zero_point = 128;
  refuses(good.s, o, "x_zero_point");
  o = {}, o.out_dtype = DType::i32;
  refuses(good.s, o, "plain sum");
  o.out_dtype = DType::f16;
  refuses(good.s, o, "out_dtype");
  o = {}, o.out_zero_point = 4;
  refuses(good.s, o, "expected int8");
  refuses(shape(1, 8, 4, 4, 8, 3, 3, 0), {}, "stride");
  refuses(shape(1, 8, 4, 4, 9, 3, 3, 1, 1, 1, 2), {}, "groups");
  refuses(shape(1, int64_t{1} << 61, 4, 4, 8, 3, 3), {}, "too large");

  std::vector<char> blob = pack(good, d);
  Int8ConvArgs args;
  args.n = 1, args.h = args.w = 4, args.x = {d.x.data(), {128, 1, 32, 8}};
  args.packed = blob.data(), args.packed_bytes = static_cast<int64_t>(blob.size());
  Int8ConvPlan plan;
  EXPECT(make_plan(args, 1, &plan), "the good one");
  const auto refused = [&](const Int8ConvArgs& a, const char* word) {
    const Status status = make_plan(a, 1, &plan);
    EXPECT(!status && std::strstr(status.error, word), "expected '%s', got '%s'", word, status ? "" : status.error);
  };
  Int8ConvArgs a = args;
  a.packed_bytes = 10;
  refused(a, "too short");
  a.packed_bytes = args.packed_bytes - 1;
  refused(a, "cut short");
  a = args, a.n = int64_t{1} << 61;
  refused(a, "too large");
  blob[8] = 9;
  refused(args, "another version");
  blob[8] = kInt8ConvVersion, blob[12] = static_cast<char>(blob[12] ^ 1);
  refused(args, "another instruction set");
  // A header that promises what these filters cannot have, with or without the bytes for it.
  blob[12] = static_cast<char>(blob[12] ^ 1);
  Int8ConvHeader header;
  std::memcpy(&header, blob.data(), sizeof header);
  header.winograd = WinogradForm::packed;
  std::memcpy(blob.data(), &header, sizeof header);
  refused(args, "size is wrong");
  a = args, a.packed_bytes += winograd_bytes(header.shape);
  refused(a, "size is wrong");
  header.winograd = static_cast<WinogradForm>(7);
  std::memcpy(blob.data(), &header, sizeof header);
  refused(a, "size is wrong");
  blob[0] = 'X';
  refused(args, "first bytes");
}

}  // namespace

int main(int argc, char** argv) {
  const int more = argc > 1 ? std::atoi(argv[1]) : 0;
  for (const Isa isa : test::host_isas()) {
    const Status s = force_isa(isa_name(isa));
    EXPECT(s, "%s", s.error);
    every_shape(serial_executor());
    every_shape(test::executor_of<3>());
    random_cases((test::is_quick() ? 40 : 200) + more);
    limits();
    winograd_limits();
    rounding();
    refusals();
  }
  if (test::is_quick()) return test::finish();
  for (const Int8ConvKernels* table : {&wide512::int8_conv_kernels, &wide512_pairs::int8_conv_kernels}) {
    wide = table;
    every_shape(serial_executor());
    every_shape(test::executor_of<3>());
    winograd_limits();
    random_cases(100);
  }
  return test::finish();
}
