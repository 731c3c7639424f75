// Depthwise: a channel a lane. Bytes of x and of the weight are widened to 32 bits; on x86 the weight's upper 16 are
// zero: then dot2 of the two is their product, and its sum the sum, in one or two instructions.
//
// A task is a row of the output. Where 3x3 or 5x5 taps lie within x's width, four pixels share the bytes that they have
// in common, each widened once; elsewhere, and for other filters, the address of each tap of each pixel is made first,
// with a pixel of x_zero_point beyond the edges. Vector by vector of channels: the weight stays in registers or L1, x
// in L1.
#pragma once

#include "cpu/int8_conv2d/choose.h"
#include "cpu/int8_conv2d/epilogue.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

// Channels [channel, channel + count) of x and of the packed form.
struct Lanes {
  const int32_t *starts, *weights;
  int64_t columns, channel, count;

  I32 weight(int64_t tap) const { return load<I32>(weights + tap * columns + channel); }
};

// A line of x that a line of the filter reads, from the first pixel's first tap on; beyond the edges one pixel again
// and again.
struct Line {
  const int8_t* x;
  int64_t step;
};

inline constexpr int kTogether = 4;  // as put_four has

static_assert(sizeof(const int8_t*) == kTapBytes && sizeof(Pixel) == kPixelBytes);

// Pixels [begin, end), a multiple of kTogether, of lines[kTaps], whose taps are all within.
template <Kind kind, int kTaps, int kStride>
inline void depthwise_inner(const Channels<kind>& outputs, const Lanes& lanes, const Line* lines, const Pixel* pixels,
                            int64_t begin, int64_t end) {
  const I32 start = load<I32>(lanes.starts + lanes.channel);
  // Said here: after each store of bytes the compiler would read them again. 25 would not fit the registers.
  constexpr int kKept = kTaps == 3 ? 9 : 0;
  I32 kept[kKept + 1];
  for (int t = 0; t < kKept; ++t) kept[t] = lanes.weight(t);
  for (int64_t i = begin; i < end; i += kTogether) {
    I32 sum[kTogether];
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) sum[j] = start;
#pragma GCC unroll 5
    for (int r = 0; r < kTaps; ++r) {
      const int8_t* const x = lines[r].x + i * kStride * lines[r].step + lanes.channel;
#pragma GCC unroll 16
      for (int column = 0; column < kTaps + (kTogether - 1) * kStride; ++column) {
        const I32 v = to_i32(load<I8Quarter>(x + column * lines[r].step));
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) {
          const int tap = column - j * kStride;
          if (tap < 0 || tap >= kTaps) continue;
          if constexpr (kKept != 0) {
            sum[j] = multiply_add(sum[j], v, kept[r * kTaps + tap]);
          } else {
            sum[j] = multiply_add(sum[j], v, lanes.weight(r * kTaps + tap));
          }
        }
      }
    }
    if constexpr (!is_short(kind)) {
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) outputs.put(sum[j], pixels[i + j]);
    } else {  // of whole vectors
      outputs.put_four(sum[0], sum[1], sum[2], sum[3], [&](int j) { return pixels[i + j]; });
    }
  }
}

// Any pixels [begin, end), each of `taps` pointers.
template <Kind kind>
inline void depthwise_edge(const Channels<kind>& outputs, const Lanes& lanes, const int8_t* const* pointers,
                           const Pixel* pixels, int64_t begin, int64_t end, int64_t taps) {
  for (int64_t i = begin; i < end; ++i) {
    const int8_t* const* const from = pointers + i * taps;
    I32 sum = load<I32>(lanes.starts + lanes.channel);
    for (int64_t t = 0; t < taps; ++t) {
      sum = multiply_add(sum, load_bytes(from[t] + lanes.channel, lanes.count), lanes.weight(t));
    }
    outputs.put(sum, pixels[i]);
  }
}

