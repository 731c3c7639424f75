// Depthwise where the ISA multiplies bytes in fours: the four bytes of a 32-bit lane are those of four lines of x, one
// below the other, of one channel and column. So a column of a filter of 3 lines is one product, and where its stride
// is 1 the same bytes serve two rows of the output, with the filter one byte further for the second.
//
// A task is kQuadRows rows of the output. For 16 channels at a time: the lines are interleaved once, with the padding,
// then, for each vector of channels, each of the columns of the filter is a product for four pixels and the rows.
#pragma once

#include "cpu/int8_conv2d/choose.h"
#include "cpu/int8_conv2d/epilogue.h"
#include "cpu/int8_matmul/pack_b.h"

namespace pk {
namespace PK_ISA {
namespace {

// Of 16 channels: starts, and a quad of taps for each row of the output, four lines and column.
struct QuadWeights {
  const int32_t* starts;
  const int8_t* quads;  // [rows][quads][s][kQuadBytes]
};

// Four bytes of each of 16 channels.
constexpr int64_t kQuadChannels = 16, kQuadBytes = 4 * kQuadChannels;
static_assert(kQuadBytes % kVecBytes == 0);

struct DepthwiseQuads : Int8Conv {
  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const QuadShape quads(shape);
    const int64_t passes = ceil_div(shape.p(), quads.rows), tasks = shape.n * passes, q = shape.q();
    auto* const lines = reinterpret_cast<int8_t*>(memory);
    auto* const pixels = reinterpret_cast<Pixel*>(memory + cut.x_bytes);
    for (int64_t task = share(tasks, i, cut.slots); task < share(tasks, i + 1, cut.slots); ++task) {
      const int64_t n = task / passes, p = task % passes * quads.rows, rows = min(quads.rows, shape.p() - p);
      for (int64_t begin = 0; begin < q; begin += kQuadColumns) {
        const int64_t columns = min(kQuadColumns, q - begin);
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t j = 0; j < columns; ++j) pixels[row * kQuadColumns + j] = pixel_at(plan, n, p + row, begin + j);
        }
        if (rows == 2) {
          channels<kind, 2>(n, p, begin, columns, lines, pixels);
        } else {
          channels<kind, 1>(n, p, begin, columns, lines, pixels);
        }
      }
    }
  }

 private:
  template <Kind kind, int kRows>
  void channels(int64_t n, int64_t p, int64_t begin, int64_t columns, int8_t* lines, const Pixel* pixels) const {
    const QuadShape quads(shape);
    const auto* const starts = reinterpret_cast<const int32_t*>(body);
    const auto* const weights = reinterpret_cast<const int8_t*>(starts + Int8ConvLayout(shape).columns);
    const int64_t width = columns_read(shape, columns);
    for (int64_t block = 0; block * kQuadChannels < shape.c; ++block) {
      // The last one begins earlier and writes some channels twice.
      const int64_t first = min(block * kQuadChannels, shape.c - kQuadChannels);
      for (int64_t quad = 0; quad < quads.quads; ++quad) {
        interleave_lines(x + n * stride[0] + first, p * shape.stride_h + quad * 4 * shape.dilation_h,
                         begin * shape.stride_w - shape.pad_left, width, lines + quad * width * kQuadBytes);
      }
      for (int64_t part = 0; part < kQuadChannels; part += kLanes) {
        const int64_t channel = first + part;
        const Channels<kind> outputs(epilogue, channel, channel, kLanes);
        const QuadWeights w{starts + channel, weights + block * quads.bytes() + 4 * part};
        const int8_t* const bytes = lines + 4 * part;
        for (int64_t j = 0; j < columns; j += 4) {
          if (columns < 4) {
            for (; j < columns; ++j) put<kind, kRows, 1>(outputs, w, quads.quads, bytes, width, j, pixels);
          } else {  // the last four begin earlier and write some pixels twice
            put<kind, kRows, 4>(outputs, w, quads.quads, bytes, width, min(j, columns - 4), pixels);
          }
        }
      }
    }
  }

