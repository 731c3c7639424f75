// The CPU's batch norm + activation, of every ISA and of wide512, against a naive loop in double.
#include <string>

#include "conv_bn_act_reference.h"
#include "cpu/batch_norm_act/kernels.h"

namespace pk::wide512 {
extern const BatchNormActKernels batch_norm_act_kernels;
}

using namespace pk;
using conv_test::Format;
using Array = conv_test::ArrayIn<std::vector<char>>;

namespace {

struct Case {
  int64_t n, h, w;
  std::vector<int64_t> channels;  // of each piece
  bool scale, shift, residual;
};

const Case kCases[] = {
    {2, 3, 5, {19}, true, true, true},    // tails of channels and of pixels
    {1, 4, 16, {32}, true, true, false},  // whole vectors
    {2, 5, 3, {16, 7, 32, 1}, true, true, true}, {1, 7, 9, {3, 0, 40}, true, false, false},  // a piece of nothing
    {3, 1, 1, {21}, false, true, true},          {1, 2, 33, {1}, true, true, true},          // one channel
    {1, 90, 70, {24}, true, true, false},   // more than a thread's share
    {0, 4, 4, {8}, true, true, false},      // no image
    {2, 6, 5, {12}, false, false, true},    // a sum
    {1, 6, 10, {34}, false, false, false},  // an activation alone
};

BatchNormTensor tensor(Array& a) { return {a.data(), a.size[1], {a.stride[0], a.stride[1], a.stride[2], a.stride[3]}}; }

void run_by(const BatchNormActArgs& args, const BatchNormActKernels* table, const Executor& executor) {
  BatchNormActPlan plan;
  const Status status = make_plan(args, &plan);
  EXPECT(status, "%s", status.error);
  if (table != nullptr) plan.kernels = table;
  run(plan, executor);
}

// With the constants of its own, if it has any and `own`; x, residual and y each in a format.
void check(const std::string& name, const Case& c, const Format (&formats)[3], DType dtype, Activation activation,
           bool own, int threads, const BatchNormActKernels* table) {
  int64_t channels = 0;
  for (const int64_t k : c.channels) channels += k;
  const auto vector = [](int64_t size, unsigned seed) { return test::normal(static_cast<size_t>(size), seed); };
  const auto scale = vector(channels, 1), shift = vector(channels, 2);
  auto parameters = vector(2 * channels, 3);
  for (int64_t k = 0; k < channels; ++k) parameters[static_cast<size_t>(channels + k)] += 3;
  std::vector<Array> xs;
  std::vector<BatchNormTensor> pieces;
  for (const int64_t k : c.channels) {
    xs.emplace_back(std::initializer_list<int64_t>{c.n, k, c.h, c.w}, dtype, formats[0]);
    xs.back().fill(static_cast<unsigned>(xs.size()) + 5);
  }
  for (Array& x : xs) pieces.push_back(tensor(x));
  Array residual({c.n, channels, c.h, c.w}, dtype, formats[1]), y({c.n, channels, c.h, c.w}, dtype, formats[2]);
  residual.fill(77);

  BatchNormActArgs args;
  args.n = c.n, args.c = channels, args.h = c.h, args.w = c.w;
  args.dtype = dtype;
  args.x = pieces.data();
  args.pieces = static_cast<int64_t>(pieces.size());
  if (c.scale) args.scale = scale.data();
  if (c.shift) args.shift = shift.data();
  if (c.residual) args.residual = tensor(residual);
  args.activation = activation;
  args.negative_slope = 0.2f;
  if (own && parameters_of(activation) > 0) args.parameters = parameters.data();
  args.y = y.data();
  std::copy(y.stride, y.stride + 4, args.y_stride);
  run_by(args, table, threads > 1 ? test::thread_executor(threads) : serial_executor());

  std::vector<double> expected;
  for (int64_t n = 0; n < c.n; ++n) {
    for (size_t piece = 0, k = 0; piece < xs.size(); ++piece) {
      for (int64_t i = 0; i < c.channels[piece]; ++i, ++k) {
        for (int64_t h = 0; h < c.h; ++h) {
          for (int64_t w = 0; w < c.w; ++w) {
            double v = xs[piece].get(n, i, h, w);
            if (c.scale) v *= scale[k];
            if (c.shift) v += shift[k];
            if (c.residual) v += residual.get(n, static_cast<int64_t>(k), h, w);
            expected.push_back(args.parameters ? test::activated(v, activation, parameters[k],
                                                                 parameters[static_cast<size_t>(channels) + k])
                                               : test::activated(v, activation, 0.2f));
          }
        }
      }
    }
  }
  const double error = test::relative_l2(y.values(), expected);
  EXPECT(error < (dtype == DType::f32 ? 3e-7 : 4e-3), "%s, dtype %d, activation %d: %g", name.c_str(),
         static_cast<int>(dtype), static_cast<int>(activation), error);
  EXPECT(y.gaps_untouched(), "%s, activation %d: wrote beside y", name.c_str(), static_cast<int>(activation));
}

void check_all(const std::string& isa, const BatchNormActKernels* table) {
  const Format nhwc = Format::nhwc, nchw = Format::nchw, gaps = Format::gaps;
  const Format layouts[][3] = {{nhwc, nhwc, nhwc}, {nchw, nchw, nchw}, {gaps, gaps, gaps}, {nhwc, gaps, gaps},
                               {nchw, nhwc, nhwc}, {nhwc, nchw, nhwc}, {gaps, nhwc, nchw}};
  int code = 0;
  for (const Case& c : kCases) {
    for (const auto& formats : layouts) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const int threads : {1, 3}) {
          const auto activation = static_cast<Activation>(code++ % kActivations);
          check(isa + ", case " + std::to_string(&c - kCases), c, formats, dtype, activation, false, threads, table);
        }
      }
    }
  }
  for (int i = 0; i < kActivations; ++i) {
    for (const bool own : {false, true}) {
      for (const Format format : {nhwc, nchw}) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
          check(isa, kCases[0], {format, format, format}, dtype, static_cast<Activation>(i), own, 1, table);
        }
      }
    }
  }
}

