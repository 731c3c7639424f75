// run_chain against the same plans run one by one: the same bits, on every ISA, for any number of threads and images,
// whatever lies in the memory between; and which calls go by bands of rows, by what they leave of that memory.
#include <cstring>
#include <memory>

#include "cpu/conv_bn_act/kernels.h"
#include "pykernels/conv_bn_act.h"
#include "test.h"

namespace pk::wide512 {
extern const ConvKernels conv_kernels;
}

using namespace pk;

namespace {

// A convolution of `widen` x widen taps from c to k channels, a depthwise one, or one of `groups`, and, unless `out` is
// 0, a 1x1 one.
struct Case {
  int64_t n, c, h, w, k, widen, widen_stride, taps, stride, out;
  Activation activation;
  bool residual, by_bands;
  int64_t groups = 0;
};

const Case kCases[] = {
    {1, 16, 52, 45, 96, 1, 1, 3, 2, 24, Activation::relu6, false, true},
    {1, 24, 56, 56, 144, 1, 1, 3, 1, 24, Activation::relu6, true, true},
    {2, 20, 61, 37, 100, 1, 1, 5, 1, 30, Activation::silu, true, true},        // tails of vectors, an image each
    {3, 20, 61, 37, 100, 1, 1, 5, 2, 30, Activation::hardswish, false, true},  // three by two threads
    {1, 3, 141, 130, 32, 3, 2, 3, 1, 16, Activation::relu6, false, true},      // what a network begins with
    {1, 24, 60, 50, 76, 1, 1, 7, 2, 0, Activation::silu, false, true},         // two alone
    {1, 24, 60, 50, 76, 1, 1, 3, 1, 0, Activation::relu, false, true},
    {1, 24, 60, 50, 96, 1, 1, 3, 2, 24, Activation::relu, true, true, 6},   // narrow.cpp
    {2, 24, 61, 53, 96, 1, 1, 3, 1, 24, Activation::relu, false, true, 3},  // direct.cpp
    {3, 20, 61, 37, 100, 1, 1, 3, 2, 0, Activation::silu, false, true, 5},
    {1, 3, 141, 130, 32, 3, 2, 3, 2, 16, Activation::relu6, false, true, 2},
    {1, 16, 60, 60, 96, 1, 1, 11, 1, 24, Activation::relu, false, true, 24},  // whose padding is more than a band
    {1, 16, 40, 40, 256, 1, 1, 3, 2, 16, Activation::relu, false, true, 8},   // which copies its rows
    {1, 64, 40, 40, 512, 1, 1, 3, 1, 0, Activation::relu, false, false, 16},  // of a weight too large for each band
    {1, 32, 14, 14, 192, 1, 1, 3, 1, 32, Activation::relu6, true, false},     // in L2 anyway
    {1, 16, 52, 45, 96, 2, 1, 3, 1, 24, Activation::relu6, false, false},     // reads its neighbours
    {1, 16, 60, 60, 96, 1, 1, 11, 1, 24, Activation::relu6, false, false},
};

using Floats = std::vector<float>;

void nhwc(int64_t (&stride)[4], int64_t c, int64_t h, int64_t w) {
  stride[0] = c * h * w, stride[1] = 1, stride[2] = w * c, stride[3] = c;
}

struct Conv {
  Floats weight, scale, shift;
  std::vector<char> packed;
  ConvPlan plan;

  Conv(const ConvShape& shape, Activation activation, int threads, const ConvKernels* table, unsigned seed) {
    const int64_t depth = shape.c / shape.groups * shape.r * shape.s;
    weight = test::normal(static_cast<size_t>(shape.k * depth), seed, 1 / std::sqrt(static_cast<float>(depth)));
    scale = test::normal(static_cast<size_t>(shape.k), seed + 1);
    shift = test::normal(static_cast<size_t>(shape.k), seed + 2);
    ConvArgs args;
    args.shape = shape;
    args.dtype = DType::f32;
    args.activation = activation;
    args.scale = scale.data();
    args.shift = shift.data();
    nhwc(args.x.stride, shape.c, shape.h, shape.w);
    nhwc(args.y_stride, shape.k, shape.p(), shape.q());
    ConvPlan packing;
    Status status = make_packing_plan(shape, ConvAlgorithm::direct, DType::f32, &packing);
    EXPECT(status, "%s", status.error);
    const ConvMethod* method = table ? table->methods[packing.layout] : packing.method;
    packed.resize(sizeof(ConvHeader) + static_cast<size_t>(4 * method->packed_floats(shape)));
    packing.method = method;
    pk::pack(packing, {weight.data(), {depth, shape.r * shape.s, shape.s, 1}}, packed.data(), serial_executor());
    if (table) {
      plan = packing;
      plan.args = args;
      plan.workspace_bytes = method->plan(args, threads, plan.blocking) + kConvAlign;
    } else {
      args.packed = packed.data();
      args.packed_bytes = static_cast<int64_t>(packed.size());
      status = make_plan(args, threads, &plan);
      EXPECT(status, "%s", status.error);
    }
    plan.args.packed = packed.data();
  }
  size_t y_floats() const { return static_cast<size_t>(plan.args.shape.n * plan.args.y_stride[0]); }
};

const float kFill = -77;

struct Chain {
  std::vector<std::unique_ptr<Conv>> convs;
  Floats x, residual;
  std::vector<Floats> y;

