// Where the pixels of a block lie: the direct convolution's pointers to x for each output pixel and tap, and offsets
// into y and the residual.
#pragma once

#include "cpu/conv_bn_act/direct_plan.h"

namespace pk {
namespace PK_ISA {
namespace {

// The images in work: pixels [0, images * pixels) of `x`, float32.
struct Source {
  const float* x;
  int64_t stride_n, stride_h, stride_w;  // in floats
  const float* zeros;
  int64_t first_image;
};

// How the pixels of a block are shared: `large` tiles of size + 1 pixels, then `small` ones of size.
struct Sharing {
  int64_t large, small, size;

  explicit Sharing(int64_t pixels) {
    const int64_t tiles = ceil_div(pixels, kTilePixels);
    size = pixels / tiles;
    large = pixels % tiles;
    small = tiles - large;
  }
  int64_t tiles() const { return large + small; }
  int64_t pixels() const { return large * (size + 1) + small * size; }
};

// Numbers a constant step apart, a vector at a time.
struct Ramp {
  I64 steps;
  int64_t vector_step;

  explicit Ramp(int64_t step) : vector_step(kVecBytes / 8 * step) {
    for (int i = 0; i < kVecBytes / 8; ++i) steps[i] = i * step;
  }
  // `count` numbers from `first` on, and as many more as fill the last vector.
  void fill(void* to, int64_t first, int64_t count) const {
    I64 v = steps + first;
    for (int64_t i = 0; i < count; i += kVecBytes / 8, v += vector_step) store(static_cast<int64_t*>(to) + i, v);
  }
};

inline int64_t address(const float* x) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(x)); }

// The columns of the output in bands of which all pixels meet the same taps, where the filter is dilated: so taps that
// meet nothing but padding are those of whole tiles. Pixels go band by band.
struct Bands {
  static constexpr int64_t kMostTaps = 3;
  int64_t count = 1, ends[2 * kMostTaps + 1];  // band i: columns from the end of the one before

  explicit Bands(const ConvShape& shape) {
    const int64_t q = shape.q();
    ends[0] = q;
    if (shape.dilation_w == 1 || shape.s == 1 || shape.s > kMostTaps) return;
    for (int64_t s = 0; s < shape.s; ++s) {
      // Tap s reads in [0, w) from the first column to before the second.
      const int64_t at = s * shape.dilation_w - shape.pad_left;
      insert(ceil_div(max(-at, 0), shape.stride_w), q);
      insert(ceil_div(max(shape.w - at, 0), shape.stride_w), q);
    }
  }

