// Depthwise convolution: every channel its own filter(s), channels in lanes.
//
//   y[p, q, k] = sum over taps of x[p * stride + r, q * stride + s, k / multiplier] * weight[tap][k]
//
// A tile of neighbouring pixels of one row shares the weight vectors; x is read in vectors of adjacent channels. Pixels
// whose taps are not all inside are tiles of their own, of several vectors of channels. With a multiplier above one,
// x's channels are repeated in its copy, so that the same loop serves. Weight: [tap][k], padded to whole vectors.
#include "common/rounding.h"
#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/nhwc.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int kWide = 8, kNarrow = 4;          // pixels of a tile of one vector of channels
constexpr int kVectors = 4;                    // of channels, of a tile of one pixel
constexpr int64_t kBlock = kVectors * kLanes;  // channels whose sums wait for the epilogue, in L1,
constexpr int64_t kChunk = 64;                 // of so many pixels
constexpr int64_t kCopyBytes = 4 << 20;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

struct Plan {
  int64_t multiplier;
  int64_t images;  // worked on at a time
  int64_t image_floats;
  bool copied;

  explicit Plan(const ConvArgs& args) {
    const ConvShape& shape = args.shape;
    multiplier = shape.k / shape.groups;
    image_floats = shape.h * shape.w * shape.k;
    copied = multiplier > 1 || args.dtype != DType::f32 || args.x.stride[1] != 1;
    images = copied ? min(max(kCopyBytes / max(4 * image_floats, 1), 1), shape.n) : shape.n;
  }
};

int64_t packed_floats(const ConvShape& shape) { return shape.r * shape.s * round_up(shape.k, kLanes); }

void pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor&) {
  const int64_t row = round_up(shape.k, kLanes);
  for (int64_t tap = 0; tap < shape.r * shape.s; ++tap) {
    for (int64_t k = 0; k < row; ++k) {
      const int64_t at = k * weight.stride[0] + tap / shape.s * weight.stride[2] + tap % shape.s * weight.stride[3];
      packed[tap * row + k] = k >= shape.k          ? 0.0f
                              : dtype == DType::f32 ? static_cast<const float*>(weight.data)[at]
                                                    : widen(static_cast<const bf16_t*>(weight.data)[at]);
    }
  }
}

static_assert(sizeof(Plan) <= kConvBlockingBytes);

int64_t make_plan(const ConvArgs& args, int, void* blocking) {
  const Plan plan(args);
  std::memcpy(blocking, &plan, sizeof plan);
  return plan.copied ? plan.images * plan.image_floats * 4 : 0;
}

// A row of output pixels of one image.
struct Row {
  const float* x;  // of the pixel under tap (0, 0) of pixel 0, which may lie outside the image
  int64_t stride_h, stride_w;
  const float* weight;
  int64_t r0, r1;             // the filter's rows that meet the image
  int64_t y_at, residual_at;  // of pixel 0 of the row
};

// Of positions first + i * step, i < count: the range of i that lies in [0, size).
inline void inside(int64_t first, int64_t step, int64_t count, int64_t size, int64_t* begin, int64_t* end) {
  *begin = first < 0 ? min(ceil_div(-first, step), count) : 0;
  *end = max(first < size ? min(ceil_div(size - first, step), count) : 0, *begin);
}