  Chain(const Case& test, int threads, const ConvKernels* table) {
    const int64_t pad = test.widen / 2, reach = test.taps / 2;
    const ConvShape first = {
        test.n, test.c, test.h, test.w, test.k, test.widen, test.widen, test.widen_stride, test.widen_stride,
        pad,    pad,    pad,    pad,    1,      1,          1};
    const ConvShape second = {
        test.n,      test.k, first.p(), first.q(), test.k, test.taps, test.taps, test.stride,
        test.stride, reach,  reach,     reach,     reach,  1,         1,         test.groups ? test.groups : test.k};
    convs.push_back(std::make_unique<Conv>(first, test.activation, threads, table, 1));
    convs.push_back(std::make_unique<Conv>(second, test.activation, threads, table, 4));
    if (test.out) {
      const ConvShape third = {test.n, test.k, second.p(), second.q(), test.out, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1};
      convs.push_back(std::make_unique<Conv>(third, Activation::none, threads, table, 7));
    }
    x = test::normal(static_cast<size_t>(test.n * test.c * test.h * test.w), 10);
    for (auto& conv : convs) y.emplace_back(conv->y_floats(), kFill);
    if (test.residual) residual = test::normal(y.back().size(), 11);
    for (size_t i = 0; i < convs.size(); ++i) {
      convs[i]->plan.args.x.data = i ? y[i - 1].data() : x.data();
      convs[i]->plan.args.y = y[i].data();
    }
    ConvArgs& last = convs.back()->plan.args;
    if (test.residual) last.residual.data = residual.data();
    std::memcpy(last.residual.stride, last.y_stride, sizeof last.y_stride);
  }

  int64_t workspace_bytes() const {
    int64_t most = 0;
    for (const auto& conv : convs) most = std::max(most, conv->plan.workspace_bytes);
    return most;
  }
  void one_by_one(const Executor& executor) {
    std::vector<char> workspace(static_cast<size_t>(workspace_bytes()));
    for (auto& conv : convs) pk::run(conv->plan, workspace.data(), executor);
  }
  void together(const std::vector<int64_t>& kept, const Executor& executor) {
    std::vector<char> workspace(static_cast<size_t>(workspace_bytes()), char(0xff));
    std::vector<ConvPlan> plans;
    for (auto& conv : convs) plans.push_back(conv->plan);
    run_chain(plans.data(), kept.data(), static_cast<int64_t>(plans.size()), workspace.data(), executor);
  }
};

bool same(const Floats& a, const Floats& b) { return std::memcmp(a.data(), b.data(), a.size() * 4) == 0; }

// The last element of the first y is what bands leave alone, for it is larger than what they take.
bool went_by_bands(const Chain& chain) { return chain.y[0].back() == kFill; }

void check(const char* name, const ConvKernels* table) {
  for (const int threads : {1, 2, 3}) {
    const Executor executor = threads == 1 ? serial_executor() : test::thread_executor(threads);
    for (const Case& test : kCases) {
      const auto at = [&] { return static_cast<int>(&test - kCases); };
      Chain expected(test, threads, table), got(test, threads, table), kept(test, threads, table);
      expected.one_by_one(executor);
      const std::vector<int64_t> none(expected.convs.size(), 0), all(expected.convs.size(), 1);
      got.together(none, executor);
      EXPECT(same(got.y.back(), expected.y.back()), "%s, case %d, %d threads", name, at(), threads);
      // With more threads a strip of some cases is small enough to stay in L2.
      if (threads == 1 || !test.by_bands) {
        EXPECT(went_by_bands(got) == test.by_bands, "%s, case %d, %d threads: by bands", name, at(), threads);
      }
      kept.together(all, executor);
      for (size_t i = 0; i < kept.y.size(); ++i) {
        EXPECT(same(kept.y[i], expected.y[i]), "%s, case %d, %d threads: y %d is kept", name, at(), threads, int(i));
      }
    }
  }
}

// The last result may lie where x or the first one did.
void check_memory(const char* name) {
  for (const bool over_x : {true, false}) {
    for (const Case& test : {kCases[0], kCases[5]}) {
      Chain expected(test, 1, nullptr), got(test, 1, nullptr);
      expected.one_by_one(serial_executor());
      Floats& y = over_x ? got.x : got.y[0];
      if (!over_x && !test.out) continue;  // read by the very step that writes it
      if (y.size() < got.y.back().size()) y.resize(got.y.back().size());
      got.convs[0]->plan.args.x.data = got.x.data();
      got.convs.back()->plan.args.y = y.data();
      got.together(std::vector<int64_t>(got.convs.size(), 0), serial_executor());
      EXPECT(std::memcmp(y.data(), expected.y.back().data(), expected.y.back().size() * 4) == 0, "%s, over x: %d", name,
             over_x);
    }
  }
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (isa == Isa::neon_dotprod) continue;  // runs scalar's
    const Status status = force_isa(isa_name(isa));
    EXPECT(status, "%s", status.error);
    check(isa_name(isa), nullptr);
    check_memory(isa_name(isa));
  }
  if (test::is_quick()) return test::finish();
  check("wide512", &wide512::conv_kernels);
  return test::finish();
}