  void insert(int64_t column, int64_t q) {
    if (column <= 0 || column >= q) return;
    int64_t i = count;
    for (; i > 0 && ends[i - 1] > column; --i) {
    }
    if (i > 0 && ends[i - 1] == column) return;
    for (int64_t j = count++; j > i; --j) ends[j] = ends[j - 1];
    ends[i] = column;
  }
  int64_t begin(int64_t i) const { return i == 0 ? 0 : ends[i - 1]; }
  int64_t width(int64_t i) const { return ends[i] - begin(i); }
};

// Pixels of a tile that stand in one row of the output.
struct Segment {
  int64_t at, count;  // in the tile
  int64_t h0, w0;     // where the first tap of the first pixel lies in x, though that may be outside,
  const float* x;
};

// What `point` fills: see Tiles.
struct Table {
  const float** rows;  // or null: not wanted
  int64_t* y_at;
  int64_t* residual_at;
};

// Pointers and offsets of output pixels [begin, ...), tile by tile. `skips`: taps without a pixel of x are marked by
// null. Whole vectors are written, so whatever comes later has to be written later.
void point(const ConvArgs& args, const Plan& plan, const Source& source, int64_t begin, const Sharing& sharing,
           bool skips, Table table) {
  const ConvShape& shape = args.shape;
  const int64_t p_size = shape.p();
  const Bands bands(shape);
  const Ramp x_ramp(shape.stride_w * source.stride_w * 4), zeros_ramp(0);
  const Ramp y_ramp(args.y_stride[3]), residual_ramp(args.residual.stride[3]);
  int64_t n = begin / plan.pixels, left = begin % plan.pixels, band = 0;
  for (; left >= p_size * bands.width(band); ++band) left -= p_size * bands.width(band);
  int64_t p = left / bands.width(band), q = bands.begin(band) + left % bands.width(band);
  for (int64_t tile = 0; tile < sharing.tiles(); ++tile) {
    const int64_t size = sharing.size + (tile < sharing.large);
    Segment segments[kTilePixels];
    int64_t count = 0;
    for (int64_t i = 0; i < size;) {
      const int64_t image = source.first_image + n, h0 = p * shape.stride_h - shape.pad_top;
      const int64_t w0 = q * shape.stride_w - shape.pad_left;
      Segment& segment = segments[count++];
      segment = {i, min(size - i, bands.ends[band] - q), h0, w0,
                 source.x + n * source.stride_n + h0 * source.stride_h + w0 * source.stride_w};
      const auto offset = [&](const int64_t* stride) { return image * stride[0] + p * stride[2] + q * stride[3]; };
      y_ramp.fill(table.y_at + i, offset(args.y_stride), segment.count);
      residual_ramp.fill(table.residual_at + i, offset(args.residual.stride), segment.count);
      i += segment.count;
      q += segment.count;
      if (q == bands.ends[band]) {
        if (++p == p_size) {
          p = 0;
          if (++band == bands.count) band = 0, ++n;
        }
        q = bands.begin(band);
      }
    }
    table.y_at += size;
    table.residual_at += size;
    if (table.rows == nullptr) continue;
    for (int64_t r = 0; r < shape.r; ++r) {
      for (int64_t s = 0; s < shape.s; ++s, table.rows += size) {
        bool reads = false;
        for (int64_t i = 0; i < count; ++i) {
          const Segment& segment = segments[i];
          const float** to = table.rows + segment.at;
          const int64_t h = segment.h0 + r * shape.dilation_h, w = segment.w0 + s * shape.dilation_w;
          const int64_t last = w + (segment.count - 1) * shape.stride_w;
          if (h < 0 || h >= shape.h || last < 0 || w >= shape.w) {
            zeros_ramp.fill(to, address(source.zeros), segment.count);
            continue;
          }
          const float* x = segment.x + r * shape.dilation_h * source.stride_h + s * shape.dilation_w * source.stride_w;
          x_ramp.fill(to, address(x), segment.count);
          if (w >= 0 && last < shape.w) {
            reads = true;
            continue;
          }
          for (int64_t j = 0; j < segment.count; ++j) {
            const int64_t at = w + j * shape.stride_w;
            if (at >= 0 && at < shape.w) {
              reads = true;
            } else {
              to[j] = source.zeros;
            }
          }
        }
        if (skips && !reads) table.rows[0] = nullptr;
      }
    }
  }
}

// The x of output pixels [begin, begin + count) to `to`, plan.pitch apart: 1 x 1 alone.
void gather(const ConvArgs& args, const Plan& plan, const Source& source, int64_t begin, int64_t count, float* to) {
  const ConvShape& shape = args.shape;
  const int64_t q_size = shape.q(), p_size = shape.p(), step = shape.stride_w * args.x.stride[3];
  const bool inside = shape.pad_top == 0 && shape.pad_left == 0 && shape.pad_bottom == 0 && shape.pad_right == 0;
  const bool joined = inside && shape.stride_h * args.x.stride[2] == q_size * step;
  for (int64_t i = begin, run; i < begin + count; i += run, to += run * plan.pitch) {
    const int64_t q = i % q_size, p = i / q_size % p_size, n = source.first_image + i / plan.pixels;
    const int64_t h = p * shape.stride_h - shape.pad_top, w = q * shape.stride_w - shape.pad_left;
    run = min(begin + count - i, joined ? plan.pixels - i % plan.pixels : inside ? q_size - q : 1);
    if (h < 0 || h >= shape.h || w < 0 || w >= shape.w) {
      std::memset(to, 0, static_cast<size_t>(shape.c) * 4);
      continue;
    }
    copy_pixels(to, plan.pitch, run, shape.c, args.x, args.dtype,
                n * args.x.stride[0] + h * args.x.stride[2] + w * args.x.stride[3], step);
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