// sums[i * kBlock + v * kLanes]: pixels [q, q + MR) x NV vectors of channels from k, over the filter's columns [s0,
// s1); `count` channels of a single vector that is not whole.
template <int MR, int NV, bool whole>
inline void tile(const ConvShape& shape, const Row& row, int64_t q, int64_t s0, int64_t s1, int64_t k, int64_t count,
                 float* sums) {
  const int64_t weight_row = round_up(shape.k, kLanes), step = shape.stride_w * row.stride_w;
  F32 acc[MR][NV] = {};
  for (int64_t r = row.r0; r < row.r1; ++r) {
    const float* w = row.weight + (r * shape.s + s0) * weight_row + k;
    const float* x = row.x + r * shape.dilation_h * row.stride_h + s0 * shape.dilation_w * row.stride_w + q * step + k;
    for (int64_t s = s0; s < s1; ++s, w += weight_row, x += shape.dilation_w * row.stride_w) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        const F32 weight = load<F32>(w + v * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const float* at = x + i * step + v * kLanes;
          acc[i][v] = fma(whole ? load<F32>(at) : load_partial(at, count), weight, acc[i][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(sums + i * kBlock + v * kLanes, acc[i][v]);
}

// Pixels [begin, end), whose taps are all inside, of a vector of channels. The last tile may overlap the one before.
template <int MR>
inline void tiles(const ConvShape& shape, const Row& row, int64_t begin, int64_t end, int64_t k, float* sums) {
  for (int64_t q = begin; q < end; q += MR) {
    const int64_t at = min(q, end - MR);
    tile<MR, 1, true>(shape, row, at, 0, shape.s, k, kLanes, sums + (at - begin) * kBlock);
  }
}

// sums: [end - begin][kBlock], of pixels [begin, end) and `count` channels from k0.
void sum_pixels(const ConvShape& shape, const Row& row, int64_t begin, int64_t end, int64_t k0, int64_t count,
                float* sums) {
  int64_t first, last;  // the pixels whose taps are all inside
  inside(-shape.pad_left, shape.stride_w, shape.q(), shape.w, &first, &last);
  int64_t unused;
  inside((shape.s - 1) * shape.dilation_w - shape.pad_left, shape.stride_w, shape.q(), shape.w, &unused, &last);
  first = min(max(first, begin), end), last = max(min(last, end), first);
  const int64_t tail = count % kLanes, whole = count - tail;
  if (tail > 0 || last - first < kNarrow) last = first;
  for (int64_t k = 0; k < whole && last > first; k += kLanes) {
    float* to = sums + (first - begin) * kBlock + k;
    if (last - first < kWide) {
      tiles<kNarrow>(shape, row, first, last, k0 + k, to);
    } else {
      tiles<kWide>(shape, row, first, last, k0 + k, to);
    }
  }
  for (int64_t q = begin; q < end; ++q) {
    if (q == first && last > first) q = last;
    if (q == end) break;
    int64_t s0, s1;
    inside(q * shape.stride_w - shape.pad_left, shape.dilation_w, shape.s, shape.w, &s0, &s1);
    float* to = sums + (q - begin) * kBlock;
    if (count == kBlock) {
      tile<1, kVectors, true>(shape, row, q, s0, s1, k0, kLanes, to);
      continue;
    }
    for (int64_t k = 0; k < whole; k += kLanes) tile<1, 1, true>(shape, row, q, s0, s1, k0 + k, kLanes, to + k);
    if (tail > 0) tile<1, 1, false>(shape, row, q, s0, s1, k0 + whole, tail, to + whole);
  }
}

void run_row(const ConvArgs& args, const Epilogue& e, const Row& row) {
  const ConvShape& shape = args.shape;
  const int64_t q_size = shape.q();
  float sums[kChunk * kBlock];
  int64_t y_at[kChunk], residual_at[kChunk];
  for (int64_t q = 0; q < q_size; q += kChunk) {
    const int64_t pixels = min(kChunk, q_size - q);
    for (int64_t i = 0; i < pixels; ++i) {
      y_at[i] = row.y_at + (q + i) * args.y_stride[3];
      residual_at[i] = row.residual_at + (q + i) * args.residual.stride[3];
    }
    for (int64_t k0 = 0; k0 < shape.k; k0 += kBlock) {
      const int64_t count = min(kBlock, shape.k - k0);
      sum_pixels(shape, row, q, q + pixels, k0, count, sums);
      finish(e, {sums, kBlock, pixels, y_at, residual_at, k0, count});
    }
  }
}

void run(const void* blocking, const ConvArgs& args, const float* weight, char* workspace, const Executor& executor) {
  const ConvShape& shape = args.shape;
  const Plan& plan = *static_cast<const Plan*>(blocking);
  auto* copy = reinterpret_cast<float*>(workspace);
  const Epilogue epilogue = make_epilogue(args);
  const int64_t p_size = shape.p();
  const int64_t row_work = shape.q() * shape.k * shape.r * shape.s;
  for (int64_t n = 0; n < shape.n; n += plan.images) {
    const int64_t images = min(plan.images, shape.n - n);
    if (plan.copied) {
      to_nhwc(copy, args.x, args.dtype, n, images, shape, plan.multiplier, shape.h, shape.w, 0, 0, executor);
    }
    parallel_for(executor, 0, images * p_size, 1 + 65536 / row_work, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t i = at / p_size, p = at % p_size, image = n + i;
        Row row;
        row.weight = weight;
        row.y_at = image * args.y_stride[0] + p * args.y_stride[2];
        row.residual_at = image * args.residual.stride[0] + p * args.residual.stride[2];
        if (plan.copied) {
          row.x = copy + i * plan.image_floats;
          row.stride_h = shape.w * shape.k;
          row.stride_w = shape.k;
        } else {
          row.x = static_cast<const float*>(args.x.data) + image * args.x.stride[0];
          row.stride_h = args.x.stride[2];
          row.stride_w = args.x.stride[3];
        }
        const int64_t h0 = p * shape.stride_h - shape.pad_top;
        inside(h0, shape.dilation_h, shape.r, shape.h, &row.r0, &row.r1);
        row.x += h0 * row.stride_h - shape.pad_left * row.stride_w;
        run_row(args, epilogue, row);
      }
    });
  }
}

}  // namespace

extern const ConvMethod conv_depthwise;
const ConvMethod conv_depthwise = {packed_floats, pack, make_plan, run};

}  // namespace PK_ISA
}  // namespace pk
