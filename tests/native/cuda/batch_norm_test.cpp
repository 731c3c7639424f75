// The batch-norm kernels against double: statistics, forward, all gradients; every layout, dtype and activation, tails,
// cancellation, the smallest sizes; the same bits under every schedule.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "activated.h"
#include "cuda/batch_norm_act/choose.h"
#include "cuda/on_device.h"
#include "pykernels/cuda/batch_norm_act.h"

using namespace pk;
using namespace pk::cuda;
using pk::test::activated;
using pk::test::Doubles;
using pk::test::normal;
using pk::test::OnDevice;
using pk::test::relative_l2;

namespace {

constexpr auto kNone = Activation::none, kRelu = Activation::relu, kLeaky = Activation::leaky_relu,
               kSilu = Activation::silu;
constexpr auto f32 = DType::f32, f16_ = DType::f16, bf16_ = DType::bf16;

constexpr double kRoundoff = 5.97e-8;  // of float32

struct Case {
  const char* name;
  int64_t n, c, hw;
  bool last = true;
  DType dtype = DType::f32;
  Activation activation = Activation::relu;
  bool residual = false;
  bool affine = true;
  float mean = 0.5f, deviation = 2.0f;
  int shift = 0;  // elements that the tensors lie behind an aligned address
  bool batch_statistics = true;
  bool outlier = false;  // the first value of each channel is far off
};

// The derivative by a central difference: no formula in common with the kernels'.
double derivative(double z, Activation a, double slope) {
  const double h = 1e-6;
  return (activated(z + h, a, slope) - activated(z - h, a, slope)) / (2 * h);
}

// Everything in double. Index i of a dense tensor belongs to channel channel(i).
struct Expected {
  Doubles mean, var, y, dx, dresidual, dweight, dbias;

