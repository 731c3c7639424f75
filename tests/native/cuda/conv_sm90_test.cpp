// The implicit GEMM by TMA and wgmma: every tile and dtype, im2col and plain, whole and split, with tails of pixels,
// filters and channels; strides, dilation, asymmetric padding, groups; infinities beside the image; the choice.
#include "conv_on_device.h"
#include "cuda/conv_bn_act/choose.h"

using namespace pk;             // NOLINT
using namespace pk::conv_test;  // NOLINT

namespace {

using cuda::conv::Math;
using cuda::conv::Tile;

Math math_of(DType dtype) { return dtype == DType::f16 ? Math::f16 : dtype == DType::bf16 ? Math::bf16 : Math::i8; }

// The number of multiprocessors steers the choice.
struct TileCase {
  Case c;
  int multiprocessors;
  Tile tile;
  bool splits;
};
const TileCase kTileCases[] = {
    // Pixels go over the ends of rows and images; two k tiles a tap, the last with 56 channels.
    {{{2, 120, 4, 15, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true}, 1, Tile::w128x64, false},
    {{{1, 64, 21, 30, 64, 3, 2, 2, 3, 2, 0, 1, 3, 1, 2, 1}, true, true, false}, 1, Tile::w128x64, false},
    {{{1, 248, 4, 31, 120, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, true}, 1, Tile::w128x128, false},
    {{{1, 56, 11, 13, 250, 2, 3, 1, 1, 1, 2, 0, 0, 1, 1, 1}, true, true, true}, 1, Tile::w128x256, false},
    {{{1, 64, 18, 15, 200, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, true, false}, 1, Tile::w128x256, false},
    {{{1, 320, 11, 11, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true}, 4, Tile::w128x64, true},
    {{{1, 192, 10, 12, 120, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 3}, true, true, true}, 3, Tile::w128x64, false},  // groups
};

void check_tiles() {
  const auto& schedules = simt::schedules();
  unsigned seed = 1;
  for (size_t i = 0; i < std::size(kTileCases); ++i) {
    const auto& [c, multiprocessors, tile, splits] = kTileCases[i];
    if (!kThorough && c.shape.r > 1) continue;
    simt::device().multiprocessors = multiprocessors;
    for (const Kind& kind : {kKinds[2], kKinds[3]}) {
      const auto& schedule = schedules[++seed % schedules.size()];
      simt::Use use(schedule);
      const auto choice = cuda::conv::choose(c.shape, math_of(kind.dtype), simt::device());
      EXPECT(choice.tile == tile && (choice.splits > 1) == splits, "%s, case %zu: tile %d, %d splits", kind.name, i,
             static_cast<int>(choice.tile), choice.splits);
      const std::string what = "tile " + std::to_string(static_cast<int>(choice.tile)) + ", " +
                               std::to_string(choice.splits) + " splits, " + schedule.name;
      check_case(c, kind, seed, what.c_str(), {Format::nhwc});
    }
  }
}

// Two shapes under all schedules, x copied (NCHW) in one.
void check_schedules() {
  simt::device().multiprocessors = 1;
  for (const auto& schedule : simt::schedules()) {
    simt::Use use(schedule);
    check_case({{1, 64, 6, 9, 40, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, true, true, true}, kKinds[3], 7, schedule.name,
               {Format::nchw});
    check_case({{1, 64, 11, 13, 200, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, true, false, false}, kKinds[2], 7, schedule.name,
               {Format::nhwc});
  }
}

void check_int8() {
  simt::device().multiprocessors = 1;
  const Int8Case cases[] = {
      {{2, 240, 6, 10, 60, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1}, Format::nhwc, DType::i8, DType::i8},
      {{1, 128, 11, 11, 120, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1}, Format::nhwc, DType::f16, DType::f32},
      {{1, 112, 23, 21, 250, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1}, Format::nchw, DType::f32, DType::f16},
  };
  const auto& schedules = simt::schedules();
  for (unsigned i = 0; i < std::size(cases); ++i) {
    const auto choice = cuda::conv::choose(cases[i].shape, Math::i8, simt::device());
    EXPECT(cuda::conv::is_wgmma(choice.tile), "int8 case %u: tile %d", i, static_cast<int>(choice.tile));
    simt::Use use(schedules[i]);
    check_int8_case(cases[i], i);
  }
}

// A tap's last k tile has channels of the next tap behind it, in memory.
void check_special_values() {
  for (const ConvShape& s : {ConvShape{1, 56, 11, 11, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                             ConvShape{1, 128, 11, 11, 128, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 2}}) {
    EXPECT(cuda::conv::is_wgmma(cuda::conv::choose(s, Math::f16, simt::device()).tile));
    check_special_case(s, kKinds[3]);
  }
}

// What TMA cannot say goes to the tiles of mma.sync: pixels that are one and the same, odd channels, far taps.
void check_choice() {
  using cuda::conv::choose;
  using cuda::conv::is_wgmma;
  const cuda::Device& h100 = test::kH100;
  const auto square = [](int64_t n, int64_t c, int64_t size, int64_t k, int64_t r) {
    return ConvShape{n, c, size, size, k, r, r, 1, 1, r / 2, r / 2, r / 2, r / 2, 1, 1, 1};
  };
  const ConvShape good = square(64, 256, 14, 256, 3);
  EXPECT(choose(good, Math::f16, h100).tile == Tile::w128x256 || choose(good, Math::f16, h100).tile == Tile::w128x128);
  EXPECT(is_wgmma(choose(good, Math::i8, h100).tile));
  EXPECT(!is_wgmma(choose(good, Math::f16, h100, false).tile));
  EXPECT(!is_wgmma(choose(good, Math::tf32, h100).tile) && !is_wgmma(choose(good, Math::f32, h100).tile));
  for (const int capability : {80, 86, 89, 100, 120}) {
    cuda::Device other = h100;
    other.capability = capability;
    EXPECT(!is_wgmma(choose(good, Math::f16, other).tile), "%d", capability);
  }
  EXPECT(choose(square(64, 256, 56, 64, 1), Math::f16, h100).tile == Tile::w128x64, "64 filters");
  const auto small = choose(square(1, 512, 7, 512, 3), Math::f16, h100);
  EXPECT(small.splits > 2, "batch 1, 7: %d splits", small.splits);
  for (int64_t ConvShape::* field : {&ConvShape::stride_h, &ConvShape::dilation_w, &ConvShape::pad_left}) {
    ConvShape s = square(1, 256, 400, 256, 3);
    s.*field = 129;
    EXPECT(!is_wgmma(choose(s, Math::f16, h100).tile));
  }
  EXPECT(!is_wgmma(choose(square(64, 4, 56, 64, 7), Math::f16, h100).tile), "a stem");
  ConvShape grouped = good;
  grouped.groups = 32;
  EXPECT(!is_wgmma(choose(grouped, Math::f16, h100).tile), "groups of 8 channels");
}

// Pixels at distance 0, as expand makes them: legal for the loader of mma.sync alone.
void check_expanded() {
  const ConvShape s = {1, 64, 11, 11, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT(cuda::conv::is_wgmma(cuda::conv::choose(s, Math::f16, simt::device()).tile));
  Array row({1, s.c, 1, s.w}, DType::f16, Format::nhwc);
  Call call(s, DType::f16);
  row.fill(1);
  call.x.each([&](int64_t n, int64_t c, int64_t h, int64_t w) { call.x.set(n, c, h, w, row.get(n, c, 0, w)); });
  const auto expected = call.expected();
  call.args.x = row.tensor();
  call.args.x.stride[2] = 0;
  run(call);
  EXPECT(test::relative_l2(call.y.values(), expected) < 5e-4);
}

}  // namespace

int main() {
  simt::device() = test::kH100;
  check_tiles();
  check_choice();
  if (kThorough) {
    check_schedules();
    check_int8();
    check_special_values();
    check_expanded();
  }
  return test::finish();
}
