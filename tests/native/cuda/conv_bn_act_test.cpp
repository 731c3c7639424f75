// conv_bn_act on CUDA against the naive loop: the CPU's shapes in every dtype and memory format, each under a schedule
// of its own, and a few under all; every tile, split and copy width; int8 to the bit; infinities; refusals; the choice.
// Arrays end at unmapped pages, so nothing is read or written past an end.
#include "pykernels/cuda/conv_bn_act.h"

#include "conv_on_device.h"
#include "cuda/conv_bn_act/choose.h"

using namespace pk;             // NOLINT
using namespace pk::conv_test;  // NOLINT

namespace {

int64_t products(const ConvShape& s) { return s.n * s.k * s.p() * s.q() * (s.c / s.groups) * s.r * s.s; }

// A cache's sake, for which the largest are, is not here, and a race needs no large shape.
constexpr int64_t kMostProducts = kThorough ? 1200 * 1000 : 100 * 1000;

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
  const auto& schedules = simt::schedules();
  unsigned seed = 1;
  for (size_t i = 0; i < std::size(cases); ++i) {
    const auto& [c, multiprocessors, tile, splits] = cases[i];
    const On on({.multiprocessors = multiprocessors});
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
}

void check_int8() {
  const Int8Case cases[] = {
      {{2, 64, 6, 7, 72, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::i8, DType::i8},
      {{1, 64, 9, 10, 130, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, Format::nhwc, DType::f16, DType::f16},
      {{1, 640, 5, 4, 24, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::f32, DType::f32},  // a split
      {{1, 3, 13, 12, 20, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1}, Format::nchw, DType::i8, DType::i8},
      {{2, 24, 7, 5, 40, 3, 2, 1, 1, 1, 0, 0, 1, 2, 1, 1}, Format::nhwc, DType::f32, DType::i8},  // copies of 8 bytes
      {{1, 36, 7, 5, 99, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3}, Format::gaps, DType::i8, DType::f16},
      {{2, 32, 9, 11, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 32}, Format::nhwc, DType::i8, DType::i8},  // depthwise
      {{1, 12, 9, 9, 36, 5, 3, 1, 2, 1, 1, 1, 1, 1, 1, 12}, Format::gaps, DType::i8, DType::f32},
      {{1, 64, 7, 6, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::bf16, DType::bf16},
      {{1, 24, 6, 5, 19, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, Format::nchw, DType::f32, DType::bf16},
  };
  // Sums that float32 does not hold: one tile, a split, copies of 8 bytes, depthwise.
  const Int8Case sums[] = {
      {{1, 160, 4, 5, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::i8, DType::i32},
      {{1, 640, 5, 4, 24, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1}, Format::gaps, DType::i8, DType::i32},
      {{1, 24, 13, 12, 20, 7, 7, 2, 2, 3, 3, 3, 3, 1, 1, 1}, Format::nchw, DType::i8, DType::i32},
      {{1, 32, 9, 11, 32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 32}, Format::nhwc, DType::i8, DType::i32},
  };
  const auto& schedules = simt::schedules();
  for (unsigned i = 0; i < std::size(cases); ++i) {
    simt::Use use(schedules[i % schedules.size()]);
    check_int8_case(cases[i], i);
  }
  for (unsigned i = 0; i < std::size(sums); ++i) {
    simt::Use use(schedules[i % schedules.size()]);
    check_int8_sums(sums[i], i);
  }
  cuda::Int8ConvArgs bad;
  bad.shape = cases[0].shape;
  bad.y_dtype = DType::i32;
  bad.y_scale = 2.0f;
  cuda::Int8ConvPlan plan;
  EXPECT(!cuda::make_plan(bad, &plan), "int32 beside a scale");
  bad.y_dtype = DType::i8;
  bad.residual_dtype = DType::i32;
  EXPECT(!cuda::make_plan(bad, &plan), "an int32 residual");
}

void check_special_values() {
  for (const ConvShape& s : {ConvShape{1, 20, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 3, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 12, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3},
                             ConvShape{1, 21, 8, 9, 21, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 21}}) {
    for (const Kind& kind : kKinds) check_special_case(s, kind);
  }
}

void check_refusals() {
  const ConvShape good = {1, 8, 6, 7, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const auto says = [](Status status, const char* part) {
    return !status && std::string(status.error).find(part) != std::string::npos;
  };
  Call call(good, DType::f16);
  const Bytes packed = pack(good, DType::f16, call.weight);
  set_packed(&call.args, packed);
  const ConvArgs& args = call.args;
  const auto refused = [&](const ConvArgs& bad, const char* part) {
    cuda::ConvPlan plan;
    EXPECT(says(cuda::make_plan(bad, &plan), part), "%s", part);
  };
  const auto refused_shape = [&](int64_t ConvShape::* field, int64_t value, const char* part) {
    ConvArgs bad = args;
    bad.shape.*field = value;
    refused(bad, part);
    cuda::ConvPackingPlan packing;
    if (field == &ConvShape::r || field == &ConvShape::k || field == &ConvShape::groups) {
      EXPECT(says(cuda::make_packing_plan(bad.shape, DType::f16, &packing), part), "packing: %s", part);
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
  refused(bad, "aligned");
  bad = args;
  bad.x.stride[3] += 1;  // pixels at odd distances are copied
  cuda::ConvPlan plan;
  EXPECT(cuda::make_plan(args, &plan) && plan.workspace_bytes == 0, "no workspace");
  EXPECT(cuda::make_plan(bad, &plan) && plan.workspace_bytes > 0, "a workspace");
}

// What the fake kernel of conv_pack says too (tests/ops/test_conv_bn_act.py has the same table).
void check_packed_sizes() {
  struct {
    ConvShape shape;
    DType dtype;
    int64_t rows, columns;
  } const sizes[] = {
      {{0, 3, 7, 7, 64, 7, 7, 1, 1, 0, 0, 0, 0, 1, 1, 1}, DType::f16, 64, 200},
      {{0, 3, 7, 7, 64, 7, 7, 1, 1, 0, 0, 0, 0, 1, 1, 1}, DType::f32, 64, 196},
      {{0, 12, 3, 3, 8, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1}, DType::bf16, 8, 112},
      {{0, 26, 3, 3, 8, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 2}, DType::f16, 8, 144},
      {{0, 20, 3, 3, 20, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 20}, DType::f16, 9, 24},
      {{0, 3, 3, 3, 8, 3, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1}, DType::i8, 8, 80},
  };
  for (const auto& [shape, dtype, rows, columns] : sizes) {
    cuda::ConvPackingPlan plan = {};
    const Status status = cuda::make_packing_plan(shape, dtype, &plan);
    EXPECT(status && plan.rows == rows && plan.columns == columns, "%d x %d", static_cast<int>(plan.rows),
           static_cast<int>(plan.columns));
  }
}

// The choice: large tiles where they fill the device, small ones and splits where they don't.
void check_choice() {
  using cuda::conv::choose;
  using cuda::conv::Math;
  using cuda::conv::Tile;
  const cuda::Device a100;
  cuda::Device later;  // as a Hopper without wgmma: conv_sm90_test has the rest
  later.capability = 100;
  later.multiprocessors = 132;
  const auto square = [](int64_t n, int64_t c, int64_t size, int64_t k, int64_t r) {
    return ConvShape{n, c, size, size, k, r, r, 1, 1, r / 2, r / 2, r / 2, r / 2, 1, 1, 1};
  };
  for (const cuda::Device& device : {a100, later}) {
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
          const int64_t steps = ceil_div(cuda::conv::packed_size(s, bytes).columns * bytes, 64);
          const int splits = choose(s, math, device).splits;
          EXPECT((splits - 1) * ceil_div(steps, splits) < steps, "an empty split");
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
  check_packed_sizes();
  check_choice();
  return test::finish();
}
