// conv_bn_act against a naive double loop: every ISA of this machine through the API, and the AVX-512 tilings through
// the table of wide512; with each algorithm, on the shapes that it suits. Then what shapes don't show: threads, memory
// formats, infinities, overflow, bad packed weights, and which algorithm is chosen.
#include <cstring>

#include "conv_bn_act_reference.h"
#include "cpu/conv_bn_act/kernels.h"
#include "test.h"

namespace pk::wide512 {
extern const ConvKernels conv_kernels;
}

using namespace pk;
using namespace pk::conv_test;  // NOLINT

namespace {

using Array = ArrayIn<std::vector<char>>;
using Call = CallIn<std::vector<char>>;

// Of all packing below.
ConvAlgorithm algorithm = ConvAlgorithm::direct;

bool suits(const ConvShape& s) {
  return algorithm == ConvAlgorithm::direct || (s.r == 3 && s.s == 3 && s.stride_h == 1 && s.stride_w == 1 &&
                                                s.dilation_h == 1 && s.dilation_w == 1 && s.c >= s.groups);
}

ConvLayout layout_of(const ConvShape& s) {
  const int64_t c = s.c / s.groups, k = s.k / s.groups;
  const bool few = (c == 2 || c == 4 || c == 8 || c == 16) && (c == k || c == 2 * k);
  return algorithm == ConvAlgorithm::winograd4             ? ConvLayout::winograd4
         : algorithm == ConvAlgorithm::winograd2           ? ConvLayout::winograd2
         : s.groups > 1 && (c == 1 || few)                 ? ConvLayout::narrow
         : s.groups == 1 && s.c > 0 && s.c <= 8 && s.s > 1 ? ConvLayout::merged
                                                           : ConvLayout::direct;
}

// Narrow groups: every filter's loop and any filter, read where x lies and through the ring, and tails of channels.
const Case kNarrowCases[] = {
    {{1, 40, 19, 34, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 40}, true, true, true},   // wide enough to be read in place
    {{1, 72, 11, 61, 72, 3, 3, 2, 2, 0, 1, 1, 1, 1, 1, 72}, true, true, false},  // the same, strided
    {{1, 3, 9, 90, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3}, true, true, true},       // less than a vector
    {{1, 5, 7, 530, 10, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 5}, true, true, true},     // planes: in pieces, two filters each
    {{1, 6, 6, 50, 6, 3, 3, 1, 1, 1, 20, 2, 19, 1, 1, 6}, true, true, true},     // planes: vectors of padding alone
    {{2, 24, 12, 41, 24, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 24}, false, true, true},
    {{1, 33, 15, 15, 33, 5, 5, 2, 2, 2, 2, 2, 2, 1, 1, 33}, true, false, true},
    {{1, 40, 14, 70, 40, 7, 7, 1, 1, 3, 3, 3, 3, 1, 1, 40}, true, true, true},
    {{1, 80, 9, 51, 80, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 80}, true, true, false},
    {{1, 48, 13, 40, 48, 3, 3, 1, 1, 6, 6, 6, 6, 6, 6, 48}, true, true, true},  // dilated
    {{1, 16, 60, 30, 16, 3, 3, 3, 1, 9, 0, 9, 2, 9, 1, 16}, true, true, true},  // rows dilated and strided
    {{1, 16, 5, 3, 16, 3, 3, 1, 1, 5, 17, 6, 14, 1, 1, 16}, true, true, true},  // pixels and rows of padding alone
    {{1, 16, 40, 3, 16, 1, 1, 3, 3, 0, 0, 0, 0, 1, 1, 16}, true, true, false},  // rows that no filter meets
    {{1, 16, 12, 12, 16, 11, 9, 1, 1, 5, 4, 5, 4, 1, 1, 16}, true, true, true},
    {{2, 36, 9, 11, 36, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 18}, true, true, true},   // groups of 2
    {{2, 40, 7, 27, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 10}, true, true, true},   // of 4
    {{1, 72, 10, 9, 72, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 9}, true, true, false},   // of 8, strided
    {{1, 80, 6, 29, 80, 5, 3, 1, 1, 2, 2, 2, 2, 1, 2, 5}, true, true, true},    // of 16, dilated
    {{1, 64, 6, 40, 64, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 4}, true, true, true},    // of 16, 1 x 1
    {{2, 48, 31, 22, 48, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3}, true, true, true},   // of 16, Winograd's blocks of tiles
    {{1, 120, 9, 7, 75, 3, 3, 1, 1, 1, 0, 0, 1, 1, 1, 3}, true, true, true},    // of 40 and 25: panels and their tails
    {{2, 36, 9, 11, 18, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 18}, true, true, true},   // of 2 to 1
    {{1, 44, 7, 27, 22, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 11}, true, true, true},   // of 4 to 2, strided
    {{2, 72, 10, 9, 36, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 9}, true, true, true},    // of 8 to 4
    {{1, 144, 6, 29, 72, 5, 3, 1, 1, 2, 2, 2, 2, 1, 2, 9}, true, true, true},   // of 16 to 8, dilated
    {{1, 176, 6, 20, 88, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 22}, true, true, true},  // of 8 to 4, 1 x 1, several blocks
};

// 1 x 1 with maps that outweigh the weight, which are worked on a tile after the other: whole panels alone, with less
// than a panel and less than a vector beside them; several groups of panels; and the like where rows of y collide.
const Case kWideCases[] = {
    {{1, 24, 23, 19, 64, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{2, 40, 17, 15, 94, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 72, 33, 31, 37, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 700, 19, 17, 147, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 20, 7, 5, 1024, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 9, 31, 29, 20, 1, 1, 1, 1, 1, 2, 0, 1, 1, 1, 1}, true, true, true},  // padded
};

// Pixels of x that share few sets of L1, which are copied apart first: 1 x 1 by panel and by tile, strided, few pixels;
// larger filters, groups. Then dilated filters of which tiles miss whole taps.
const Case kApartCases[] = {
    {{1, 512, 5, 9, 40, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{2, 1024, 4, 6, 72, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 512, 23, 19, 40, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 256, 9, 11, 34, 1, 1, 2, 2, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 512, 6, 5, 34, 1, 1, 1, 1, 1, 0, 2, 1, 1, 1, 1}, true, true, false},
    {{1, 10, 6, 9, 10, 1, 1, 1, 1, 1, 1, 2, 1, 2, 3, 1}, true, true, true},  // a dilation that means nothing
    {{1, 512, 3, 2, 40, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true},
    {{1, 512, 5, 6, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true},
    {{2, 512, 5, 6, 96, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 16}, true, true, true},
    {{1, 20, 9, 20, 24, 3, 3, 1, 1, 4, 4, 4, 4, 4, 4, 1}, true, true, true},
    {{2, 12, 14, 15, 10, 3, 3, 1, 2, 7, 6, 5, 9, 5, 6, 1}, true, true, true},
    {{1, 12, 9, 16, 10, 2, 2, 1, 1, 3, 3, 3, 3, 6, 6, 1}, true, true, true},
    {{1, 24, 20, 20, 18, 3, 3, 1, 1, 12, 12, 12, 12, 12, 12, 3}, true, true, true},
    {{1, 12, 11, 12, 10, 3, 5, 1, 1, 2, 4, 2, 4, 2, 2, 1}, true, true, true},
};

// Packs and runs; `table` null: through the API and the ISA in force.
std::vector<char> pack(const ConvShape& shape, DType dtype, Array& weight, const ConvKernels* table,
                       const Executor& executor) {
  if (table == nullptr) {
    ConvPlan plan;
    const Status status = make_packing_plan(shape, algorithm, dtype, &plan);
    EXPECT(status, "%s", status.error);
    std::vector<char> packed(static_cast<size_t>(plan.packed_bytes));
    pk::pack(plan, weight.tensor(), packed.data(), executor);
    return packed;
  }
  const ConvMethod& method = *table->methods[static_cast<int>(layout_of(shape))];
  std::vector<char> packed(static_cast<size_t>(4 * method.packed_floats(shape)));
  method.pack(shape, dtype, weight.tensor(), reinterpret_cast<float*>(packed.data()), executor);
  return packed;
}

void run_planned(const ConvPlan& plan, const Executor& executor) {
  std::vector<char> workspace(static_cast<size_t>(plan.workspace_bytes), char(0xff));  // NaN
  pk::run(plan, workspace.data(), executor);
}

void run(ConvArgs args, const std::vector<char>& packed, const ConvKernels* table, const Executor& executor) {
  args.packed = packed.data();
  args.packed_bytes = static_cast<int64_t>(packed.size());
  ConvPlan plan;
  if (table == nullptr) {
    const Status status = make_plan(args, executor.threads, &plan);
    EXPECT(status, "%s", status.error);
    run_planned(plan, executor);
    return;
  }
  if (args.shape.n == 0) return;
  const ConvMethod& method = *table->methods[static_cast<int>(layout_of(args.shape))];
  const int64_t bytes = method.plan(args, executor.threads, plan.blocking);
  std::vector<char> workspace(static_cast<size_t>(bytes + kConvAlign), char(0xff));
  char* aligned = workspace.data() + (kConvAlign - reinterpret_cast<uintptr_t>(workspace.data()) % kConvAlign);
  method.run(plan.blocking, args, reinterpret_cast<const float*>(packed.data()), aligned, executor);
}

// Packs the weight and runs.
void run(Call& call, const ConvKernels* table = nullptr, const Executor& executor = serial_executor()) {
  run(call.args, pack(call.args.shape, call.args.dtype, call.weight, table, executor), table, executor);
}

double error_of(const Call& call) { return test::relative_l2(call.y.values(), call.expected()); }

void check_shapes(const char* name, const ConvKernels* table) {
  std::vector<Case> cases(std::begin(kCases), std::end(kCases));
  cases.insert(cases.end(), std::begin(kNarrowCases), std::end(kNarrowCases));
  cases.insert(cases.end(), std::begin(kWideCases), std::end(kWideCases));
  cases.insert(cases.end(), std::begin(kApartCases), std::end(kApartCases));
  unsigned seed = 1;
  int activation = 0;
  for (const Case& c : cases) {
    if (!suits(c.shape)) continue;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      ++seed;
      const ConvShape& s = c.shape;
      const auto scale = test::normal(static_cast<size_t>(s.k), seed + 1),
                 shift = test::normal(static_cast<size_t>(s.k), seed + 2);
      const auto kind = static_cast<Activation>(activation++ % kActivations);
      // fp32: the error of a sum grows with the root of its length; the transforms of F(4, 3) add some ten roundings,
      // see check_accuracy. bf16: half a unit of 8 bits.
      const double length = static_cast<double>(s.c / s.groups * s.r * s.s) + 4;
      const double transforms = algorithm == ConvAlgorithm::winograd4 ? 6e-7 : 0;
      const double tolerance = dtype == DType::f32 ? 6e-8 * std::sqrt(length) + 3e-7 + transforms : 4e-3;
      std::vector<double> expected;
      std::vector<float> first;
      for (const Format format : {Format::nhwc, Format::nchw, Format::gaps}) {
        for (const int threads : {1, 3}) {
          Call call(s, dtype, format, seed, seed % 2 ? Format::nchw : Format::nhwc);
          call.args.scale = c.scale ? scale.data() : nullptr;
          call.args.shift = c.shift ? shift.data() : nullptr;
          if (c.residual) call.args.residual = call.residual.tensor();
          call.args.activation = kind;
          call.args.negative_slope = 0.2f;
          if (expected.empty()) expected = call.expected();
          run(call, table, threads > 1 ? test::thread_executor(threads) : serial_executor());
          const auto values = call.y.values();
          if (first.empty()) first = values;
          const std::string what = std::string(name) + ", case " + std::to_string(&c - cases.data()) + ", dtype " +
                                   std::to_string(static_cast<int>(dtype)) + ", format " +
                                   std::to_string(static_cast<int>(format)) + ", " + std::to_string(threads) +
                                   " threads";
          const double error = test::relative_l2(values, expected);
          EXPECT(error < tolerance, "%s: %g", what.c_str(), error);
          EXPECT(values == first, "%s: other bits", what.c_str());
          EXPECT(call.y.gaps_untouched(), "%s: wrote beside y", what.c_str());
        }
      }
    }
  }
}

// Tails of output channels and pixels; the second by planes.h in NCHW.
constexpr ConvShape kTails = {1, 20, 6, 7, 41, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
constexpr ConvShape kPlanes = {1, 20, 12, 13, 41, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1};

// Every activation on a case, in each layout of y and of the residual: the same bits in all of them.
void check_activations(const char* name, const ConvKernels* table, const ConvShape& s) {
  if (!suits(s)) return;
  const std::vector<float> scale(static_cast<size_t>(s.k), 0.1f);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (int i = 0; i < kActivations; ++i) {
      std::vector<double> expected;
      std::vector<float> first;
      for (const Format format : {Format::nhwc, Format::nchw, Format::gaps}) {
        for (const Format other : {Format::nhwc, Format::nchw}) {
          Call call(s, dtype, s.r == 1 ? format : Format::nhwc);
          call.y = Array({s.n, s.k, s.p(), s.q()}, dtype, format);
          call.args.y = call.y.data();
          std::copy(call.y.stride, call.y.stride + 4, call.args.y_stride);
          call.residual = Array({s.n, s.k, s.p(), s.q()}, dtype, other);
          call.residual.fill(5);
          call.args.residual = call.residual.tensor();
          call.args.scale = scale.data();
          call.args.activation = static_cast<Activation>(i);
          call.args.negative_slope = -0.5f;
          run(call, table);
          if (expected.empty()) expected = call.expected(), first = call.y.values();
          const double error = test::relative_l2(call.y.values(), expected);
          EXPECT(error < (dtype == DType::f32 ? 2e-6 : 4e-3), "%s, dtype %d, activation %d: %g", name,
                 static_cast<int>(dtype), i, error);
          EXPECT(call.y.values() == first, "%s, dtype %d, activation %d, formats %d and %d: other bits", name,
                 static_cast<int>(dtype), i, static_cast<int>(format), static_cast<int>(other));
          EXPECT(call.y.gaps_untouched(), "%s, activation %d: wrote beside y", name, i);
        }
      }
    }
  }
}

// Constants of the activation's own, another for each channel, in each layout of y.
void check_parameters(const char* name, const ConvKernels* table, const ConvShape& s) {
  if (!suits(s)) return;
  const std::vector<float> scale(static_cast<size_t>(s.k), 0.1f);
  auto parameters = test::normal(static_cast<size_t>(2 * s.k), 9);
  for (int64_t k = 0; k < s.k; ++k) parameters[static_cast<size_t>(s.k + k)] += 3;  // upper bounds above the lower ones
  for (const Activation activation : {Activation::leaky_relu, Activation::elu, Activation::silu, Activation::relu6}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      std::vector<float> first;
      for (const Format format : {Format::nhwc, Format::nchw, Format::gaps}) {
        Call call(s, dtype, format);
        call.args.scale = scale.data();
        call.args.activation = activation;
        call.args.parameters = parameters.data();
        run(call, table);
        if (first.empty()) first = call.y.values();
        EXPECT(error_of(call) < (dtype == DType::f32 ? 2e-6 : 4e-3), "%s, dtype %d, activation %d: %g", name,
               static_cast<int>(dtype), static_cast<int>(activation), error_of(call));
        EXPECT(call.y.values() == first, "%s, activation %d: other bits", name, static_cast<int>(activation));
        EXPECT(call.y.gaps_untouched(), "%s, activation %d: wrote beside y", name, static_cast<int>(activation));
      }
    }
  }
}

void check_special_values(const char* name, const ConvKernels* table) {
  for (const ConvShape& s : {ConvShape{1, 20, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 3, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 21, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 21},
                             ConvShape{1, 24, 8, 30, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 24},
                             ConvShape{1, 32, 8, 9, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2},
                             ConvShape{1, 24, 8, 9, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 6}}) {
    if (!suits(s)) continue;
    Call call(s, DType::f32);
    set_special_values(&call);
    run(call, table);
    expect_special_values(call, name);
  }
}

// The error on data of unit variance, whatever the number of channels. u = 6e-8: an output of F(4, 3) is a combination
// of 36 products whose coefficients and whose transformed factors are larger than itself; its relative error is 9 u
// from the transforms and, for sums cut into slices of 32, sqrt((32 + c / 32) / 6) * 3 u from the products: in all less
// than 1e-6 up to 512 channels. F(2, 3) has a third of that.
void check_accuracy(const char* name, const ConvKernels* table) {
  for (const int64_t c : {64, 512}) {
    const ConvShape s = {1, c, 10, 9, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    Call call(s, DType::f32);
    run(call, table);
    EXPECT(error_of(call) < (algorithm == ConvAlgorithm::winograd4 ? 1e-6 : 4e-7), "%s, %d channels: %g", name,
           static_cast<int>(c), error_of(call));
  }
}

// Finite sums stay finite, and exact, where only the transforms overflow.
void check_overflow(const char* name, const ConvKernels* table) {
  Call call({1, 20, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, DType::f32);
  call.weight.fill(1, 0.03f);
  call.x.fill(2, 3e37f);
  run(call, table);
  EXPECT(error_of(call) < 2e-6, "%s: %g", name, error_of(call));
}

// The choice: never what does not suit, direct where little is to be gained, and what was measured to win.
void check_choice() {
  const auto choice = [](ConvShape s, bool packs) {
    ConvAlgorithm chosen;
    const Status status = conv_choose(s, packs, &chosen);
    EXPECT(status, "%s", status.error);
    return chosen;
  };
  const auto square = [](int64_t n, int64_t c, int64_t size, int64_t k) {
    return ConvShape{n, c, size, size, k, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  };
  const auto direct = ConvAlgorithm::direct, four = ConvAlgorithm::winograd4, two = ConvAlgorithm::winograd2;
  EXPECT(choice(square(1, 64, 56, 64), false) == four, "large map");
  EXPECT(choice(square(1, 128, 28, 128), false) == four, "28");
  EXPECT(choice(square(1, 256, 14, 256), false) == four, "14");
  EXPECT(choice(square(1, 512, 7, 512), false) == two, "7: the weight of F(4, 3) costs too much");
  EXPECT(choice(square(16, 512, 7, 512), false) == four, "7, but a batch that shares the weight");
  EXPECT(choice(square(1, 512, 4, 512), false) == direct, "4: the weight of both costs too much");
  EXPECT(choice(square(1, 3, 224, 64), false) == direct, "few channels");
  EXPECT(choice(square(1, 8, 64, 16), false) == direct, "8 channels");
  EXPECT(choice(square(1, 16, 80, 16), false) == four, "16 channels");
  EXPECT(choice(square(1, 64, 56, 64), true) == four, "a large map pays for packing");
  EXPECT(choice(square(1, 512, 7, 512), true) == direct, "a small one does not");
  EXPECT(choice(square(0, 64, 56, 64), false) == direct, "no image");
  const auto grouped = [&](int64_t groups, int64_t width, int64_t size) {
    ConvShape s = square(1, groups * width, size, groups * width);
    s.groups = groups;
    return s;
  };
  EXPECT(choice(grouped(20, 16, 14), false) == four, "groups of 16");
  EXPECT(choice(grouped(16, 8, 56), false) == direct, "groups of 8");
  EXPECT(choice(grouped(48, 16, 7), false) == direct, "groups whose weight costs too much");
  EXPECT(choice(grouped(64, 1, 56), false) == direct, "depthwise");
  for (auto field : {&ConvShape::stride_h, &ConvShape::stride_w, &ConvShape::dilation_h, &ConvShape::dilation_w}) {
    ConvShape s = square(1, 64, 56, 64);
    s.*field = 2;
    EXPECT(choice(s, false) == direct, "does not suit");
  }
  for (auto field : {&ConvShape::r, &ConvShape::s}) {
    ConvShape s = square(1, 64, 56, 64);
    s.*field = 5;
    EXPECT(choice(s, false) == direct, "does not suit");
  }
  ConvAlgorithm chosen;
  ConvShape bad = square(1, 64, 56, 64);
  bad.k = 0;
  EXPECT(!conv_choose(bad, false, &chosen), "a bad shape");
}

// Packed for Winograd: refused where it does not suit, at packing or at the call.
void check_winograd_refusals() {
  ConvPlan plan;
  for (const ConvShape& s : {ConvShape{1, 8, 6, 7, 24, 5, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 8, 6, 7, 24, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2},
                             ConvShape{1, 0, 6, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}}) {
    const Status status = make_packing_plan(s, ConvAlgorithm::winograd4, DType::f32, &plan);
    EXPECT(!status && std::string(status.error).find("algorithm") == 0, "packed what does not suit");
  }
  const ConvShape good = {1, 8, 9, 9, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  Call call(good, DType::f32);
  const auto packed = pack(good, DType::f32, call.weight, nullptr, serial_executor());
  ConvArgs& args = call.args;
  args.packed = packed.data();
  args.packed_bytes = static_cast<int64_t>(packed.size());
  for (auto field : {&ConvShape::stride_h, &ConvShape::stride_w, &ConvShape::dilation_h, &ConvShape::dilation_w}) {
    args.shape = good;
    args.shape.*field = 2;
    const Status status = make_plan(args, 1, &plan);
    EXPECT(!status && std::string(status.error).find("stride 1") != std::string::npos, "ran what does not suit");
  }
}

// An image's bits are those of the image alone.
void check_batch(const char* name) {
  for (const ConvShape& s : {ConvShape{5, 24, 6, 7, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{5, 24, 6, 27, 24, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 24},
                             ConvShape{5, 24, 6, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 6}}) {
    if (!suits(s)) continue;
    Call call(s, DType::f32);
    Array alone({1, s.k, s.p(), s.q()}, DType::f32, Format::nhwc);
    const auto packed = pack(s, DType::f32, call.weight, nullptr, serial_executor());
    run(call.args, packed, nullptr, test::thread_executor(3));
    call.args.shape.n = 1;
    call.args.x.data = static_cast<float*>(call.x.data()) + 3 * call.x.stride[0];
    call.args.y = alone.data();
    run(call.args, packed, nullptr, serial_executor());
    bool same = true;
    alone.each(
        [&](int64_t, int64_t c, int64_t h, int64_t w) { same &= alone.get(0, c, h, w) == call.y.get(3, c, h, w); });
    EXPECT(same, "%s, groups %d", name, static_cast<int>(s.groups));
  }
}

// Zero times infinity is NaN. Where taps meet padding, neither tiles nor the ways in which edges are computed may tell:
// depthwise leaves rows of padding out for all pixels, and dense filters for none.
void check_infinite_weight(const char* name, const ConvKernels* table) {
  for (const ConvShape& s : {ConvShape{1, 32, 6, 40, 32, 5, 5, 1, 1, 2, 2, 2, 2, 1, 1, 32},
                             ConvShape{1, 20, 12, 13, 24, 3, 3, 1, 1, 6, 6, 6, 6, 6, 6, 1}}) {
    std::vector<float> first;
    for (const Format format : {Format::nhwc, Format::nchw, Format::gaps}) {
      for (const int threads : {1, 3}) {
        Call call(s, DType::f32, format);
        call.weight.set(3, 0, 0, 0, INFINITY);
        run(call, table, threads > 1 ? test::thread_executor(threads) : serial_executor());
        EXPECT(s.groups > 1 || std::isnan(call.y.get(0, 3, 0, 0)), "%s: not NaN at a padded pixel", name);
        auto values = call.y.values();
        for (float& v : values) v = std::isnan(v) ? 12345.0f : v;
        if (first.empty()) first = values;
        EXPECT(values == first, "%s, format %d, %d threads: other bits", name, static_cast<int>(format), threads);
      }
    }
  }
}

bool says(Status status, const char* part) {
  return !status && std::string(status.error).find(part) != std::string::npos;
}

// One plan packs and runs any number of times, with the bits of plans of their own, also where another ISA has come in
// force since; the next plan is of the new one.
void check_plan(const char* name) {
  for (const ConvShape& s : {ConvShape{1, 24, 6, 7, 40, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 64, 28, 28, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{2, 20, 6, 7, 20, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 20}}) {
    Call call(s, DType::f32, Format::nchw), expected(s, DType::f32, Format::nchw);
    ConvArgs& args = call.args;
    ConvPlan plan;
    Status status = make_packing_plan(args, 3, &plan);
    EXPECT(status, "%s", status.error);
    ConvAlgorithm chosen;
    status = conv_choose(s, true, &chosen);
    EXPECT(status && plan.algorithm == chosen, "%s: another algorithm than conv_choose's", name);
    std::vector<char> packed(static_cast<size_t>(plan.packed_bytes));
    pk::pack(plan, call.weight.tensor(), packed.data(), serial_executor());
    args.packed = packed.data();
    args.packed_bytes = plan.packed_bytes;
    for (const unsigned seed : {2u, 3u}) {
      call.x.fill(seed);
      args.y = expected.y.data();
      run(args, packed, nullptr, serial_executor());
      status = force_isa("scalar");
      EXPECT(status, "%s", status.error);
      args.y = call.y.data();
      plan.args = args;
      run_planned(plan, test::thread_executor(3));
      EXPECT(call.y.values() == expected.y.values(), "%s: other bits by a plan that is used again", name);
      ConvPlan next;
      status = make_packing_plan(args, 1, &next);
      EXPECT(status, "%s", status.error);
      const bool other = next.lanes != plan.lanes;
      EXPECT(other == says(make_plan(args, 1, &next), "another ISA"), "%s: the ISA of the next plan", name);
      status = force_isa(name);
      EXPECT(status, "%s", status.error);
    }
  }
}

// Every plan refuses a bad shape, and with the same words.
Status check_shape(const ConvShape& shape) {
  ConvAlgorithm chosen;
  ConvPlan plan;
  ConvArgs args{};
  args.shape = shape;
  args.dtype = DType::f32;
  const Status status = conv_choose(shape, false, &chosen);
  const Status others[] = {make_packing_plan(shape, ConvAlgorithm::direct, DType::f32, &plan),
                           make_packing_plan(args, 1, &plan), make_plan(args, 1, &plan)};
  for (const Status& other : others) {
    if (!status) EXPECT(says(other, status.error), "%s: %s", status.error, other.error ? other.error : "accepted");
  }
  return status;
}

void check_refusals() {
  const ConvShape good = {1, 8, 6, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const auto refused = [&](int64_t ConvShape::* field, int64_t value, const char* part) {
    ConvShape bad = good;
    bad.*field = value;
    const Status status = check_shape(bad);
    EXPECT(says(status, part), "%s: %s", part, status.error ? status.error : "accepted");
  };
  EXPECT(check_shape(good), "a good shape");
  refused(&ConvShape::k, 0, "weight");
  refused(&ConvShape::r, 0, "weight");
  refused(&ConvShape::r, 9, "larger than the padded input");
  refused(&ConvShape::stride_h, 0, "stride");
  refused(&ConvShape::dilation_w, 0, "dilation");
  refused(&ConvShape::pad_left, -1, "negative");
  refused(&ConvShape::groups, 0, "groups");
  refused(&ConvShape::groups, 3, "groups");
  refused(&ConvShape::h, 0, "height and width");
  refused(&ConvShape::w, int64_t{1} << 40, "2^31");
  ConvShape huge = good;
  huge.n = huge.h = huge.w = huge.c = int64_t{1} << 30;
  EXPECT(says(check_shape(huge), "too large"), "huge");
  // Every tensor fits, the multiply-adds don't; nor do the threads' rows of x.
  const int64_t k = 1 << 20;
  EXPECT(says(check_shape({1, k, 1024, 1024, k, 9, 9, 1, 1, 4, 4, 4, 4, 1, 1, 1}), "too large"), "work");
  EXPECT(says(check_shape({1, 2, k, k, k << 10, 1, 1, k, k, 0, 0, 0, 0, 1, 1, 2}), "too large"), "rows");

  Call call(good, DType::f32);
  const auto packed = pack(good, DType::f32, call.weight, nullptr, serial_executor());
  ConvArgs& args = call.args;
  const auto opened = [&](const std::vector<char>& blob) {
    args.packed = blob.data();
    args.packed_bytes = static_cast<int64_t>(blob.size());
    ConvPlan plan;
    return make_plan(args, 1, &plan);
  };
  const auto altered = [&](auto ConvHeader::* field, auto value) {
    auto blob = packed;
    ConvHeader header;
    std::memcpy(&header, blob.data(), sizeof header);
    header.*field = value;
    std::memcpy(blob.data(), &header, sizeof header);
    return opened(blob);
  };
  EXPECT(opened(packed), "the blob as it is");
  EXPECT(says(opened({packed.begin(), packed.begin() + 100}), "shorter than its header"), "truncated header");
  EXPECT(says(opened({packed.begin(), packed.end() - 4}), "size"), "truncated");
  auto longer = packed;
  longer.resize(packed.size() + 4);
  EXPECT(says(opened(longer), "size"), "too long");
  EXPECT(says(opened(std::vector<char>(packed.size(), 0)), "magic"), "zeros");
  EXPECT(says(altered(&ConvHeader::version, 99u), "version"), "version");
  EXPECT(says(altered(&ConvHeader::lanes, 3), "another ISA"), "lanes");
  EXPECT(says(altered(&ConvHeader::layout, 77), "layout"), "layout");
  EXPECT(says(altered(&ConvHeader::layout, -1), "layout"), "layout");
  EXPECT(says(altered(&ConvHeader::layout, 1), "does not suit"), "layout of another method");
  EXPECT(says(altered(&ConvHeader::k, int64_t{48}), "another shape"), "k");
  EXPECT(says(altered(&ConvHeader::groups, int64_t{2}), "another shape"), "groups");
  EXPECT(says(altered(&ConvHeader::floats, int64_t{1}), "size"), "floats");
  args.dtype = DType::i8;
  EXPECT(says(opened(packed), "float32 or bfloat16"), "dtype");
  ConvPlan plan;
  EXPECT(says(make_packing_plan(args, 1, &plan), "float32 or bfloat16"), "dtype, unpacked");
  EXPECT(says(make_packing_plan(good, ConvAlgorithm::direct, DType::i8, &plan), "float32 or bfloat16"),
         "dtype, packing");
  EXPECT(says(make_packing_plan(good, static_cast<ConvAlgorithm>(9), DType::f32, &plan), "algorithm"), "algorithm");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    if (isa == Isa::neon_dotprod) continue;  // runs scalar's
    const Status status = force_isa(isa_name(isa));
    EXPECT(status, "%s", status.error);
    check_shapes(isa_name(isa), nullptr);
    check_parameters(isa_name(isa), nullptr, kTails);
    check_parameters(isa_name(isa), nullptr, kPlanes);
    check_special_values(isa_name(isa), nullptr);
    check_batch(isa_name(isa));
    check_infinite_weight(isa_name(isa), nullptr);
    check_plan(isa_name(isa));
    check_refusals();
  }
  if (!test::is_quick()) {
    check_shapes("wide512", &wide512::conv_kernels);
    check_activations("wide512", &wide512::conv_kernels, kTails);
    check_activations("wide512", &wide512::conv_kernels, kPlanes);
    check_parameters("wide512", &wide512::conv_kernels, kTails);
    check_parameters("wide512", &wide512::conv_kernels, kPlanes);
    check_special_values("wide512", &wide512::conv_kernels);
    check_infinite_weight("wide512", &wide512::conv_kernels);
  }
  check_choice();

  for (const auto winograd : {ConvAlgorithm::winograd4, ConvAlgorithm::winograd2}) {
    algorithm = winograd;
    const std::string f = winograd == ConvAlgorithm::winograd4 ? "F(4, 3)" : "F(2, 3)";
    const auto check_all = [&](const std::string& name, const ConvKernels* table) {
      check_shapes(name.c_str(), table);
      check_activations(name.c_str(), table, kTails);
      check_activations(name.c_str(), table, kPlanes);
      check_parameters(name.c_str(), table, kTails);
      check_parameters(name.c_str(), table, kPlanes);
      check_special_values(name.c_str(), table);
      check_accuracy(name.c_str(), table);
      check_overflow(name.c_str(), table);
    };
    for (const Isa isa : test::host_isas()) {
      if (isa == Isa::neon_dotprod) continue;
      const Status status = force_isa(isa_name(isa));
      EXPECT(status, "%s", status.error);
      check_all(isa_name(isa) + (" " + f), nullptr);
      check_batch(isa_name(isa));
      check_winograd_refusals();
    }
    if (!test::is_quick()) check_all("wide512 " + f, &wide512::conv_kernels);
  }
  return test::finish();
}
