// Copies into the kernels' own layouts, by element size: bits are moved, not converted.
//
// Weights: a thread an element. Pixels: a thread takes 32 bytes of a pixel's channels, neighbouring lanes neighbouring
// pixels; so an NCHW source is read in runs of 32 pixels, and each sector is written whole by one thread, with no
// shared memory in between.
#include "cuda/conv_bn_act/kernels.h"
#include "cuda/launch.cuh"

namespace pk::cuda::conv {
namespace {

constexpr int kThreads = 256;

template <class Bits>
struct PackWeight {
  const Bits* weight;
  int64_t stride[4];  // of k, c, r, s
  Bits* packed;
  int64_t rows, columns, k, c, padded_c, r, s;
  bool depthwise;
};

template <class Bits>
__global__ void __launch_bounds__(kThreads) pack_weight(const PackWeight<Bits> a) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= a.rows * a.columns) return;
  const int64_t row = i / a.columns, column = i % a.columns;
  const int64_t k = a.depthwise ? column : row;
  const int64_t tap = a.depthwise ? row : column / a.padded_c;
  const int64_t c = a.depthwise ? 0 : column % a.padded_c;
  const bool inside = k < a.k && c < a.c && tap < a.r * a.s;
  a.packed[i] = inside ? a.weight[k * a.stride[0] + c * a.stride[1] + tap / a.s * a.stride[2] + tap % a.s * a.stride[3]]
                       : Bits{0};
}

template <class Bits>
struct PackPixels {
  const Bits* x;
  int64_t stride[4];  // of n, c, h, w
  Bits* out;          // [n h w][row]
  int64_t pixels;     // n h w
  int image, w;       // image: h w
  int c, padded_c;    // of a group
  int row;            // groups * padded_c
};

template <class Bits>
__global__ void __launch_bounds__(kThreads) pack_pixels(const PackPixels<Bits> a) {
  constexpr int kHalf = 8 / sizeof(Bits), kSector = 4 * kHalf;
  union EightBytes {
    uint2 whole;
    Bits part[kHalf];
  };
  const int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pixel >= a.pixels) return;
  const int within = static_cast<int>(pixel % a.image);
  const Bits* x = a.x + pixel / a.image * a.stride[0] + within / a.w * a.stride[2] + within % a.w * a.stride[3];
  Bits* out = a.out + pixel * a.row;
  for (int sector = static_cast<int>(blockIdx.y) * kSector; sector < a.row;
       sector += static_cast<int>(gridDim.y) * kSector) {
    int group = sector / a.padded_c, c = sector % a.padded_c;
    for (int first = sector; first < sector + kSector && first < a.row; first += kHalf) {
      EightBytes eight;
      PK_UNROLL
      for (int j = 0; j < kHalf; ++j) {
        eight.part[j] = c < a.c ? x[(int64_t{group} * a.c + c) * a.stride[1]] : Bits{0};
        if (++c == a.padded_c) c = 0, ++group;
      }
      *reinterpret_cast<uint2*>(out + first) = eight.whole;  // a row is a multiple of 8 bytes
    }
  }
}

template <class Bits>
Status pack_weight_of(const ConvPackingPlan& plan, const ConvTensor& weight, void* packed, void* stream) {
  const ConvShape& shape = plan.shape;
  const int64_t c = shape.c / shape.groups;
  PackWeight<Bits> a = {static_cast<const Bits*>(weight.data),
                        {},
                        static_cast<Bits*>(packed),
                        plan.rows,
                        plan.columns,
                        shape.k,
                        c,
                        padded_channels(c, sizeof(Bits)),
                        shape.r,
                        shape.s,
                        is_depthwise(shape)};
  for (int i = 0; i < 4; ++i) a.stride[i] = weight.stride[i];
  const int64_t blocks = ceil_div<int64_t>(plan.rows * plan.columns, kThreads);
  return launch(pack_weight<Bits>, {.grid = static_cast<unsigned>(blocks), .block = kThreads}, stream, a);
}

template <class Bits>
Status pack_pixels_of(const ConvShape& shape, int64_t padded_c, const ConvTensor& x, void* out, void* stream) {
  PackPixels<Bits> a = {static_cast<const Bits*>(x.data),
                        {},
                        static_cast<Bits*>(out),
                        shape.n * shape.h * shape.w,
                        static_cast<int>(shape.h * shape.w),
                        static_cast<int>(shape.w),
                        static_cast<int>(shape.c / shape.groups),
                        static_cast<int>(padded_c),
                        static_cast<int>(shape.groups * padded_c)};
  for (int i = 0; i < 4; ++i) a.stride[i] = x.stride[i];
  const int64_t blocks = ceil_div<int64_t>(a.pixels, kThreads), sectors = ceil_div<int64_t>(a.row * sizeof(Bits), 32);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(sectors < 65535 ? sectors : 65535));
  return launch(pack_pixels<Bits>, {.grid = grid, .block = kThreads}, stream, a);
}

}  // namespace

Status run_pack_weight(const ConvPackingPlan& plan, const ConvTensor& weight, void* packed, void* stream) {
  if (plan.element_bytes == 1) return pack_weight_of<uint8_t>(plan, weight, packed, stream);
  if (plan.element_bytes == 2) return pack_weight_of<uint16_t>(plan, weight, packed, stream);
  return pack_weight_of<uint32_t>(plan, weight, packed, stream);
}

Status run_pack_pixels(const ConvShape& shape, int64_t bytes, int64_t padded_c, const ConvTensor& x, void* out,
                       void* stream) {
  if (bytes == 1) return pack_pixels_of<uint8_t>(shape, padded_c, x, out, stream);
  if (bytes == 2) return pack_pixels_of<uint16_t>(shape, padded_c, x, out, stream);
  return pack_pixels_of<uint32_t>(shape, padded_c, x, out, stream);
}

}  // namespace pk::cuda::conv
