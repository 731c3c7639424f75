// conv_bn_act on CUDA against the naive loop: the CPU's shapes in every dtype and memory format, each under a schedule
// of its own, and a few under all; every tile, split and copy width; int8 to the bit; infinities; refusals; the choice.
// Arrays end at unmapped pages, so nothing is read or written past an end.
#include "pykernels/cuda/conv_bn_act.h"

#include "conv_bn_act_reference.h"
#include "cuda/conv_bn_act/choose.h"
#include "simt/simt.h"
#include "test.h"

using namespace pk;             // NOLINT
using namespace pk::conv_test;  // NOLINT

namespace {

using Bytes = simt::Guarded<unsigned char>;

// An array's bytes on the "device", and back.
struct OnDevice {
  Array& array;
  Bytes bytes;

  explicit OnDevice(Array& a) : array(a), bytes(a.bytes()) {
    if (bytes.size() > 0) std::memcpy(bytes.data(), a.data(), bytes.size());
  }
  ConvTensor tensor() {
    ConvTensor t = array.tensor();
    t.data = bytes.data();
    return t;
  }
  void fetch() {
    if (bytes.size() > 0) std::memcpy(array.data(), bytes.data(), bytes.size());
  }
};

std::vector<unsigned char> pack(const ConvShape& s, DType dtype, Array& weight) {
  int64_t size[2] = {};
  Status status = cuda::conv_packed_size(s, dtype, size);
  EXPECT(status, "%s", status.error);
  Bytes packed(static_cast<size_t>(size[0] * size[1]) * size_of(dtype));
  OnDevice source(weight);
  status = cuda::conv_pack(s, dtype, source.tensor(), packed.data(), nullptr);
  EXPECT(status, "%s", status.error);
  return packed.vector();
}

// y of `args`, whose x, residual and y are the host's arrays.
void run(ConvArgs args, const std::vector<unsigned char>& packed_bytes, Array& x, Array* residual, Array& y) {
  OnDevice on_x(x), on_y(y);
  Bytes packed(packed_bytes);
  args.x = on_x.tensor();
  args.packed = packed.data();
  args.packed_bytes = static_cast<int64_t>(packed.size());
  args.y = on_y.bytes.data();
  std::copy(y.stride, y.stride + 4, args.y_stride);
  const auto finish = [&] {
    int64_t bytes = 0;
    Status status = cuda::conv_workspace_bytes(args, &bytes);
    EXPECT(status, "%s", status.error);
    Bytes workspace(static_cast<size_t>(bytes));
    std::memset(workspace.data(), 0xff, workspace.size());  // NaN
    args.workspace = workspace.data();
    args.workspace_bytes = bytes;
    status = cuda::conv_bn_act(args, nullptr);
    EXPECT(status, "%s", status.error);
    on_y.fetch();
  };
  args.residual = {};
  if (residual == nullptr) return finish();
  OnDevice on_residual(*residual);
  args.residual = on_residual.tensor();
  finish();
}

// Half a unit in the last place of the output, and the error of float32 sums. tf32 rounds each factor to 11 bits, and
// so errs before the activation, whose saturation then shrinks the output more than the error.
double tolerance(const ConvShape& s, DType dtype, bool tf32) {
  const double length = static_cast<double>(s.c / s.groups * s.r * s.s) + 4;
  const double sum = 6e-8 * std::sqrt(length) + 3e-7;
  return dtype == DType::bf16 ? 4e-3 : dtype == DType::f16 ? 5e-4 : tf32 ? 2e-3 : sum;
}

struct Kind {
  DType dtype;
  bool tf32;
  const char* name;
};
const Kind kKinds[] = {
    {DType::f32, false, "f32"}, {DType::f32, true, "tf32"}, {DType::bf16, false, "bf16"}, {DType::f16, false, "f16"}};

int64_t products(const ConvShape& s) { return s.n * s.k * s.p() * s.q() * (s.c / s.groups) * s.r * s.s; }

// One case in one dtype; the bits must not depend on the format.
void check_case(const Case& c, const Kind& kind, unsigned seed, const char* what,
                std::initializer_list<Format> formats = {Format::nhwc, Format::nchw, Format::gaps}) {
  const ConvShape& s = c.shape;
  Array weight({s.k, s.c / s.groups, s.r, s.s}, kind.dtype, seed % 2 ? Format::nchw : Format::nhwc);
  weight.fill(seed);
  const auto scale = test::normal(static_cast<size_t>(s.k), seed + 1),
             shift = test::normal(static_cast<size_t>(s.k), seed + 2);
  const simt::Guarded<float> on_scale(scale), on_shift(shift);
  ConvArgs args{};
  args.shape = s;
  args.dtype = kind.dtype;
  args.tf32 = kind.tf32;
  args.scale = c.scale ? on_scale.data() : nullptr;
  args.shift = c.shift ? on_shift.data() : nullptr;
  args.activation = static_cast<Activation>(seed % kActivations);
  args.negative_slope = 0.2f;
  std::vector<double> expected;
  std::vector<float> first;
  for (const Format format : formats) {
    Array x({s.n, s.c, s.h, s.w}, kind.dtype, format), residual({s.n, s.k, s.p(), s.q()}, kind.dtype, format);
    Array y({s.n, s.k, s.p(), s.q()}, kind.dtype, format);
    x.fill(seed + 3);
    residual.fill(seed + 4);
    if (first.empty()) {
      args.residual.data = c.residual ? residual.data() : nullptr;
      expected = naive(args, x, weight, residual);
    }
    run(args, pack(s, kind.dtype, weight), x, c.residual ? &residual : nullptr, y);
    const auto values = y.values();
    if (first.empty()) first = values;
    const double error = test::relative_l2(values, expected);
    EXPECT(error < tolerance(s, kind.dtype, kind.tf32), "%s, %s, format %d: %g", what, kind.name,
           static_cast<int>(format), error);
    EXPECT(values == first, "%s, %s, format %d: other bits", what, kind.name, static_cast<int>(format));
    EXPECT(y.gaps_untouched(), "%s, %s, format %d: wrote beside y", what, kind.name, static_cast<int>(format));
  }
}

// Watched for races everything takes ten times as long, and a race needs no large shape: fewer of them, and one format.
#ifdef PK_SIMT_RACE
constexpr int64_t kMostProducts = 100 * 1000;
constexpr bool kThorough = false;
#else
constexpr int64_t kMostProducts = 1200 * 1000;  // more is for a cache's sake, which is not here
constexpr bool kThorough = true;
#endif

void check_shapes() {
  const auto& schedules = simt::schedules();
  unsigned seed = 1;
  for (const Case& c : kCases) {
    if (products(c.shape) > kMostProducts) continue;
    for (const Kind& kind : kKinds) {
      const auto& schedule = schedules[++seed % schedules.size()];
      simt::Use use(schedule);
      const std::string what = "case " + std::to_string(&c - kCases) + ", " + schedule.name;
      if (kThorough) {
        check_case(c, kind, seed, what.c_str());
      } else {
        check_case(c, kind, seed, what.c_str(), {seed % 2 == 0 ? Format::nchw : Format::nhwc});
      }
    }
  }
}

// A few shapes under all schedules: one block and several, a split, groups, the copy of x, depthwise.
void check_schedules() {
  const Case cases[] = {
      {{1, 40, 5, 6, 72, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true},
      {{2, 64, 5, 9, 24, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, false},
      {{1, 3, 9, 8, 8, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1}, true, false, false},
      {{1, 16, 5, 5, 16, 3, 3, 2, 1, 1, 1, 0, 1, 1, 1, 2}, true, true, true},
      {{1, 24, 5, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 24}, true, true, true},
  };
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    for (const Case& c : cases) {
      check_case(c, kKinds[0], 7, schedule.name, {Format::nchw});
      check_case(c, kKinds[3], 7, schedule.name, {Format::nhwc});
    }
  }
}

// Every tile, with and without im2col, whole and split; the number of multiprocessors steers the choice. Tails of
// pixels, filters and the sum in each.
void check_tiles() {
  using cuda::conv::Math;
  using cuda::conv::Tile;
  struct TileCase {
    Case c;
    int multiprocessors;
    Tile tile;
    bool splits;
  };
  const TileCase cases[] = {
      {{{1, 24, 4, 31, 120, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true}, 1, Tile::t128x128, false},
      {{{1, 104, 4, 31, 120, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true}, 1, Tile::t128x128, false},
      {{{1, 24, 4, 31, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, false}, 1, Tile::t128x64, false},
      {{{1, 104, 4, 31, 60, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, false}, 1, Tile::t128x64, false},
      {{{2, 24, 5, 6, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, false, true, true}, 1, Tile::t64x64, false},
      {{{2, 104, 5, 6, 60, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, false, true, true}, 1, Tile::t64x64, false},
      {{{1, 200, 3, 4, 20, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true}, 108, Tile::t64x64, true},
      {{{1, 1816, 3, 4, 20, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true}, 108, Tile::t64x64, true},
      {{{1, 400, 3, 4, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2}, true, true, true}, 108, Tile::t64x64, true},
  };
  const cuda::Device before = simt::device();
  const auto& schedules = simt::schedules();
  unsigned seed = 1;
  for (size_t i = 0; i < std::size(cases); ++i) {
    const auto& [c, multiprocessors, tile, splits] = cases[i];
    simt::device().multiprocessors = multiprocessors;
    for (const Kind& kind : kKinds) {
      if (!kThorough && kind.dtype != DType::f16) continue;
      const auto& schedule = schedules[++seed % schedules.size()];
      simt::Use use(schedule);
      const Math math = kind.dtype == DType::f16    ? Math::f16
                        : kind.dtype == DType::bf16 ? Math::bf16
                        : kind.tf32                 ? Math::tf32
                                                    : Math::f32;
      const auto choice = cuda::conv::choose(c.shape, math, simt::device());
      const Tile expected = tile == Tile::t128x128 && kind.dtype == DType::f32 ? Tile::t128x64 : tile;
      EXPECT(choice.tile == expected && (choice.splits > 1) == splits, "%s, case %d: tile %d, %d splits", kind.name,
             static_cast<int>(i), static_cast<int>(choice.tile), choice.splits);
      const std::string what = "tile " + std::to_string(static_cast<int>(choice.tile)) + ", " +
                               std::to_string(choice.splits) + " splits, " + schedule.name;
      check_case(c, kind, seed, what.c_str(), {seed % 3 == 0 ? Format::nchw : Format::nhwc});
    }
  }
  simt::device() = before;
}

// int8: scales are powers of two, so that float32 holds every intermediate result and the answer is one.
void check_int8() {
  struct Int8Case {
    ConvShape shape;
    Format format;
    DType residual, y;
  };
  const Int8Case cases[] = {
      {{2, 64, 6, 7, 72, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::i8, DType::i8},
      {{1, 64, 9, 10, 130, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, Format::nhwc, DType::f16, DType::f16},
      {{1, 640, 5, 4, 24, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::f32, DType::f32},  // a split
      {{1, 3, 13, 12, 20, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1}, Format::nchw, DType::i8, DType::i8},
      {{2, 24, 7, 5, 40, 3, 2, 1, 1, 1, 0, 0, 1, 2, 1, 1}, Format::nhwc, DType::f32, DType::i8},  // copies of 8 bytes
      {{1, 36, 7, 5, 99, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3}, Format::gaps, DType::i8, DType::f16},
      {{2, 32, 9, 11, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 32}, Format::nhwc, DType::i8, DType::i8},  // depthwise
      {{1, 12, 9, 9, 36, 5, 3, 1, 2, 1, 1, 1, 1, 1, 1, 12}, Format::gaps, DType::i8, DType::f32},
  };
  const auto& schedules = simt::schedules();
  for (unsigned i = 0; i < std::size(cases); ++i) {
    const auto& [s, format, residual_dtype, y_dtype] = cases[i];
    simt::Use use(schedules[i % schedules.size()]);
    Array weight({s.k, s.c / s.groups, s.r, s.s}, DType::i8, Format::nchw), x({s.n, s.c, s.h, s.w}, DType::i8, format);
    Array residual({s.n, s.k, s.p(), s.q()}, residual_dtype, format), y({s.n, s.k, s.p(), s.q()}, y_dtype, format);
    weight.fill(i, 60.0f);  // saturates now and then: the extremes take part
    x.fill(i + 1, 60.0f);
    residual.fill(i + 2, residual_dtype == DType::i8 ? 50.0f : 3.0f);
    if (residual_dtype == DType::f32) {  // few bits, so that the sum is exact
      residual.each([&](int64_t n, int64_t k, int64_t p, int64_t q) {
        residual.set(n, k, p, q, std::nearbyint(residual.get(n, k, p, q) * 4) / 4);
      });
    }
    std::vector<float> scale, shift;
    for (int64_t k = 0; k < s.k; ++k) {
      scale.push_back(std::ldexp(1.0f, static_cast<int>(k % 3) - 10));
      shift.push_back(static_cast<float>(k % 7) * 0.25f);
    }
    const float residual_scale = 0.5f, y_scale = 0.25f;
    OnDevice on_x(x), on_residual(residual), on_y(y);
    const Bytes packed(pack(s, DType::i8, weight));
    const simt::Guarded<float> on_scale(scale), on_shift(shift);
    cuda::Int8Conv args;
    args.shape = s;
    args.x = on_x.tensor();
    args.packed = packed.data();
    args.packed_bytes = static_cast<int64_t>(packed.size());
    args.scale = on_scale.data();
    args.shift = on_shift.data();
    args.residual = on_residual.tensor();
    args.residual_dtype = residual_dtype;
    args.residual_scale = residual_scale;
    args.activation = Activation::relu;
    args.y_scale = y_scale;
    args.y_dtype = y_dtype;
    args.y = on_y.bytes.data();
    std::copy(y.stride, y.stride + 4, args.y_stride);
    int64_t bytes = 0;
    Status status = cuda::int8_conv_workspace_bytes(args, &bytes);
    EXPECT(status, "%s", status.error);
    Bytes workspace(static_cast<size_t>(bytes));
    args.workspace = workspace.data();
    args.workspace_bytes = bytes;
    status = cuda::int8_conv(args, nullptr);
    EXPECT(status, "%s", status.error);
    on_y.fetch();

    ConvArgs plain{};
    plain.shape = s;
    const auto sums = naive(plain, x, weight, residual);
    Array expected({s.n, s.k, s.p(), s.q()}, y_dtype, format);
    size_t at = 0;
    expected.each([&](int64_t n, int64_t k, int64_t p, int64_t q) {
      const auto channel = static_cast<size_t>(k);
      const double v = sums[at++] * scale[channel] + shift[channel] + residual_scale * residual.get(n, k, p, q);
      expected.set(n, k, p, q, static_cast<float>((v < 0 ? 0 : v) * y_scale));
    });
    EXPECT(y.values() == expected.values(), "int8 case %u: %g", i, test::relative_l2(y.values(), expected.values()));
    EXPECT(y.gaps_untouched(), "int8 case %u: wrote beside y", i);
  }
}

// Infinities and NaN stay within the pixels and channels that they touch: padding, padded channels and other groups
// contribute none.
void check_special_values() {
  for (const ConvShape& s : {ConvShape{1, 20, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 3, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 12, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3},
                             ConvShape{1, 21, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 21}}) {
    for (const Kind& kind : kKinds) {
      Array weight({s.k, s.c / s.groups, s.r, s.s}, kind.dtype, Format::nchw);
      Array x({s.n, s.c, s.h, s.w}, kind.dtype, Format::nhwc), y({1, s.k, s.p(), s.q()}, kind.dtype, Format::nhwc);
      weight.fill(1);
      x.fill(2);
      x.set(0, 2, 3, 4, INFINITY);
      x.set(0, 2, 7, 8, NAN);
      ConvArgs args{};
      args.shape = s;
      args.dtype = kind.dtype;
      args.tf32 = kind.tf32;
      run(args, pack(s, kind.dtype, weight), x, nullptr, y);
      y.each([&](int64_t n, int64_t k, int64_t p, int64_t q) {
        const bool of_group = k / (s.k / s.groups) == 2 / (s.c / s.groups);
        const bool infinite = of_group && std::abs(p - 3) <= 1 && std::abs(q - 4) <= 1;
        const bool nan = of_group && p >= 6 && q >= 7;
        const float v = y.get(n, k, p, q);
        // Three products of tf32 make an infinity NaN, one way or the other.
        const bool split = kind.dtype == DType::f32 && !kind.tf32 && s.groups < s.c;
        EXPECT(infinite ? (split ? !std::isfinite(v) : std::isinf(v))
               : nan    ? std::isnan(v)
                        : std::isfinite(v),
               "%s, groups %d: (%d, %d, %d): %g", kind.name, static_cast<int>(s.groups), static_cast<int>(k),
               static_cast<int>(p), static_cast<int>(q), v);
      });
    }
  }
}

void check_refusals() {
  const ConvShape good = {1, 8, 6, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const auto says = [](Status status, const char* part) {
    return !status && std::string(status.error).find(part) != std::string::npos;
  };
  Array weight({good.k, good.c, good.r, good.s}, DType::f16, Format::nchw);
  Array x({1, good.c, good.h, good.w}, DType::f16, Format::nhwc), y({1, good.k, 6, 7}, DType::f16, Format::nhwc);
  weight.fill(1);
  const Bytes packed(pack(good, DType::f16, weight));
  ConvArgs args{};
  args.shape = good;
  args.dtype = DType::f16;
  args.x = x.tensor();
  args.y = y.data();
  std::copy(y.stride, y.stride + 4, args.y_stride);
  args.packed = packed.data();
  args.packed_bytes = static_cast<int64_t>(packed.size());
  const auto refused = [&](const ConvArgs& bad, const char* part) {
    int64_t bytes;
    EXPECT(says(cuda::conv_workspace_bytes(bad, &bytes), part) && says(cuda::conv_bn_act(bad, nullptr), part), "%s",
           part);
  };
  const auto refused_shape = [&](int64_t ConvShape::* field, int64_t value, const char* part) {
    ConvArgs bad = args;
    bad.shape.*field = value;
    refused(bad, part);
    int64_t size[2];
    if (field == &ConvShape::r || field == &ConvShape::k || field == &ConvShape::groups) {
      EXPECT(says(cuda::conv_packed_size(bad.shape, DType::f16, size), part), "packing: %s", part);
    }
  };
  refused_shape(&ConvShape::k, 0, "output channel");
  refused_shape(&ConvShape::r, 0, "1 x 1");
  refused_shape(&ConvShape::r, 9, "larger than the padded input");
  refused_shape(&ConvShape::stride_h, 0, "stride");
  refused_shape(&ConvShape::dilation_w, 0, "dilation");
  refused_shape(&ConvShape::pad_left, -1, "negative");
  refused_shape(&ConvShape::groups, 0, "groups");
  refused_shape(&ConvShape::groups, 3, "groups");
  refused_shape(&ConvShape::w, int64_t{1} << 40, "2^28");
  refused_shape(&ConvShape::c, 16, "packed");
  ConvArgs bad = args;
  bad.shape.h = 0;
  bad.shape.pad_top = 5;
  refused(bad, "height and width");
  bad = args;
  bad.dtype = DType::i8;
  refused(bad, "float32, bfloat16 or float16");
  bad = args;
  bad.dtype = DType::f32;
  refused(bad, "packed");
  bad = args;
  bad.activation = static_cast<Activation>(99);
  refused(bad, "activation");
  bad = args;
  bad.packed = packed.data() + 2;
  EXPECT(says(cuda::conv_bn_act(bad, nullptr), "aligned"), "alignment of packed");
  bad = args;
  bad.x.stride[3] += 1;  // pixels at odd distances are copied
  EXPECT(says(cuda::conv_bn_act(bad, nullptr), "workspace"), "no workspace");
}

// The choice: large tiles where they fill the device, small ones and splits where they don't.
void check_choice() {
  using cuda::conv::choose;
  using cuda::conv::Math;
  using cuda::conv::Tile;
  const cuda::Device a100;
  cuda::Device h100;
  h100.capability = 90;
  h100.multiprocessors = 132;
  const auto square = [](int64_t n, int64_t c, int64_t size, int64_t k, int64_t r) {
    return ConvShape{n, c, size, size, k, r, r, 1, 1, r / 2, r / 2, r / 2, r / 2, 1, 1, 1};
  };
  for (const cuda::Device& device : {a100, h100}) {
    EXPECT(choose(square(256, 256, 14, 256, 3), Math::f16, device).tile == Tile::t128x128, "batch 256, 14");
    EXPECT(choose(square(64, 256, 56, 64, 1), Math::f16, device).tile == Tile::t128x64, "64 filters");
    EXPECT(choose(square(64, 256, 14, 256, 3), Math::f16, device).splits == 1, "batch 64 fills it");
    const auto small = choose(square(1, 512, 7, 512, 3), Math::f16, device);
    EXPECT(small.tile == Tile::t64x64 && small.splits > 2, "batch 1, 7: %d splits", small.splits);
    EXPECT(choose(square(1, 16, 7, 16, 1), Math::f16, device).splits == 1, "nothing to split");
    for (const auto math : {Math::f32, Math::tf32}) {
      EXPECT(choose(square(64, 256, 14, 256, 3), math, device).tile == Tile::t128x64, "float has no 128 x 128");
    }
    // Every split has work.
    for (const int64_t c : {64, 200, 512, 1000, 2048}) {
      for (const int64_t r : {1, 3, 5}) {
        for (const auto math : {Math::f16, Math::f32, Math::i8}) {
          const ConvShape s = square(1, c, 7, 64, r);
          const int64_t bytes = cuda::conv::element_bytes(math);
          const int64_t steps = cuda::conv::ceil_div_64(cuda::conv::packed_size(s, bytes).columns * bytes, 64);
          const int splits = choose(s, math, device).splits;
          EXPECT((splits - 1) * cuda::conv::ceil_div_64(steps, splits) < steps, "an empty split");
        }
      }
    }
  }
}

}  // namespace

int main() {
  check_shapes();
  check_schedules();
  check_tiles();
  check_int8();
  if (kThorough) check_special_values();
  check_refusals();
  check_choice();
  return test::finish();
}