  // Lines y, y + dilation, ... of the padded x at columns [begin, begin + width), interleaved.
  void interleave_lines(const int8_t* image, int64_t y, int64_t begin, int64_t width, int8_t* to) const {
    int8_t blank[kQuadChannels];
    std::memset(blank, plan.options.x_zero_point, sizeof blank);
    const int8_t* from[4];
    int64_t step[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t line = y + i * shape.dilation_h - shape.pad_top;
      const bool within = line >= 0 && line < shape.h;
      from[i] = within ? image + line * stride[2] : blank;
      step[i] = within ? stride[3] : 0;
    }
    const I8 padding = I8{} + static_cast<int8_t>(plan.options.x_zero_point - kAOffset);
    int64_t i = 0;
    const auto pad = [&](int64_t at) {
      for (int64_t part = 0; part < kQuadBytes; part += kVecBytes) store(to + at * kQuadBytes + part, padding);
    };
    for (; i < width && begin + i < 0; ++i) pad(i);
    const int64_t end = min(width, shape.w - begin);
    for (; i < end; ++i) {
      const auto line = [&](int l) { return with_offset(load<Bytes16>(from[l] + (begin + i) * step[l])); };
      interleave_quads(line(0), line(1), line(2), line(3), to + i * kQuadBytes, to + i * kQuadBytes + 32);
    }
    for (; i < width; ++i) pad(i);
  }

  template <Kind kind, int kRows, int kPixels>
  void put(const Channels<kind>& outputs, const QuadWeights& w, int64_t quads, const int8_t* lines, int64_t width,
           int64_t j, const Pixel* pixels) const {
    I32 sum[kRows][kPixels];
    const I32 start = load<I32>(w.starts);
    for (auto& row : sum) {
      for (I32& s : row) s = start;
    }
    const int64_t row_bytes = quads * shape.s * kQuadBytes;
    const int8_t* tap = w.quads;
    for (int64_t quad = 0; quad < quads; ++quad, lines += width * kQuadBytes) {
      for (int64_t s = 0; s < shape.s; ++s, tap += kQuadBytes) {
        I8 weight[kRows];
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) weight[r] = load<I8>(tap + r * row_bytes);
#pragma GCC unroll 4
        for (int i = 0; i < kPixels; ++i) {
          const auto v = load<I8>(lines + ((j + i) * shape.stride_w + s * shape.dilation_w) * kQuadBytes);
#pragma GCC unroll 2
          for (int r = 0; r < kRows; ++r) sum[r][i] = dot4(sum[r][i], v, weight[r]);
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      const Pixel* const at = pixels + r * kQuadColumns + j;
      if constexpr (is_short(kind) && kPixels == 4) {
        outputs.put_four(sum[r][0], sum[r][1], sum[r][2], sum[r][3], [&](int i) { return at[i]; });
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < kPixels; ++i) {
          kind == Kind::any ? outputs.put(sum[r][i], at[i]) : outputs.put_whole(sum[r][i], at[i]);
        }
      }
    }
  }
};

// weight: (c, r, s).
inline void pack_quads(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body) {
  const QuadShape quads(s);
  const Int8ConvLayout layout(s);
  auto* const starts = reinterpret_cast<int32_t*>(body);
  auto* const to = reinterpret_cast<int8_t*>(starts + layout.columns);
  std::memset(body, 0, static_cast<size_t>(layout.group_bytes()));
  for (int64_t c = 0; c < s.c; ++c) {
    int32_t sum = 0;
    for (int64_t t = 0; t < layout.taps; ++t) sum += weight[c * layout.taps + t];
    starts[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(x_zero_point + kAOffset) * static_cast<uint32_t>(sum));
  }
  for (int64_t block = 0; block * 16 < s.c; ++block) {
    const int64_t channel = min(block * 16, s.c - 16);
    for (int64_t row = 0; row < quads.rows; ++row) {
      for (int64_t r = 0; r < s.r; ++r) {
        const int64_t line = row * s.stride_h + r;
        for (int64_t t = 0; t < s.s; ++t) {
          int8_t* const quad = to + block * quads.bytes() + ((row * quads.quads + line / 4) * s.s + t) * 64 + line % 4;
          for (int64_t c = 0; c < 16; ++c) quad[4 * c] = weight[(channel + c) * layout.taps + r * s.s + t];
        }
      }
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
