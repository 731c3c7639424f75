// What F(m x m, 3 x 3) decides once for a shape, and what the blocks of winograd.cpp take of the caches.
#pragma once

#include "cpu/conv_bn_act/winograd_transforms.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kBlockBytes = 256 << 10;   // u
constexpr int64_t kProductBytes = 96 << 10;  // m
constexpr int64_t kLeastTiles = 16;          // of a block, or the weight is read too often
constexpr int64_t kMostTiles = 48;
constexpr int64_t kCopyBytes = 4 << 20;  // copied images that are worked on at a time, if that is more than one

// One tile: the pixels of x that it needs, or zeros; the outputs that exist, and where they are.
template <class F>
struct Window {
  const float* x[kPositions<F>];
  int64_t rows, columns;
  int64_t y_at, residual_at;  // of its first output's channel 0, in elements
};

template <class F>
struct Plan : Form {
  bool copied;               // x goes through a float32 channels-last copy
  int64_t images;            // worked on at a time
  int64_t tiles_h, tiles_w;  // of an image
  int64_t block;             // most tiles of a block
  int64_t panel_group;
  int64_t threads;
  int64_t u_plane, m_plane;  // floats of one position. Not multiples of a page, for that is few sets of L1.
  int64_t copy_bytes, zero_bytes, u_bytes, window_bytes, slot_bytes;

  Plan(const ConvArgs& args, int most_threads) : Form(args.shape) {
    const ConvShape& shape = args.shape;
    copied = args.dtype != DType::f32 || (args.x.stride[1] != 1 && shape.c > 1);
    const int64_t image_bytes = shape.h * shape.w * shape.c * 4;
    images = copied ? min(max(kCopyBytes / max(image_bytes, 1), 1), shape.n) : shape.n;
    tiles_h = ceil_div(shape.p(), F::kOut);
    tiles_w = ceil_div(shape.q(), F::kOut);
    const int64_t tiles = images * tiles_h * tiles_w;
    const int64_t fitting = kBlockBytes / (kPositions<F> * row * 4) / kTilePixels * kTilePixels;
    block = max(min(min(max(fitting, kLeastTiles), kMostTiles), tiles), 1);
    panel_group = min(max(kProductBytes / (kPositions<F> * block * kPanel * 4), 1), panels);
    const int64_t work = tiles * kPositions<F> * c * k_padded * groups;
    threads = max(1, min(most_threads, work / (32768 * kLanes)));
    u_plane = block * row + 16;
    m_plane = block * min(kPanel, k_padded) + 16;
    copy_bytes = copied ? round_up(images * image_bytes, kConvAlign) : 0;
    zero_bytes = round_up(shape.c * 4, kConvAlign);
    u_bytes = round_up(kPositions<F> * u_plane * 4, kConvAlign);
    window_bytes = round_up(block * static_cast<int64_t>(sizeof(Window<F>)), kConvAlign);
    slot_bytes = u_bytes + window_bytes + round_up(panel_group * kPositions<F> * m_plane * 4, kConvAlign);
  }
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
