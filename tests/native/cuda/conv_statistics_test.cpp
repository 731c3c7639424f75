// The convolution with the statistics of its output: y as without them, mean and var those of y as it is stored; every
// tile of both engines and its tails, every dtype and memory format, bias, groups; and where no epilogue leaves them.
#include "conv_on_device.h"
#include "cuda/conv_bn_act/choose.h"

using namespace pk;             // NOLINT
using namespace pk::conv_test;  // NOLINT

namespace {

struct StatisticsCase {
  ConvShape shape;
  int capability, multiprocessors;
  bool fused;
};
const StatisticsCase kStatisticsCases[] = {
    {{1, 24, 4, 37, 120, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 80, 1, true},    // 128 x 128, two rows of tiles
    {{1, 104, 4, 31, 120, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 80, 1, true},   // less than one
    {{1, 24, 5, 37, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 80, 1, true},     // 128 x 64
    {{2, 24, 5, 7, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 80, 1, true},      // 64 x 64; a tail of 6 pixels
    {{1, 16, 5, 13, 24, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 80, 1, true},     // a tail of one pixel
    {{1, 3, 23, 25, 20, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1}, 80, 1, true},     // copies of 8 bytes
    {{2, 16, 7, 7, 70, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2}, 80, 2, true},      // groups
    {{1, 8, 1, 1, 9, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 80, 1, true},        // one value
    {{1, 400, 3, 4, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 80, 108, false},  // a split
    {{1, 24, 5, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 24}, 80, 1, false},    // depthwise
    {{0, 8, 5, 5, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 80, 1, false},       // no image
    {{1, 64, 9, 15, 60, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 90, 1, true},     // wgmma, 128 x 64
    {{1, 64, 4, 37, 120, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 90, 1, true},    // 128 x 128
    {{1, 64, 13, 25, 200, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, 90, 1, true},   // 128 x 256, a cluster with an idle block
};

void check(const StatisticsCase& c, const Kind& kind, Format format, float mean_of_bias, unsigned seed,
           const char* what) {
  const ConvShape& s = c.shape;
  Call call(s, kind.dtype, format, seed);
  Array plain({s.n, s.k, s.p(), s.q()}, kind.dtype, format);
  Array& y = call.y;
  ConvArgs& args = call.args;
  auto bias = test::normal(static_cast<size_t>(s.k), seed + 2);
  for (float& b : bias) b += mean_of_bias;
  const simt::Guarded<float> shift(bias);
  args.tf32 = kind.tf32;
  args.shift = seed % 2 ? shift.data() : nullptr;
  const Bytes packed = pack(s, kind.dtype, call.weight);
  set_packed(&args, packed);
  args.y = plain.data();
  const size_t launches_before = simt::launches();
  plan_and_run<cuda::ConvPlan>(args);
  const size_t launches_plain = simt::launches() - launches_before;

  args.y = y.data();
  cuda::ConvStatisticsPlan plan;
  succeeded(cuda::make_plan(args, format == Format::nhwc, &plan), what);
  Bytes workspace(static_cast<size_t>(plan.workspace_bytes));
  const auto k = static_cast<size_t>(s.k);
  simt::Guarded<float> mean(k), var(k);
  succeeded(cuda::run(plan, {mean.data(), var.data()}, workspace.data(), nullptr), what);
  // One kernel combines the moments; where the epilogue left none, another one reads y for them, if there is a y.
  const size_t more = simt::launches() - launches_before - 2 * launches_plain;
  EXPECT(more == (c.fused || s.n == 0 ? 1 : 2), "%s, %s: %d launches", what, kind.name, static_cast<int>(more));
  EXPECT(y.values() == plain.values(), "%s, %s: other bits than without statistics", what, kind.name);

  const double values = static_cast<double>(s.n * s.p() * s.q());
  std::vector<double> expected_mean(k), expected_var(k);
  if (values > 0) {
    y.each([&](int64_t n, int64_t i, int64_t p, int64_t q) { expected_mean[i] += y.get(n, i, p, q) / values; });
    y.each([&](int64_t n, int64_t i, int64_t p, int64_t q) {
      const double d = y.get(n, i, p, q) - expected_mean[i];
      expected_var[i] += d * d / values;
    });
  }
  for (size_t i = 0; i < k; ++i) {
    const double deviation = std::sqrt(expected_var[i]), size = std::fabs(expected_mean[i]) + deviation;
    EXPECT(std::fabs(mean[i] - expected_mean[i]) <= 1e-6 * size, "%s, %s: mean of %d: %g, not %g", what, kind.name,
           static_cast<int>(i), mean[i], expected_mean[i]);
    EXPECT(std::fabs(var[i] - expected_var[i]) <= 1e-5 * expected_var[i] + 1e-30, "%s, %s: var of %d: %g, not %g", what,
           kind.name, static_cast<int>(i), var[i], expected_var[i]);
  }
}

cuda::Device device_of(int capability, int multiprocessors) {
  cuda::Device device = capability == 90 ? test::kH100 : cuda::Device();
  device.multiprocessors = multiprocessors;
  return device;
}

void check_cases() {
  const auto& schedules = simt::schedules();
  unsigned seed = 0;
  for (const StatisticsCase& c : kStatisticsCases) {
    const On on(device_of(c.capability, c.multiprocessors));
    for (const Kind& kind : kKinds) {
      if (!kThorough && kind.dtype != DType::f16) continue;
      if (c.capability == 90 && kind.dtype == DType::f32) continue;
      const auto& schedule = schedules[++seed % schedules.size()];
      simt::Use use(schedule);
      const std::string what = "case " + std::to_string(&c - kStatisticsCases) + ", " + schedule.name;
      check(c, kind, seed / 2 % 2 ? Format::nchw : Format::nhwc, seed % 3 == 0 ? 100.0f : 0.0f, seed, what.c_str());
    }
  }
}

// Every schedule: the parts of a channel in two and in four threads, and the joining of several tiles.
void check_schedules() {
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    for (const int capability : {80, 90}) {
      const On on(device_of(capability, 1));
      check({{1, 64, 5, 29, 24, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, capability, 1, true}, kKinds[3], Format::nhwc, 0, 7,
            schedule.name);
    }
  }
}

void check_refusals() {
  const ConvShape s = {1, 8, 6, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  Call call(s, DType::f16);
  const Bytes packed = pack(s, DType::f16, call.weight);
  set_packed(&call.args, packed);
  const ConvArgs& args = call.args;
  const auto refused = [&](const ConvArgs& bad, const char* part) {
    cuda::ConvStatisticsPlan plan;
    const Status status = cuda::make_plan(bad, true, &plan);
    EXPECT(!status && std::string(status.error).find(part) != std::string::npos, "%s", part);
  };
  float v[24] = {};
  ConvArgs bad = args;
  bad.scale = v;
  refused(bad, "scale");
  bad = args;
  bad.residual = call.residual.tensor();
  refused(bad, "residual");
  bad = args;
  bad.activation = Activation::relu;
  refused(bad, "activation");
  cuda::ConvStatisticsPlan plan;
  EXPECT(cuda::make_plan(args, true, &plan) && plan.workspace_bytes > 0, "a workspace");
  bad = args;
  bad.shape.groups = 3;
  refused(bad, "groups");
}

}  // namespace

int main() {
  check_cases();
  check_schedules();
  check_refusals();
  return test::finish();
}