// -0, infinities and NaN go through a call that has nothing to do.
void check_special_values() {
  const float values[] = {-0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 3.4e38f, 2, -1, 5};
  float y[9];
  const BatchNormTensor x = {values, 9, {9, 1, 9, 9}};
  BatchNormActArgs args;
  args.n = args.h = args.w = 1, args.c = 9;
  args.dtype = DType::f32;
  args.x = &x;
  args.pieces = 1;
  args.y = y;
  std::copy(x.stride, x.stride + 4, args.y_stride);
  run_by(args, nullptr, serial_executor());
  EXPECT(std::memcmp(values, y, sizeof y) == 0, "changed");
}

void check_refusals() {
  const BatchNormTensor x = {nullptr, 8, {0, 1, 8, 8}};
  BatchNormActArgs good;
  good.n = 0, good.c = 8, good.h = good.w = 2;
  good.dtype = DType::f32;
  good.x = &x;
  good.pieces = 1;
  BatchNormActPlan plan;
  EXPECT(make_plan(good, &plan), "refused");
  const auto refused = [&](auto change) {
    BatchNormActArgs bad = good;
    change(bad);
    EXPECT(!make_plan(bad, &plan), "taken");
  };
  const float some = 0;
  refused([](auto& a) { a.dtype = DType::f16; });
  refused([](auto& a) { a.activation = static_cast<Activation>(99); });
  refused([](auto& a) { a.c = 9; });
  refused([](auto& a) { a.h = -1; });
  refused([](auto& a) { a.h = a.w = int64_t{1} << 62; });
  refused([&](auto& a) { a.parameters = &some; });
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    const Status status = force_isa(isa_name(isa));
    EXPECT(status, "%s", status.error);
    check_all(isa_name(isa), nullptr);
    check_special_values();
  }
  if (!test::is_quick()) check_all("wide512", &wide512::batch_norm_act_kernels);
  check_refusals();
  return test::finish();
}
