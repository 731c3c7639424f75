// Depthwise 3 x 3 convolution at stride 1 of float32 x whose rows' pixels are adjacent, read where it lies: pixels in
// lanes, so that nothing is turned over.
//
//   sum[p][q] += x[p + r][q + s] * weight[r][s]      of one channel, for r, s in this order
//
// A tile is some rows of y x one vector of columns, held in registers over all taps; a vector of x is read once for all
// rows of the tile. Columns outside x read as zero, rows outside are left out.
#pragma once

#include "cpu/vec.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kPlaneRows = 4;  // of a tile, at most
inline constexpr int kPlaneTaps = 3;

struct PlaneTile {
  const float* x[kPlaneRows - 1 + kPlaneTaps];  // rows of x, or null: outside
  int64_t w, left;                              // columns of x, and of padding before them
  const float* weight;                          // [taps * taps], kLanes apart
  int64_t begin, end, origin;                   // of y's vectors of columns; the one that `sums` begins with
  float* sums;                                  // [rows][row], row a whole number of vectors
  int64_t row;
};

// kEdge: rows or columns outside.
template <int R, bool kEdge>
void run_plane(const PlaneTile& t) {
  const int64_t row = t.row;
  F32 weight[kPlaneTaps * kPlaneTaps];
#pragma GCC unroll 16
  for (int i = 0; i < kPlaneTaps * kPlaneTaps; ++i) weight[i] = broadcast(t.weight[i * kLanes]);
  for (int64_t i = t.begin; i < t.end; ++i) {
    const int64_t column = i * kLanes - t.left;
    int64_t first[kPlaneTaps], last[kPlaneTaps];  // lanes inside
#pragma GCC unroll 8
    for (int s = 0; s < kPlaneTaps; ++s) {
      const int64_t before = -column - s, until = t.w - column - s;
      last[s] = until < 0 ? 0 : until < kLanes ? until : kLanes;
      first[s] = before < 0 ? 0 : before < last[s] ? before : last[s];
    }
    F32 acc[R];
#pragma GCC unroll 8
    for (int p = 0; p < R; ++p) acc[p] = F32{};
#pragma GCC unroll 16
    for (int h = 0; h < R - 1 + kPlaneTaps; ++h) {
      if (kEdge && t.x[h] == nullptr) continue;
      const float* x = t.x[h] + column;
      F32 values[kPlaneTaps];
#pragma GCC unroll 8
      for (int s = 0; s < kPlaneTaps; ++s) {
        values[s] = kEdge ? load_lanes(x + s, first[s], last[s]) : load<F32>(x + s);
      }
#pragma GCC unroll 8
      for (int p = 0; p < R; ++p) {
        const int r = h - p;
        if (r < 0 || r >= kPlaneTaps) continue;
#pragma GCC unroll 8
        for (int s = 0; s < kPlaneTaps; ++s) acc[p] = fma(values[s], weight[r * kPlaneTaps + s], acc[p]);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < R; ++p) store(t.sums + p * row + (i - t.origin) * kLanes, acc[p]);
  }
}

using PlaneFunction = void (*)(const PlaneTile&);
// [edge][rows - 1]
constexpr PlaneFunction kPlaneFunctions[2][kPlaneRows] = {
    {run_plane<1, false>, run_plane<2, false>, run_plane<3, false>, run_plane<4, false>},
    {run_plane<1, true>, run_plane<2, true>, run_plane<3, true>, run_plane<4, true>}};

// In narrower rows too much is edge, where a load costs several instructions.
inline constexpr int64_t kPlaneColumns = kLanes == 16 ? 48 : 96;

inline bool suits_planes(const ConvShape& shape) {
  return shape.r == kPlaneTaps && shape.s == kPlaneTaps && shape.stride_h == 1 && shape.stride_w == 1 &&
         shape.dilation_h == 1 && shape.dilation_w == 1 && shape.q() >= kPlaneColumns;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
