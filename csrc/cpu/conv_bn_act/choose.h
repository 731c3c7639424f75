// What decides between the methods: pure functions of the shape.
#pragma once

#include "cpu/conv_bn_act/kernels.h"

namespace pk {
namespace {

// Depthwise, or groups of a few channels, as many in as out or twice as many: narrow_tile.h.
bool is_narrow(const ConvShape& shape) {
  const int64_t c = shape.c / shape.groups, k = shape.k / shape.groups;
  const bool few = c == 2 || c == 4 || c == 8 || c == 16;
  return shape.groups > 1 && (c == 1 || (few && (c == k || c == 2 * k)));
}

// Few channels in one group: merged.cpp.
bool is_merged(const ConvShape& shape) { return shape.groups == 1 && shape.c > 0 && shape.c <= 8 && shape.s > 1; }

// The layout of a packed weight, of which all but stride and dilation is known.
Status choose_layout(const ConvShape& shape, ConvAlgorithm algorithm, ConvLayout* layout) {
  switch (algorithm) {
    case ConvAlgorithm::direct:
      *layout = is_narrow(shape) ? ConvLayout::narrow : is_merged(shape) ? ConvLayout::merged : ConvLayout::direct;
      return kOk;
    case ConvAlgorithm::winograd4:
    case ConvAlgorithm::winograd2:
      if (shape.r != 3 || shape.s != 3 || shape.c < shape.groups) {
        return {"algorithm: Winograd is for 3 x 3 filters"};
      }
      *layout = algorithm == ConvAlgorithm::winograd4 ? ConvLayout::winograd4 : ConvLayout::winograd2;
      return kOk;
  }
  return {"algorithm: expected 0 (direct), 1 (winograd4) or 2 (winograd2)"};
}

ConvAlgorithm algorithm_of(ConvLayout layout) {
  return layout == ConvLayout::winograd4   ? ConvAlgorithm::winograd4
         : layout == ConvLayout::winograd2 ? ConvAlgorithm::winograd2
                                           : ConvAlgorithm::direct;
}

// See conv_choose; of a shape that has been checked.
ConvAlgorithm choose_algorithm(const ConvShape& shape, bool packs) {
  // Of fewer channels neither do the transforms pay, nor is the error within the roundings of a direct sum's terms.
  const bool suits = shape.r == 3 && shape.s == 3 && shape.stride_h == 1 && shape.stride_w == 1 &&
                     shape.dilation_h == 1 && shape.dilation_w == 1 && shape.c >= 16 * shape.groups &&
                     shape.k >= 16 * shape.groups && shape.n > 0;
  if (!suits) return ConvAlgorithm::direct;
  // Of one group: all cost the same.
  const auto c = static_cast<double>(shape.c / shape.groups), k = static_cast<double>(shape.k / shape.groups);
  const double filters = c * k;
  const auto tiles = [&](int64_t m) {
    return static_cast<double>(shape.n) * static_cast<double>((shape.p() + m - 1) / m) *
           static_cast<double>((shape.q() + m - 1) / m);
  };
  // In multiplications of a matrix product in cache. Measured (docs/kernels/conv_bn_act/cpu.md): a float of weight
  // costs 10 to bring in, where it comes from memory; transforms cost 200 a tile and input channel and 320 a tile and
  // output channel for F(4, 3), about half for F(2, 3); packing a filter costs 2000, 1200, 700.
  constexpr double kFloat = 10, kMargin = 1.2;
  const double winograd4 = tiles(4) * (36 * filters + 200 * c + 320 * k) + filters * (36 * kFloat + (packs ? 2000 : 0));
  const double winograd2 = tiles(2) * (16 * filters + 100 * c + 150 * k) + filters * (16 * kFloat + (packs ? 1200 : 0));
  const double direct = tiles(1) * 9 * filters * 1.16 + filters * (9 * kFloat + (packs ? 700 : 0));
  const bool four = winograd4 <= winograd2;
  if (kMargin * (four ? winograd4 : winograd2) >= direct) return ConvAlgorithm::direct;
  return four ? ConvAlgorithm::winograd4 : ConvAlgorithm::winograd2;
}

}  // namespace
}  // namespace pk