  Expected(const Case& k, const OnDevice& x, const OnDevice* residual, const OnDevice& dy,
           const std::vector<float>& weight, const std::vector<float>& bias, float eps, float slope) {
    const int64_t m = k.n * k.hw, size = m * k.c;
    const auto channel = [&](int64_t i) { return k.last ? i % k.c : i / k.hw % k.c; };
    mean.assign(k.c, 0), var.assign(k.c, 0), dweight.assign(k.c, 0), dbias.assign(k.c, 0);
    for (int64_t i = 0; i < size; ++i) mean[channel(i)] += x[i] / m;
    for (int64_t i = 0; i < size; ++i) var[channel(i)] += (x[i] - mean[channel(i)]) * (x[i] - mean[channel(i)]) / m;
    Doubles xhat(size);
    y.resize(size), dx.resize(size), dresidual.resize(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = channel(i);
      xhat[i] = (x[i] - mean[c]) / std::sqrt(var[c] + eps);
      const double z =
          xhat[i] * (k.affine ? weight[c] : 1.0) + (k.affine ? bias[c] : 0.0) + (residual ? (*residual)[i] : 0);
      y[i] = activated(z, k.activation, slope);
      dresidual[i] = dy[i] * derivative(z, k.activation, slope);
      dbias[c] += dresidual[i];
      dweight[c] += dresidual[i] * xhat[i];
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = channel(i);
      const double common = k.batch_statistics ? (dbias[c] + xhat[i] * dweight[c]) / m : 0;
      dx[i] = (k.affine ? weight[c] : 1.0) / std::sqrt(var[c] + eps) * (dresidual[i] - common);
    }
  }
};

std::vector<float> zeros(size_t n) { return std::vector<float>(n, 0.0f); }

// Runs all of it; appends every output's bytes to `bits`.
void run(const Case& k, std::string* bits) {
  const BatchNormShape shape = {k.n, k.c, k.hw, k.last};
  const size_t size = k.n * k.c * k.hw, m = k.n * k.hw;
  const float eps = 1e-5f, slope = 0.2f, momentum = 0.25f;
  std::vector<float> values = normal(size, 1, k.deviation);
  for (size_t i = 0; i < size; ++i) {
    values[i] += k.mean;
    if (k.outlier && (k.last ? i < size_t(k.c) : i % (k.c * k.hw) % k.hw == 0)) values[i] += 300 * k.deviation;
  }
  OnDevice x(k.dtype, values, k.shift), dy(k.dtype, normal(size, 2), k.shift), r(k.dtype, normal(size, 3), k.shift);
  std::vector<float> weight = normal(k.c, 4), bias = normal(k.c, 5);
  for (float& w : weight) w = 1 + 0.25f * w;
  const Expected expected(k, x, k.residual ? &r : nullptr, dy, weight, bias, eps, slope);

  simt::Guarded<float> mean(k.c), var(k.c), running_mean(zeros(k.c)), running_var(zeros(k.c));
  BatchNormStatisticsPlan statistics;
  EXPECT(bool(make_plan(shape, k.dtype, &statistics)));
  simt::Guarded<uint8_t> workspace(statistics.workspace_bytes);
  EXPECT(
      bool(cuda::run(statistics, x.data(), {mean.data(), var.data(), running_mean.data(), running_var.data(), momentum},
                     workspace.data(), nullptr)));

  OnDevice y(k.dtype, size, k.shift), dx(k.dtype, size, k.shift), dresidual(k.dtype, size, k.shift);
  const simt::Guarded<float> w(weight), b(bias);
  BatchNormActArgs forward;
  forward.shape = shape;
  forward.dtype = k.dtype;
  forward.x = x.data();
  forward.residual = k.residual ? r.data() : nullptr;
  forward.y = y.data();
  forward.mean = mean.data();
  forward.var = var.data();
  forward.weight = k.affine ? w.data() : nullptr;
  forward.bias = k.affine ? b.data() : nullptr;
  forward.eps = eps;
  forward.activation = k.activation;
  forward.negative_slope = slope;
  BatchNormActPlan plan;
  EXPECT(bool(make_plan(forward, &plan)));
  EXPECT((plan.mask_bytes > 0) == (k.residual && (k.activation == kRelu || k.activation == kLeaky)), "%s", k.name);
  simt::Guarded<uint8_t> mask(plan.mask_bytes);
  forward.mask = plan.args.mask = plan.mask_bytes ? mask.data() : nullptr;
  EXPECT(bool(cuda::run(plan, nullptr)));

  simt::Guarded<float> dweight(k.c), dbias(k.c);
  BatchNormActBackwardArgs backward;
  backward.forward = forward;
  backward.forward.y = nullptr;
  backward.grad_y = dy.data();
  backward.grad_x = dx.data();
  backward.grad_residual = k.residual ? dresidual.data() : nullptr;
  backward.grad_weight = dweight.data();
  backward.grad_bias = dbias.data();
  backward.batch_statistics = k.batch_statistics;
  BatchNormActBackwardPlan backward_plan;
  EXPECT(bool(make_plan(backward, &backward_plan)));
  EXPECT(plan.mask_bytes == 0 || backward_plan.mask_bytes == plan.mask_bytes, "%s", k.name);
  simt::Guarded<uint8_t> sums(backward_plan.workspace_bytes);
  EXPECT(bool(cuda::run(backward_plan, sums.data(), nullptr)));
  EXPECT(simt::take_error().empty(), "%s", k.name);

  // What rounding may do: x - mean is exact but for mean's own rounding, which counts |mean| / deviation in x^.
  double condition = 0;
  for (int64_t c = 0; c < k.c; ++c)
    condition = std::max(condition, std::fabs(expected.mean[c]) / std::sqrt(expected.var[c] + eps));
  const double exact = (condition + 16) * kRoundoff;
  const double stored = k.dtype == DType::f32 ? 0 : k.dtype == DType::f16 ? 4.9e-4 : 3.9e-3;
  for (int64_t c = 0; c < k.c; ++c) {
    const double deviation = std::sqrt(expected.var[c]);
    EXPECT(std::fabs(mean[c] - expected.mean[c]) <= 4 * kRoundoff * (std::fabs(expected.mean[c]) + deviation),
           "%s: mean of channel %d: %g, not %g", k.name, int(c), mean[c], expected.mean[c]);
    const double off = std::fabs(var[c] - expected.var[c]);
    EXPECT(off <= 4 * exact * expected.var[c] + 1e-30, "%s: var of channel %d: %g, not %g", k.name, int(c), var[c],
           expected.var[c]);
    EXPECT(std::fabs(running_mean[c] - momentum * mean[c]) <= kRoundoff * std::fabs(mean[c]));
    if (m > 1) {
      EXPECT(std::fabs(running_var[c] - momentum * var[c] * m / (m - 1)) <= 4 * kRoundoff * var[c], "%s", k.name);
    }
  }
  const auto near = [&](const char* what, const std::vector<float>& got, const Doubles& want, double tolerance) {
    const double error = relative_l2(got, want);
    EXPECT(error <= tolerance, "%s: %s is off by %.3g > %.3g", k.name, what, error, tolerance);
  };
  near("y", y.floats(), expected.y, stored + exact);
  near("dweight", dweight.vector(), expected.dweight, 8 * exact);
  near("dbias", dbias.vector(), expected.dbias, 8 * exact);
  if (m == 1) {
    for (const float d : dx.floats()) EXPECT(d == 0);
  } else if (m > 2) {  // of two values what is left of dx is mostly rounding
    near("dx", dx.floats(), expected.dx, 2 * stored + 4 * exact);
  }
  if (k.residual) near("dresidual", dresidual.floats(), expected.dresidual, stored + 4 * exact);

  const auto keep = [&](const auto& array) {
    bits->append(reinterpret_cast<const char*>(array.data()), array.size() * sizeof(*array.data()));
  };
  keep(mean), keep(var), keep(running_mean), keep(running_var), keep(mask), keep(dweight), keep(dbias);
  for (OnDevice* array : {&y, &dx}) bits->append(static_cast<const char*>(array->data()), array->bytes());
}

const Case kCases[] = {
    {"channels_last", 2, 24, 9, true},
    {"channels_last, rows over several slabs", 4, 8, 601, true, f16_},
    {"channels_last, residual", 2, 16, 21, true, bf16_, kRelu, true},
    {"channels_last, wide", 2, 8 * 33, 5, true, f32, kRelu, true},
    {"channels_last, tail", 2, 13, 35, true, f32, kRelu, true},
    {"channels_last, tail over blocks", 1, 261, 7, true, f16_, kLeaky, true},
    {"channels_last, three channels", 2, 3, 150, true, bf16_, kNone},
    {"channels_last, one channel", 3, 1, 50, true, f32, kLeaky},
    {"channels_last, unaligned", 2, 16, 21, true, f16_, kRelu, true, true, 0.5f, 2.0f, 1},
    {"planes", 3, 5, 64, false},
    {"planes, many images", 40, 2, 16, false, f16_, kRelu, true},
    {"planes, wide", 2, 2, 8 * 35, false, bf16_, kLeaky, true},
    {"planes, tail", 3, 4, 49, false, f32, kRelu, true},
    {"planes, tail over blocks", 2, 2, 267, false, f16_, kSilu, true},
    {"planes, one pixel", 9, 6, 1, false, f32, kRelu, true},
    {"planes, unaligned", 2, 3, 16, false, bf16_, kRelu, true, true, 0.5f, 2.0f, 3},
    {"none", 2, 16, 9, true, f32, kNone},
    {"none, residual", 2, 16, 9, true, f16_, kNone, true},
    {"no weight", 2, 16, 9, true, f32, kRelu, true, false},
    {"silu", 2, 16, 9, true, bf16_, kSilu},
    {"silu, residual", 2, 16, 9, true, f32, kSilu, true},
    {"leaky, no residual", 2, 11, 9, false, f32, kLeaky},
    {"large mean", 4, 8, 300, true, f32, kNone, false, true, 1000.0f, 0.01f},
    {"large mean, planes", 4, 3, 100, false, f32, kRelu, true, true, -1000.0f, 0.01f},
    {"large mean, f16", 4, 8, 100, true, f16_, kNone, false, true, 1000.0f, 2.0f},
    {"outlier first", 4, 8, 200, true, f32, kNone, false, true, 0.5f, 1.0f, 0, true, true},
    {"outlier first, planes", 4, 2, 90, false, f32, kNone, false, true, 0.5f, 1.0f, 0, true, true},
    {"fixed statistics", 2, 16, 21, true, f32, kRelu, true, true, 0.5f, 2.0f, 0, false},
    {"count 1", 1, 24, 1, true, f32, kRelu, true},
    {"count 1, planes", 1, 5, 1, false, f32, kNone},
    {"count 2", 2, 5, 1, true, f32, kNone},
};

// And every activation, behind a residual.
std::vector<Case> cases() {
  std::vector<Case> all(std::begin(kCases), std::end(kCases));
  for (int code = 0; code < kActivations; ++code) {
    all.push_back({"an activation", 2, 16, 9, true, f32, static_cast<Activation>(code), true});
  }
  return all;
}

void sizes_that_are_zero() {
  for (const BatchNormShape shape :
       {BatchNormShape{0, 8, 4}, {2, 8, 0}, {2, 0, 4}, {0, 8, 4, false}, {2, 0, 4, false}}) {
    std::vector<float> mean(shape.c, 7), var(shape.c, 7), running(shape.c, 3), dweight(shape.c, 7), dbias(shape.c, 7);
    BatchNormStatisticsPlan statistics;
    EXPECT(bool(make_plan(shape, f32, &statistics)) && statistics.workspace_bytes == 0);
    EXPECT(bool(cuda::run(statistics, nullptr, {mean.data(), var.data(), running.data(), running.data()}, nullptr,
                          nullptr)) ||
           shape.c == 0);
    BatchNormActBackwardArgs backward;
    backward.forward.shape = shape;
    backward.forward.mean = mean.data();
    backward.forward.var = var.data();
    backward.grad_weight = dweight.data();
    backward.grad_bias = dbias.data();
    BatchNormActPlan plan;
    EXPECT(bool(make_plan(backward.forward, &plan)) && bool(cuda::run(plan, nullptr)));
    BatchNormActBackwardPlan backward_plan;
    EXPECT(bool(make_plan(backward, &backward_plan)) && bool(cuda::run(backward_plan, nullptr, nullptr)));
    for (int64_t c = 0; c < shape.c; ++c) {
      EXPECT(mean[c] == 0 && var[c] == 0 && running[c] == 3 && dweight[c] == 0 && dbias[c] == 0);
    }
    EXPECT(simt::take_error().empty());
  }
}

// NaN and infinity: of one channel only, and never made into zeros by relu.
void not_finite() {
  const BatchNormShape shape = {1, 8, 20};
  for (const float bad : {NAN, INFINITY}) {
    std::vector<float> x = normal(160, 1), y(160), mean(8), var(8), workspace(1000);
    x[8 * 7 + 3] = bad;
    BatchNormStatisticsPlan statistics;
    EXPECT(bool(make_plan(shape, f32, &statistics)) && statistics.workspace_bytes <= 4000);
    EXPECT(bool(cuda::run(statistics, x.data(), {mean.data(), var.data()}, workspace.data(), nullptr)));
    BatchNormActArgs a;
    a.shape = shape, a.x = x.data(), a.y = y.data(), a.mean = mean.data(), a.var = var.data(), a.activation = kRelu;
    BatchNormActPlan plan;
    EXPECT(bool(make_plan(a, &plan)) && bool(cuda::run(plan, nullptr)));
    for (int i = 0; i < 160; ++i) EXPECT(std::isnan(y[i]) == (i % 8 == 3), "%d", i);
  }
}

// As a convolution's epilogue leaves them: parts of a fixed number of rows, the last one short.
void parts() {
  const int64_t rows = 1000, c = 37;
  const std::vector<float> x = normal(rows * c, 6);
  for (const int64_t per : {1, 7, 64, 1000, 4096}) {
    const int64_t count = (rows + per - 1) / per;
    simt::Guarded<float> moments(count * 2 * c);
    Doubles mean(c), var(c);
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t p = 0; p < count; ++p) {
        const int64_t end = std::min(rows, (p + 1) * per);
        double sum = 0, m2 = 0;
        for (int64_t r = p * per; r < end; ++r) sum += x[r * c + i];
        const float part = static_cast<float>(sum / (end - p * per));
        for (int64_t r = p * per; r < end; ++r) m2 += (x[r * c + i] - part) * double(x[r * c + i] - part);
        moments[(2 * p) * c + i] = part;
        moments[(2 * p + 1) * c + i] = static_cast<float>(m2);
        mean[i] += sum / rows;
      }
      for (int64_t r = 0; r < rows; ++r) var[i] += (x[r * c + i] - mean[i]) * (x[r * c + i] - mean[i]) / rows;
    }
    simt::Guarded<float> got_mean(c), got_var(c);
    EXPECT(bool(batch_norm_combine({count, per, rows, c, moments.data()}, {got_mean.data(), got_var.data()}, nullptr)));
    EXPECT(simt::take_error().empty());
    EXPECT(relative_l2(got_mean.vector(), mean) < 2e-6, "%d", int(per));
    EXPECT(relative_l2(got_var.vector(), var) < 1e-6, "%d", int(per));
    EXPECT(!batch_norm_combine({count + 1, per, rows, c, moments.data()}, {got_mean.data(), got_var.data()}, nullptr));
  }
}

