// Depthwise convolution: every channel its own filter(s), channels in lanes.
//
//   y[p, q, k] = sum over taps of x[p * stride + r, q * stride + s, k / multiplier] * weight[tap][k]
//
// A tile of neighbouring pixels of one row shares the weight vectors; x is read in vectors of adjacent channels. With
// a multiplier above one, x's channels are repeated in its copy, so that the same loop serves.
// Weight: [tap][k], padded to whole vectors.
#include "common/rounding.h"
#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/nhwc.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int kPixels = (kRegisters - 4) / 2;
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

struct Row {
  const float* x;  // image
  int64_t stride_h, stride_w;
  const float* weight;
  int64_t p;
  int64_t y_at, residual_at;  // of pixel 0 of the row
};

// Pixels [q0, q0 + MR) x channels [k0, k0 + count) of a row; checks every tap where `edge`.
template <int MR, bool edge>
inline void tile(const ConvArgs& args, const Epilogue& e, const Row& row, int64_t q0, int64_t k0, int64_t count) {
  const ConvShape& shape = args.shape;
  const int64_t weight_row = round_up(shape.k, kLanes);
  F32 acc[MR] = {};
  for (int64_t r = 0; r < shape.r; ++r) {
    const int64_t h = row.p * shape.stride_h - shape.pad_top + r * shape.dilation_h;
    if (h < 0 || h >= shape.h) continue;
    for (int64_t s = 0; s < shape.s; ++s) {
      const F32 weight = load<F32>(row.weight + (r * shape.s + s) * weight_row + k0);
      const int64_t w0 = q0 * shape.stride_w - shape.pad_left + s * shape.dilation_w;
      const float* x = row.x + h * row.stride_h + k0;
      for (int i = 0; i < MR; ++i) {
        const int64_t w = w0 + i * shape.stride_w;
        if (edge && (w < 0 || w >= shape.w)) continue;
        const float* at = x + w * row.stride_w;
        acc[i] = fma(count == kLanes ? load<F32>(at) : load_partial(at, count), weight, acc[i]);
      }
    }
  }
  float sums[MR * kLanes];
  int64_t y_at[MR], residual_at[MR];
  for (int i = 0; i < MR; ++i) {
    store(sums + i * kLanes, acc[i]);
    y_at[i] = row.y_at + (q0 + i) * args.y_stride[3];
    residual_at[i] = row.residual_at + (q0 + i) * args.residual.stride[3];
  }
  finish(e, sums, kLanes, MR, y_at, residual_at, k0, count);
}

void run_row(const ConvArgs& args, const Epilogue& e, const Row& row) {
  const ConvShape& shape = args.shape;
  const int64_t q_size = shape.q(), reach = (shape.s - 1) * shape.dilation_w;
  for (int64_t k0 = 0; k0 < shape.k; k0 += kLanes) {
    const int64_t count = min(kLanes, shape.k - k0);
    for (int64_t q = 0; q < q_size;) {
      const int64_t w0 = q * shape.stride_w - shape.pad_left;
      const int64_t w1 = w0 + (kPixels - 1) * shape.stride_w + reach;
      if (w0 >= 0 && w1 < shape.w && q + kPixels <= q_size && count == kLanes) {
        tile<kPixels, false>(args, e, row, q, k0, kLanes);
        q += kPixels;
      } else {
        tile<1, true>(args, e, row, q, k0, count);
        ++q;
      }
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
        row.p = p;
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
