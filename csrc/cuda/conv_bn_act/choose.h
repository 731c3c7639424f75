// Which kernel, tile and split a convolution gets, and how its weight is packed: pure functions of shape, arithmetic
// and device, with no CUDA in them.
#pragma once

#include <cstdint>

#include "common/rounding.h"
#include "cuda/device.h"
#include "pykernels/conv_bn_act.h"

namespace pk::cuda::conv {

// What the matrix unit multiplies: f32 is three products of tf32, of float32's own precision.
enum class Math { f16, bf16, f32, tf32, i8 };

constexpr int64_t element_bytes(Math math) {
  return math == Math::i8 ? 1 : math == Math::f16 || math == Math::bf16 ? 2 : 4;
}

constexpr bool is_depthwise(const ConvShape& s) { return s.groups == s.c && s.groups > 1; }

// A group's input channels as the kernels see them: to 16 bytes, so that a copy of 16 never leaves its filter tap; up
// to 8 bytes to 8, so that three channels of an image are not made eight.
constexpr int64_t padded_channels(int64_t c_group, int64_t bytes) {
  if (c_group * bytes % 8 == 0 && c_group > 0) return c_group;
  return c_group * bytes <= 8 ? 8 / bytes : round_up(c_group, 16 / bytes);
}

// The bytes of one copy of x: what divides a tap's channels.
constexpr int copy_bytes(int64_t c_group, int64_t bytes) {
  return padded_channels(c_group, bytes) * bytes % 16 == 0 ? 16 : 8;
}

struct PackedSize {
  int64_t rows, columns;
};
constexpr PackedSize packed_size(const ConvShape& s, int64_t bytes) {
  if (is_depthwise(s)) return {s.r * s.s, round_up(s.k, 16 / bytes)};
  return {s.k, round_up(s.r * s.s * padded_channels(s.c / s.groups, bytes), 16 / bytes)};
}

// The outputs of a block: pixels x filters. tf32 has no 128 x 128: three products an element want the registers. w...:
// by wgmma and TMA, on Hopper alone.
enum class Tile { t128x128, t128x64, t64x64, w128x64, w128x128, w128x256 };
inline constexpr int kTiles = 6;
struct TileSize {
  int m, n;
};
constexpr bool is_wgmma(Tile tile) { return tile >= Tile::w128x64; }
constexpr TileSize tile_size(Tile tile) {
  const bool wide = tile == Tile::t128x128 || tile == Tile::w128x128;
  return {tile == Tile::t64x64 ? 64 : 128, tile == Tile::w128x256 ? 256 : wide ? 128 : 64};
}

// Steps of the main loop: 64 bytes of the sum over (r, s, c); wgmma's take 128 bytes of one tap.
constexpr int64_t steps_of(const ConvShape& s, int64_t bytes, Tile tile) {
  if (!is_wgmma(tile)) return ceil_div(packed_size(s, bytes).columns * bytes, 64);
  return s.r * s.s * ceil_div(padded_channels(s.c / s.groups, bytes) * bytes, 128);
}

// Whether TMA's im2col mode can express the shape: limits of steps and offsets, and whole k tiles where a group's
// channels end at another's.
constexpr bool wgmma_fits(const ConvShape& s, Math math, const Device& device) {
  if (device.capability != 90 || math == Math::f32 || math == Math::tf32 || is_depthwise(s) || s.c == 0) return false;
  const int64_t bytes = element_bytes(math), c_group = s.c / s.groups;
  if (copy_bytes(c_group, bytes) != 16 || (s.groups > 1 && c_group * bytes % 128 != 0)) return false;
  const auto fits = [](int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t dilation, int64_t pad) {
    const int64_t corner = (outputs - 1) * stride - pad - (size - 1);
    return stride <= 8 && dilation * (taps - 1) <= 255 && pad <= 128 && -128 <= corner && corner <= 127;
  };
  return fits(s.h, s.p(), s.r, s.stride_h, s.dilation_h, s.pad_top) &&
         fits(s.w, s.q(), s.s, s.stride_w, s.dilation_w, s.pad_left);
}

struct Choice {
  Tile tile = Tile::t64x64;
  int splits = 1;  // of the sum over (r, s, c); their partial sums are added in order
};

// The tile and split of least estimated time. Estimated, in clocks of a multiprocessor: rounds of resident blocks, each
// a number of steps that costs what its products cost at the rate the tile reaches, but at least the latency of a step;
// and for a split the traffic of the partial sums and one more launch. `tma`: x lies so that a tensor map can say
// where.
inline Choice choose(const ConvShape& s, Math math, const Device& device, bool tma = true) {
  const int64_t bytes = element_bytes(math), rows = s.n * s.p() * s.q(), filters = s.k / s.groups;
  const bool wgmma = tma && wgmma_fits(s, math, device);
  // Dense products a clock of a multiprocessor, by mma.sync (of which Hopper runs a little more than Ampere) and wgmma.
  const double ampere = math == Math::i8 ? 2048 : math == Math::tf32 ? 512 : math == Math::f32 ? 160 : 1024;
  const double plain_rate = ampere * (device.capability >= 90 ? 1.25 : 1.0), wgmma_rate = 2 * ampere;
  constexpr double kFixed = 1500, kLaunch = 3000, kBytesPerClock = 12;
  const auto multiprocessors = static_cast<double>(device.multiprocessors);

  Choice best;
  double best_time = 0;
  for (int t = 0; t < kTiles; ++t) {
    const auto tile = static_cast<Tile>(t);
    if (tile == Tile::t128x128 && (math == Math::f32 || math == Math::tf32)) continue;
    if (is_wgmma(tile) && !wgmma) continue;
    const TileSize size = tile_size(tile);
    constexpr double kReached[kTiles] = {0.80, 0.70, 0.55, 0.50, 0.65, 0.75};
    constexpr int kResident[kTiles] = {2, 3, 5, 2, 2, 1};
    const double reached = kReached[t], rate = is_wgmma(tile) ? wgmma_rate : plain_rate;
    const int64_t resident = kResident[t], steps = steps_of(s, bytes, tile);
    const int64_t step_bytes = is_wgmma(tile) ? 128 : 64, least_steps = 8 * 64 / step_bytes;
    const double latency = is_wgmma(tile) ? 300 : 220;
    const int64_t blocks = ceil_div(rows, size.m) * ceil_div(filters, size.n) * s.groups;
    const double step_work =
        static_cast<double>(size.m) * size.n * (static_cast<double>(step_bytes) / static_cast<double>(bytes));
    const auto round = [&](int64_t together, int64_t k_steps) {
      const double work = static_cast<double>(together) * step_work / (rate * reached);
      return kFixed + static_cast<double>(k_steps) * (work > latency ? work : latency);
    };
    for (int splits = 1; splits <= 32; ++splits) {
      const int64_t k_steps = ceil_div(steps, splits);
      // No split of less than 512 bytes, and none that leaves a part empty.
      if (splits > 1 && (k_steps < least_steps || ceil_div(steps, k_steps) != splits)) continue;
      const int64_t each = ceil_div(blocks * splits, device.multiprocessors);
      double time = static_cast<double>(each / resident) * round(resident, k_steps);
      if (each % resident > 0) time += round(each % resident, k_steps);
      if (splits > 1) {
        const double partial = 8.0 * splits * static_cast<double>(rows) * static_cast<double>(s.k);
        time += kLaunch + partial / (kBytesPerClock * multiprocessors);
      }
      if (best_time == 0 || time < best_time) {
        best_time = time;
        best = {tile, splits};
      }
    }
  }
  return best;
}

}  // namespace pk::cuda::conv
