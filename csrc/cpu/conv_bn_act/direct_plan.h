// The blocking of the direct convolution: what shape, ISA, layout and threads decide before any data is seen.
#pragma once

#include "common/rounding.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/nhwc.h"
#include "cpu/conv_bn_act/planes.h"
#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kSliceBytes = 20 << 10;  // weight slice: most of L1, x needs little
constexpr int64_t kWideBytes = 64 << 10;   // the same of tiles that do 28 products for two loads of weights: L2 will do
constexpr int64_t kBlockBytes = 128 << 10;  // x of a pixel block; twice that where the weight exceeds kFarFloats
constexpr int64_t kFarFloats = 256 << 10;   // a weight of more floats comes from L3 or memory, once for each block
constexpr int64_t kGroupBytes = 128 << 10;  // weights of a group of panels, where it goes by tile
constexpr int64_t kSumBytes = 64 << 10;     // partial sums of a pixel block
constexpr int64_t kCopyBytes = 4 << 20;     // copied images that are worked on at a time, if that is more than one
constexpr int64_t kAheadBytes = 192 << 10;  // weights of at least this many bytes do not stay in L2
constexpr int64_t kStreamAhead = 4096;      // floats from what is read to what is fetched
constexpr int64_t kMinRun = 16;
constexpr int64_t kPlaneBytes = 28 << 10;  // x of the pixels that planes.h works on, where L1 has room for it

// Do pixels `step` floats apart share so few sets of L1 that a tile's throw each other out?
inline bool collides(int64_t step) { return step * 4 % 2048 == 0; }

// What shape and ISA alone decide: the form of the packed weight and the order of summation.
struct Form {
  int64_t c, k;          // of one group
  int64_t taps, run;     // run: channels of a slice
  int64_t slices;        // of input channels
  int64_t panels;        // of one group
  int64_t group_floats;  // of the weight

  explicit Form(const ConvShape& shape) {
    c = shape.c / shape.groups;
    k = shape.k / shape.groups;
    taps = shape.r * shape.s;
    group_floats = round_up(k, kGrain) * taps * c;
    // Larger filters of so many floats are for small maps, of which few tiles use a slice.
    const bool wide = kTilePixels > 8 && (taps == 1 || group_floats <= kFarFloats);
    const int64_t most = max(kMinRun, (wide ? kWideBytes : kSliceBytes) / (taps * kPanel * 4));
    slices = max(1, ceil_div(c, most));
    run = max(1, ceil_div(c, slices));
    slices = ceil_div(c, run);
    panels = ceil_div(k, kPanel);
  }

  int64_t panel_width(int64_t panel) const { return min(kPanel, round_up(k - panel * kPanel, kGrain)); }
};

// What the layout of x and the number of threads decide besides.
struct Plan : Form {
  bool copied;           // x goes through a float32 channels-last copy, image by image,
  bool gathered;         // or block by block,
  bool apart;            // and that only if its pixels collide
  int64_t plane_pixels;  // worked on by planes.h, if x and y prove to be planes of adjacent pixels; or none
  bool staged;           // y's channels are not adjacent: a panel is finished for a whole block at a time
  int64_t images;        // worked on at a time
  int64_t pixels;        // p * q
  int64_t block;         // most pixels of a block
  int64_t panel_group;   // panels whose sums are held at a time
  int64_t threads;
  bool streamed = false;  // see stream()
  bool by_tile = false;   // a group of panels for each tile rather than the tiles for each panel
  int64_t pitch;          // of the pixels that are copied or gathered, in floats
  int64_t copy_bytes, zero_bytes, table_bytes, at_bytes, sum_bytes, slot_bytes;

