// Depthwise: a channel a lane. Bytes of x and of the weight are widened to 32 bits, of which the weight's upper 16 are
// zero: then dot2 of the two is their product, and its sum the sum, in one or two instructions.
//
// A task is a row of the output: first the address of each tap of each pixel, with a pixel of x_zero_point beyond the
// edges; then vector by vector of channels, so that the weight stays in registers (3x3) or in L1, and x in L1.
#pragma once

#include "cpu/int8_conv2d/epilogue.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

// `taps`: as many as kTaps, where that is not 0.
template <Kind kind, int kTaps>
inline void depthwise_row(const Finish& f, const int8_t* const* pointers, const Pixel* pixels, int64_t q, int64_t taps,
                          const char* body, int64_t columns, int64_t channels) {
  const auto* const starts = reinterpret_cast<const int32_t*>(body);
  const int32_t* const weights = starts + columns;
  const int64_t count_of_taps = kTaps != 0 ? kTaps : taps;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t count = smaller(kLanes, channels - c);
    const Channels<kind> finish(f, c, c, count);
    const I32 start = load<I32>(starts + c);
    I32 w[kTaps + 1];
    for (int t = 0; t < kTaps; ++t) w[t] = load<I32>(weights + t * columns + c);
    for (int64_t i = 0; i < q; ++i) {
      const int8_t* const* const from = pointers + i * count_of_taps;
      I32 sum = start;
      if (count == kLanes) {
        if constexpr (kTaps != 0) {
#pragma GCC unroll 9
          for (int t = 0; t < kTaps; ++t) {
            sum = dot2(sum, bit_cast<I16>(to_i32(load<I8Quarter>(from[t] + c))), bit_cast<I16>(w[t]));
          }
        } else {
          for (int64_t t = 0; t < taps; ++t) {
            sum = dot2(sum, bit_cast<I16>(to_i32(load<I8Quarter>(from[t] + c))), load<I16>(weights + t * columns + c));
          }
        }
      } else {
        for (int64_t t = 0; t < count_of_taps; ++t) {
          sum = dot2(sum, bit_cast<I16>(load_bytes(from[t] + c, count)), load<I16>(weights + t * columns + c));
        }
      }
      finish.put(sum, pixels[i]);
    }
  }
}

struct Depthwise {
  const Int8ConvPlan& plan;
  const ConvShape& shape;
  const Int8ConvBlocking& cut;
  const int8_t* x;
  int64_t stride[4];  // of x, with adjacent channels
  const char* body;
  Finish epilogue;

  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const int64_t q = shape.q(), taps = cut.depth;
    const Int8ConvLayout layout(shape);
    auto* const pointers = reinterpret_cast<const int8_t**>(memory);
    auto* const blank = reinterpret_cast<int8_t*>(memory + round_up(8 * q * taps, 64));
    auto* const pixels = reinterpret_cast<Pixel*>(memory + cut.a_bytes);
    std::memset(blank, plan.options.x_zero_point, static_cast<size_t>(layout.columns));
    for (int64_t row = part_begin(cut.blocks, i, cut.slots); row < part_begin(cut.blocks, i + 1, cut.slots); ++row) {
      const int64_t n = row / shape.p(), p = row % shape.p();
      const int8_t* const image = x + n * stride[0];
      for (int64_t j = 0; j < q; ++j) {
        pixels[j] = pixel_at(plan, n, p, j);
        const int8_t** to = pointers + j * taps;
        for (int64_t r = 0; r < shape.r; ++r) {
          const int64_t y = p * shape.stride_h - shape.pad_top + r * shape.dilation_h;
          for (int64_t s = 0; s < shape.s; ++s) {
            const int64_t at = j * shape.stride_w - shape.pad_left + s * shape.dilation_w;
            const bool within = y >= 0 && y < shape.h && at >= 0 && at < shape.w;
            *to++ = within ? image + y * stride[2] + at * stride[3] : blank;
          }
        }
      }
      if (taps == 9) {
        depthwise_row<kind, 9>(epilogue, pointers, pixels, q, taps, body, layout.columns, shape.c);
      } else {
        depthwise_row<kind, 0>(epilogue, pointers, pixels, q, taps, body, layout.columns, shape.c);
      }
    }
  }
};

inline void pack_depthwise(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body) {
  const Int8ConvLayout layout(s);
  auto* const starts = reinterpret_cast<int32_t*>(body);
  std::memset(body, 0, static_cast<size_t>(layout.group_bytes()));
  for (int64_t c = 0; c < s.c; ++c) {
    int32_t sum = 0;
    for (int64_t t = 0; t < layout.depth; ++t) {
      const int32_t w = weight[c * layout.depth + t];
      sum += w;
      starts[(1 + t) * layout.columns + c] = w & 0xffff;
    }
    starts[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(x_zero_point) * static_cast<uint32_t>(sum));
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