struct Depthwise : Int8Conv {
  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const int64_t q = shape.q();
    const Int8ConvLayout layout(shape);
    auto* const pointers = reinterpret_cast<const int8_t**>(memory);
    auto* const blank = reinterpret_cast<int8_t*>(memory + cut.spots_bytes);
    auto* const pixels = reinterpret_cast<Pixel*>(memory + cut.spots_bytes + cut.x_bytes);
    std::memset(blank, plan.options.x_zero_point, static_cast<size_t>(layout.columns));
    for (int64_t row = share(cut.row_blocks, i, cut.slots); row < share(cut.row_blocks, i + 1, cut.slots); ++row) {
      const int64_t n = row / shape.p(), p = row % shape.p();
      const int8_t* const image = x + n * stride[0];
      for (int64_t j = 0; j < q; ++j) pixels[j] = pixel_at(plan, n, p, j);
      const bool square = shape.r == shape.s && shape.dilation_h == 1 && shape.dilation_w == 1;
      if (square && shape.s == 3 && shape.stride_w == 1) {
        row_of<kind, 3, 1>(image, p, pointers, blank, pixels);
      } else if (square && shape.s == 3 && shape.stride_w == 2) {
        row_of<kind, 3, 2>(image, p, pointers, blank, pixels);
      } else if (square && shape.s == 5 && shape.stride_w == 1) {
        row_of<kind, 5, 1>(image, p, pointers, blank, pixels);
      } else if (square && shape.s == 5 && shape.stride_w == 2) {
        row_of<kind, 5, 2>(image, p, pointers, blank, pixels);
      } else {
        row_of<kind, 0, 1>(image, p, pointers, blank, pixels);
      }
    }
  }

 private:
  // The taps of pixels [begin, end) of row p.
  void point(const int8_t* image, int64_t p, int64_t begin, int64_t end, const int8_t* blank,
             const int8_t** pointers) const {
    for (int64_t j = begin; j < end; ++j) {
      const int8_t** to = pointers + j * shape.r * shape.s;
      for (int64_t r = 0; r < shape.r; ++r) {
        const int64_t y = p * shape.stride_h - shape.pad_top + r * shape.dilation_h;
        for (int64_t s = 0; s < shape.s; ++s) {
          const int64_t at = j * shape.stride_w - shape.pad_left + s * shape.dilation_w;
          const bool within = y >= 0 && y < shape.h && at >= 0 && at < shape.w;
          *to++ = within ? image + y * stride[2] + at * stride[3] : blank;
        }
      }
    }
  }

  // Row p of an image; kTaps 0: of any filter.
  template <Kind kind, int kTaps, int kStride>
  void row_of(const int8_t* image, int64_t p, const int8_t** pointers, const int8_t* blank, const Pixel* pixels) const {
    const int64_t q = shape.q(), channels = shape.c;
    const Int8ConvLayout layout(shape);
    const auto* const starts = reinterpret_cast<const int32_t*>(body);
    Line lines[kTaps + 1];
    int64_t begin = 0, end = 0;  // of the pixels whose taps are within x's width, as many as go together
    if constexpr (kTaps != 0) {
      for (int r = 0; r < kTaps; ++r) {
        const int64_t y = p * shape.stride_h - shape.pad_top + r;
        lines[r] = y >= 0 && y < shape.h ? Line{image + y * stride[2] - shape.pad_left * stride[3], stride[3]}
                                         : Line{blank, 0};
      }
      begin = min(q, ceil_div(shape.pad_left, kStride));
      const int64_t last = shape.w + shape.pad_left - kTaps;  // the first tap's column of the last such pixel
      end = last < 0 ? begin : max(begin, min(q, last / kStride + 1));
      end = begin + (end - begin) / kTogether * kTogether;
    }
    if (channels < kLanes) end = begin;  // no whole vector, and so none but edges
    point(image, p, 0, begin, blank, pointers);
    point(image, p, end, q, blank, pointers);
    for (int64_t c = 0; c < channels; c += kLanes) {
      // The last vector begins earlier and writes some channels twice.
      const int64_t at = c + kLanes > channels && channels >= kLanes ? channels - kLanes : c;
      const Lanes lanes{starts, starts + layout.columns, layout.columns, at, min(kLanes, channels - at)};
      const Channels<kind> outputs(epilogue, at, at, lanes.count);
      if constexpr (kTaps != 0) {
        depthwise_inner<kind, kTaps, kStride>(outputs, lanes, lines, pixels, begin, end);
      }
      depthwise_edge<kind>(outputs, lanes, pointers, pixels, 0, begin, layout.taps);
      depthwise_edge<kind>(outputs, lanes, pointers, pixels, end, q, layout.taps);
    }
  }
};

inline void pack_depthwise(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body) {
  const Int8ConvLayout layout(s);
  auto* const starts = reinterpret_cast<int32_t*>(body);
  std::memset(body, 0, static_cast<size_t>(layout.group_bytes()));
  for (int64_t c = 0; c < s.c; ++c) {
    int32_t sum = 0;
    for (int64_t t = 0; t < layout.taps; ++t) {
      const int32_t w = weight[c * layout.taps + t];
      sum += w;
      starts[(1 + t) * layout.columns + c] = factor(w);
    }
    starts[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(x_zero_point) * static_cast<uint32_t>(sum));
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
