// What the tests of convolution on CUDA share: arrays on the "device", a call with its workspace, and one case in one
// dtype against the naive loop, in several memory formats.
#pragma once

#include "conv_bn_act_reference.h"
#include "cuda/on_device.h"
#include "pykernels/cuda/conv_bn_act.h"

namespace pk::conv_test {

using test::Bytes;
using test::kThorough;
using test::On;
using test::plan_and_run;
using test::succeeded;
using Array = ArrayIn<Bytes>;
using Call = CallIn<Bytes>;

inline Bytes pack(const ConvShape& s, DType dtype, Array& weight) {
  cuda::ConvPackingPlan plan;
  succeeded(cuda::make_packing_plan(s, dtype, &plan), "make_packing_plan");
  Bytes packed(static_cast<size_t>(plan.packed_bytes));
  succeeded(cuda::pack(plan, weight.tensor(), packed.data(), nullptr), "pack");
  return packed;
}

template <class Args>
void set_packed(Args* args, const Bytes& packed) {
  args->packed = packed.data();
  args->packed_bytes = static_cast<int64_t>(packed.size());
}

// Packs the weight and runs.
inline void run(Call& call) {
  const Bytes packed = pack(call.args.shape, call.args.dtype, call.weight);
  set_packed(&call.args, packed);
  plan_and_run<cuda::ConvPlan>(call.args);
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
  const auto scale = test::normal(static_cast<size_t>(s.k), seed + 1),
             shift = test::normal(static_cast<size_t>(s.k), seed + 2);
  const simt::Guarded<float> on_scale(scale), on_shift(shift);
  std::vector<double> expected;
  std::vector<float> first;
  for (const Format format : formats) {
    Call call(s, kind.dtype, format, seed, seed % 2 ? Format::nchw : Format::nhwc);
    call.args.tf32 = kind.tf32;
    call.args.scale = c.scale ? on_scale.data() : nullptr;
    call.args.shift = c.shift ? on_shift.data() : nullptr;
    if (c.residual) call.args.residual = call.residual.tensor();
    call.args.activation = static_cast<Activation>(seed % kActivations);
    call.args.negative_slope = 0.2f;
    run(call);
    const auto values = call.y.values();
    if (first.empty()) first = values, expected = call.expected();
    const double error = test::relative_l2(values, expected);
    EXPECT(error < tolerance(s, kind.dtype, kind.tf32), "%s, %s, format %d: %g", what, kind.name,
           static_cast<int>(format), error);
    EXPECT(values == first, "%s, %s, format %d: other bits", what, kind.name, static_cast<int>(format));
    EXPECT(call.y.gaps_untouched(), "%s, %s, format %d: wrote beside y", what, kind.name, static_cast<int>(format));
  }
}

// int8: scales are powers of two, so that float32 holds every intermediate result and the answer is one.
struct Int8Case {
  ConvShape shape;
  Format format;
  DType residual, y;
};

inline cuda::Int8ConvArgs int8_call(const ConvShape& s, Array& x, const Bytes& packed, Array& y) {
  cuda::Int8ConvArgs args;
  args.shape = s;
  args.x = x.tensor();
  set_packed(&args, packed);
  args.y = y.data();
  args.y_dtype = y.elements.dtype();
  std::copy(y.stride, y.stride + 4, args.y_stride);
  return args;
}

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
  const Bytes packed = pack(s, DType::i8, weight);
  const simt::Guarded<float> on_scale(scale), on_shift(shift);
  cuda::Int8ConvArgs args = int8_call(s, x, packed, y);
  args.scale = on_scale.data();
  args.shift = on_shift.data();
  args.residual = residual.tensor();
  args.residual_dtype = residual_dtype;
  args.residual_scale = residual_scale;
  args.activation = Activation::relu;
  args.y_scale = y_scale;
  plan_and_run<cuda::Int8ConvPlan>(args);

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
  const Bytes packed = pack(s, DType::i8, weight);
  cuda::Int8ConvArgs args = int8_call(s, x, packed, y);
  args.y_dtype = DType::i32;
  plan_and_run<cuda::Int8ConvPlan>(args);

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

inline void check_special_case(const ConvShape& s, const Kind& kind) {
  Call call(s, kind.dtype);
  set_special_values(&call);
  call.args.tf32 = kind.tf32;
  run(call);
  // Three products of tf32 make an infinity NaN, one way or the other.
  expect_special_values(call, kind.name, kind.dtype == DType::f32 && !kind.tf32 && s.groups < s.c);
}

}  // namespace pk::conv_test
