// What the tests of convolution on CUDA share: arrays on the "device", a call with its workspace, and one case in one
// dtype against the naive loop, in several memory formats.
#pragma once

#include <cstring>
#include <optional>

#include "conv_bn_act_reference.h"
#include "pykernels/cuda/conv_bn_act.h"
#include "simt/simt.h"
#include "test.h"

namespace pk::conv_test {

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

inline std::vector<unsigned char> pack(const ConvShape& s, DType dtype, Array& weight) {
  cuda::ConvPackingPlan plan;
  Status status = cuda::make_packing_plan(s, dtype, &plan);
  EXPECT(status, "%s", status.error);
  Bytes packed(static_cast<size_t>(plan.packed_bytes));
  OnDevice source(weight);
  status = cuda::pack(plan, source.tensor(), packed.data(), nullptr);
  EXPECT(status, "%s", status.error);
  return packed.vector();
}

// A plan of `args`, and its run, in a workspace of NaN.
template <class Plan, class Args>
void plan_and_run(const Args& args) {
  Plan plan;
  Status status = cuda::make_plan(args, &plan);
  EXPECT(status, "%s", status.error);
  Bytes workspace(static_cast<size_t>(plan.workspace_bytes));
  if (workspace.size() > 0) std::memset(workspace.data(), 0xff, workspace.size());
  status = cuda::run(plan, workspace.data(), nullptr);
  EXPECT(status, "%s", status.error);
}

// y of `args`, whose x, residual and y are the host's arrays.
inline void run(ConvArgs args, const std::vector<unsigned char>& packed_bytes, Array& x, Array* residual, Array& y) {
  OnDevice on_x(x), on_y(y);
  Bytes packed(packed_bytes);
  args.x = on_x.tensor();
  args.packed = packed.data();
  args.packed_bytes = static_cast<int64_t>(packed.size());
  args.y = on_y.bytes.data();
  std::copy(y.stride, y.stride + 4, args.y_stride);
  std::optional<OnDevice> on_residual;
  args.residual = {};
  if (residual != nullptr) args.residual = on_residual.emplace(*residual).tensor();
  plan_and_run<cuda::ConvPlan>(args);
  on_y.fetch();
}

// Half a unit in the last place of the output, and the error of float32 sums. tf32 rounds each factor to 11 bits, and
// so errs before the activation, whose saturation then shrinks the output more than the error.
inline double tolerance(const ConvShape& s, DType dtype, bool tf32) {
  const double length = static_cast<double>(s.c / s.groups * s.r * s.s) + 4;
  const double sum = 6e-8 * std::sqrt(length) + 3e-7;
  return dtype == DType::bf16 ? 4e-3 : dtype == DType::f16 ? 5e-4 : tf32 ? 2e-3 : sum;
}

struct Kind {
  DType dtype;
  bool tf32;
  const char* name;
};
inline const Kind kKinds[] = {
    {DType::f32, false, "f32"}, {DType::f32, true, "tf32"}, {DType::bf16, false, "bf16"}, {DType::f16, false, "f16"}};

// One case in one dtype; the bits must not depend on the format.
inline void check_case(const Case& c, const Kind& kind, unsigned seed, const char* what,
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

// int8: scales are powers of two, so that float32 holds every intermediate result and the answer is one.
struct Int8Case {
  ConvShape shape;
  Format format;
  DType residual, y;
};

inline void check_int8_case(const Int8Case& c, unsigned i) {
  const auto& [s, format, residual_dtype, y_dtype] = c;
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
  cuda::Int8ConvArgs args;
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
  plan_and_run<cuda::Int8ConvPlan>(args);
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

// The sums themselves, of numbers so large that float32 would round them.
inline void check_int8_sums(const Int8Case& c, unsigned i) {
  const ConvShape& s = c.shape;
  Array weight({s.k, s.c / s.groups, s.r, s.s}, DType::i8, Format::nchw), x({s.n, s.c, s.h, s.w}, DType::i8, c.format);
  Array y({s.n, s.k, s.p(), s.q()}, DType::f32, c.format);  // int32's bits; what it does not use is a NaN
  weight.each([&](int64_t k, int64_t ch, int64_t r, int64_t q) {
    weight.set(k, ch, r, q, static_cast<float>(127 - (k + ch + r + q) % 5));
  });
  x.each([&](int64_t n, int64_t ch, int64_t h, int64_t w) {
    x.set(n, ch, h, w, static_cast<float>((3 * ch + 2 * h + w) % 7 - 128));
  });
  OnDevice on_x(x), on_y(y);
  const Bytes packed(pack(s, DType::i8, weight));
  cuda::Int8ConvArgs args;
  args.shape = s;
  args.x = on_x.tensor();
  args.packed = packed.data();
  args.packed_bytes = static_cast<int64_t>(packed.size());
  args.y_dtype = DType::i32;
  args.y = on_y.bytes.data();
  std::copy(y.stride, y.stride + 4, args.y_stride);
  plan_and_run<cuda::Int8ConvPlan>(args);
  on_y.fetch();

  ConvArgs plain{};
  plain.shape = s;
  const auto sums = naive(plain, x, weight, y);
  size_t at = 0;
  int64_t wrong = 0;
  y.each([&](int64_t n, int64_t k, int64_t p, int64_t q) {
    wrong += std::bit_cast<int32_t>(y.get(n, k, p, q)) != sums[at++];
  });
  EXPECT(wrong == 0, "int8 sums %u: %d wrong", i, static_cast<int>(wrong));
  EXPECT(y.gaps_untouched(), "int8 sums %u: wrote beside y", i);
}

// Infinities and NaN stay within the pixels and channels that they touch: padding, padded channels and other groups
// contribute none.
inline void check_special_case(const ConvShape& s, const Kind& kind) {
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
    const bool nan = of_group && std::abs(p - 7) <= 1 && std::abs(q - 8) <= 1;
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

}  // namespace pk::conv_test