  Plan(const ConvArgs& args, int most_threads) : Form(args.shape) {
    const ConvShape& shape = args.shape;
    const bool adjacent = args.x.stride[1] == 1 || shape.c == 1;
    const bool lies_well = args.dtype == DType::f32 && adjacent, collide = collides(shape.stride_w * shape.c);
    // Each copied pixel has to be used often enough.
    const int64_t uses = taps == 1 ? k : k * taps / (shape.stride_h * shape.stride_w);
    apart = lies_well && kTilePixels > 8 && collide && uses > kPanel;
    copied = taps > 1 && (apart || !lies_well);
    gathered = taps == 1 && (apart || !lies_well);
    pitch = collide ? round_up(shape.c, 32) + 16 : shape.c;  // an odd number of lines
    pixels = shape.p() * shape.q();
    const int64_t image_bytes = shape.h * shape.w * pitch * 4;
    images = copied ? min(max(kCopyBytes / max(image_bytes, 1), 1), shape.n) : shape.n;

    staged = args.y_stride[1] != 1 || shape.k == 1;
    if (taps == 1 && !staged && shape.groups == 1) {
      // The weight passes by once a tile, x and y once: it has to be the smaller. Rows of y a multiple of 4 KB apart
      // compete for one set of L1, and are better written whole.
      const int64_t weights = c * k, maps = shape.n * shape.p() * shape.q() * (c + k);
      by_tile = 3 * weights <= maps || (k % 1024 == 0 && weights <= 2 * maps);
    }
    if (by_tile) run = c, slices = 1;

    // Here the weight passes by once for some pixels, x and y once.
    const bool planes = taps == 1 && shape.groups == 1 && slices == 1 && c > 0 && args.x.stride[1] != 1 &&
                        args.y_stride[1] != 1 && shape.stride_h == 1 && shape.stride_w == 1 && shape.p() == shape.h &&
                        shape.q() == shape.w && pixels >= 144 && 2 * c * k <= pixels * (c + k);
    plane_pixels = planes ? kPlanePixels : 0;
    while (plane_pixels > kPlaneVectors * kLanes && c * plane_pixels * 4 > kPlaneBytes) plane_pixels /= 2;

    // x pixels that an output pixel brings into the block, halo apart.
    const int64_t spread = min(shape.stride_h * shape.stride_w, max(taps, 1));
    const int64_t fitting = kBlockBytes * (group_floats > kFarFloats ? 2 : 1) / max(spread * c * 4, 1);
    block = min(max(round_up(fitting, kTilePixels), 8 * kTilePixels), 512 / kTilePixels * kTilePixels);
    block = max(min(block, images * pixels), 1);
    panel_group = slices > 1 ? max(1, kSumBytes / (block * kPanel * 4)) : shape.groups * panels;

    // A thread is worth waking for some ten microseconds of work.
    const int64_t work = images * pixels * max(taps * c, 1) * round_up(k, kLanes) * shape.groups;
    threads = max(1, min(most_threads, work / (32768 * kLanes)));
    copy_bytes = copied ? round_up(images * image_bytes, kConvAlign) : 0;
    zero_bytes = round_up(max(shape.c, 1) * 4, kConvAlign);
    // point() fills whole vectors.
    table_bytes = round_up(block * taps * 8 + kVecBytes, kConvAlign);
    at_bytes = round_up(block * 8 + kVecBytes, kConvAlign);
    if (by_tile) panel_group = min(max(1, kGroupBytes / max(c * kPanel * 4, 1)), panels);
    const int64_t sum_panels = slices > 1 ? panel_group : staged ? 1 : 0;
    sum_bytes = (sum_panels * block + kTilePixels) * kPanel * 4;
    slot_bytes = table_bytes + 2 * at_bytes + sum_bytes + (gathered ? block * pitch * 4 : 0) + kConvAlign;
    slot_bytes = max(slot_bytes, round_up(c * plane_pixels * 4, kConvAlign));
  }

  // For few pixels, which read each weight once, slices are a detour: those of a panel follow each other in memory
  // where there is one tap, and are read as the one stream that they are.
  Plan stream() const {
    Plan plan = *this;
    plan.run = c;
    plan.slices = 1;
    plan.panel_group = panels;
    plan.streamed = true;
    return plan;
  }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