void refuses() {
  float v[8] = {};
  BatchNormStatisticsPlan statistics;
  EXPECT(!make_plan({-1, 8, 4}, f32, &statistics));
  EXPECT(!make_plan({1, int64_t{1} << 31, 4}, f32, &statistics));
  EXPECT(!make_plan({1 << 30, 1 << 30, 1 << 30}, f32, &statistics));
  EXPECT(!make_plan({1, 8, 4}, DType::i8, &statistics));
  EXPECT(!batch_norm_combine({0, 1, 0, 8, nullptr}, {nullptr, v}, nullptr));
  BatchNormActBackwardArgs b;
  b.forward.shape = {1, 1, 1};
  b.forward.residual = v;
  b.forward.activation = kRelu;
  BatchNormActBackwardPlan plan;
  EXPECT(!make_plan(b, &plan), "no mask");
  uint8_t mask = 0;
  b.forward.mask = &mask;
  EXPECT(bool(make_plan(b, &plan)), "a mask");
  b.forward.activation = kSilu;
  EXPECT(!make_plan(b, &plan), "a mask that nothing reads");
}

// Slabs cover all rows once, whatever the device; the mask's order knows no device.
void plans() {
  for (const BatchNormShape s : {BatchNormShape{64, 64, 56 * 56},
                                 {64, 2048, 49},
                                 {1, 3, 1},
                                 {256, 64, 112 * 112, false},
                                 {1, 64, 512 * 512, false},
                                 {64, 512, 49, false},
                                 {5, 7, 11},
                                 {1 << 20, 1, 1 << 10},
                                 {1 << 28, 8, 1, false}}) {
    for (const int blocks : {1, 108, 264, 1584}) {
      const bn::Slabs p = bn::choose_slabs(s, blocks);
      EXPECT(p.rows == (s.channels_last ? s.n * s.hw : s.n));
      EXPECT(p.rows * p.values_per_row == s.n * s.hw);
      EXPECT(p.slabs >= 1 && p.slabs <= bn::kMostSlabs);
      EXPECT(p.slabs * p.rows_per_slab >= p.rows && (p.slabs - 1) * p.rows_per_slab < p.rows);
      EXPECT(p.width == bn::choose_slabs(s, 1).width && p.width <= 32 && bn::kThreads % p.width == 0);
      EXPECT(s.channels_last ? p.columns * p.width >= p.groups : p.columns == s.c);
    }
  }
  // ResNet-50's largest and smallest maps at batch 64 fill an H100, in about one wave.
  const bn::Slabs large = bn::choose_slabs({64, 256, 56 * 56}, 132 * bn::kMomentsBlocks);
  EXPECT(large.width == 32 && large.columns == 1 && large.slabs > 132 * 2 && large.slabs <= 132 * bn::kMomentsBlocks);
  const bn::Slabs small = bn::choose_slabs({64, 2048, 49}, 132 * bn::kMomentsBlocks);
  EXPECT(small.columns == 8 && small.slabs * small.columns > 132 * 2 &&
         small.slabs * small.columns <= 132 * bn::kMomentsBlocks);
}

}  // namespace

int main() {
  plans();
  refuses();
  for (const int multiprocessors : {1, 3}) {
    simt::device().multiprocessors = multiprocessors;
    for (const Case& k : cases()) {
      std::string first;
      for (const auto& schedule : simt::schedules()) {
        const simt::Use use(schedule);
        std::string bits;
        run(k, &bits);
        if (first.empty()) first = bits;
        EXPECT(bits == first, "%s, activation %d: other bits under %s", k.name, static_cast<int>(k.activation),
               schedule.name);
        if (multiprocessors == 3) break;
      }
    }
  }
  sizes_that_are_zero();
  not_finite();
  parts();
  return pk::test::finish();
}
