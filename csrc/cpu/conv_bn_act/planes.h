// A 1 x 1 convolution of planes: channels of x and of y that are planes of adjacent pixels, as in NCHW. The roles are
// the other way round than in tile.h: pixels are the lanes, and each weight is broadcast from the same packed panels.
//
//   sum[k][i] += weight[c][k] * x[c][i]     kPlaneChannels output channels x three vectors of pixels in registers
//
// So nothing is turned over. Every sum has the order that it has in tile.h, and so the same bits.
#pragma once

#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/elements.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int kPlaneVectors = 3;
inline constexpr int kPlanePixels = 96;  // most that are finished at a time: runs of some lines of y
inline constexpr int kPlaneChannels = kRegisters / 4;

// x: [c][row], weight: [c][width], sums: [kPlaneChannels][row]: NV vectors of pixels of x and sums, kPlaneChannels of
// a row of the weight.
template <int NV>
void run_planes(const float* x, int64_t row, int64_t c, const float* weight, int64_t width, float* sums) {
  F32 acc[kPlaneChannels][NV];
#pragma GCC unroll 16
  for (int k = 0; k < kPlaneChannels; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) acc[k][v] = F32{};
  for (int64_t i = 0; i < c; ++i, x += row, weight += width) {
    F32 value[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) value[v] = load<F32>(x + v * kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < kPlaneChannels; ++k) {
      const F32 w = broadcast(weight[k]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[k][v] = fma(value[v], w, acc[k][v]);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < kPlaneChannels; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(sums + k * row + v * kLanes, acc[k][v]);
}

using PlanesFunction = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*);
constexpr PlanesFunction kPlaneTiles[kPlaneVectors] = {run_planes<1>, run_planes<2>, run_planes<3>};

// to: [c][row]: `pixels` of each plane of x, float32, and zeros where the last vector is not full.
template <class T>
inline void copy_planes(float* to, int64_t row, const T* x, int64_t plane, int64_t c, int64_t pixels) {
  for (int64_t i = 0; i < c; ++i, to += row, x += plane) {
    int64_t j = 0;
    for (; j + kLanes <= pixels; j += kLanes) store(to + j, load_widened(x + j));
    if (j < pixels) store(to + j, load_widened(x + j, pixels - j));
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
