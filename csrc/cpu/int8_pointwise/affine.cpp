// A number times its channel's scale plus its channel's shift, with an activation. Two loops; each call chooses one:
//
//   channels adjacent in all tensors (channels_last and slices of it): pixel by pixel, vectors of channels
//   else:                                                              rows of pixels of one channel, vectors of pixels
#include "cpu/activate.h"
#include "cpu/int8_pointwise/bounds.h"
#include "cpu/int8_pointwise/kernels.h"

namespace pk {
namespace PK_ISA {
namespace {

using Args = Int8AffineArgs;

// kBounds: the activation is_bounds.
template <bool kBounds>
class Affine {
 public:
  explicit Affine(const Args& a)
      : inverse_(broadcast(a.y_inverse)),
        rounding_(rounding_within(a.y_zero, a.activation, inverse_)),
        activation_(a.activation),
        negative_slope_(a.negative_slope) {}

  I32 operator()(I32 q, F32 scale, F32 shift) const {
    F32 t = to_f32(q) * scale + shift;
    if constexpr (!kBounds) t = activate(t, activation_, negative_slope_);
    return rounding_(t * inverse_);
  }

 private:
  F32 inverse_;
  Rounding rounding_;
  Activation activation_;
  float negative_slope_;
};

// Adjacent elements, of as many channels.
template <bool kBounds>
struct OfChannels {
  Affine<kBounds> affine;
  const int8_t* x;
  const float *scale, *shift;

  I32 operator()(int64_t i) const { return affine(load_bytes(x + i), load<F32>(scale + i), load<F32>(shift + i)); }
  I32 operator()(int64_t i, int64_t n) const {
    return affine(load_bytes(x + i, n), load_partial(scale + i, n), load_partial(shift + i, n));
  }
};

// Adjacent elements of one channel.
template <bool kBounds>
struct OfPixels {
  Affine<kBounds> affine;
  const int8_t* x;
  F32 scale, shift;

  I32 operator()(int64_t i) const { return affine(load_bytes(x + i), scale, shift); }
  I32 operator()(int64_t i, int64_t n) const { return affine(load_bytes(x + i, n), scale, shift); }
};

// Pixels [begin, end) of n * h * w.
template <bool kBounds>
void channels(const Args& a, int64_t begin, int64_t end) {
  const Affine<kBounds> affine(a);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t row = pixel / a.w, w = pixel % a.w, n = row / a.h, h = row % a.h;
    const auto at = [&](const int64_t* stride) { return n * stride[0] + h * stride[2] + w * stride[3]; };
    int8_t* y = a.y + at(a.y_stride);
    const float *scale = a.scale, *shift = a.shift;
    for (int64_t i = 0; i < a.pieces; ++i) {
      const Int8Piece& x = a.x[i];
      store_row(OfChannels<kBounds>{affine, x.data + at(x.stride), scale, shift}, x.channels, y);
      y += x.channels, scale += x.channels, shift += x.channels;
    }
  }
}

// Planes [begin, end) of n * c, in any layout.
template <bool kBounds>
void planes(const Args& a, int64_t begin, int64_t end) {
  const Affine<kBounds> affine(a);
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t n = plane / a.c, c = plane % a.c;
    int64_t i = 0, first = 0;
    while (c - first >= a.x[i].channels) first += a.x[i++].channels;
    const Int8Piece& x = a.x[i];
    const F32 scale = broadcast(a.scale[c]), shift = broadcast(a.shift[c]);
    for (int64_t h = 0; h < a.h; ++h) {
      const int8_t* from = x.data + n * x.stride[0] + (c - first) * x.stride[1] + h * x.stride[2];
      int8_t* y = a.y + n * a.y_stride[0] + c * a.y_stride[1] + h * a.y_stride[2];
      if (x.stride[3] == 1 && a.y_stride[3] == 1) {
        store_row(OfPixels<kBounds>{affine, from, scale, shift}, a.w, y);
        continue;
      }
      for (int64_t w = 0; w < a.w; w += kLanes) {
        const int64_t count = min(int64_t{kLanes}, a.w - w);
        int8_t lanes[kLanes] = {};
        for (int64_t j = 0; j < count; ++j) lanes[j] = from[(w + j) * x.stride[3]];
        store_bytes(lanes, affine(load_bytes(lanes), scale, shift));
        for (int64_t j = 0; j < count; ++j) y[(w + j) * a.y_stride[3]] = lanes[j];
      }
    }
  }
}

void run_channels(const Args& a, int64_t begin, int64_t end) {
  is_bounds(a.activation) ? channels<true>(a, begin, end) : channels<false>(a, begin, end);
}

void run_planes(const Args& a, int64_t begin, int64_t end) {
  is_bounds(a.activation) ? planes<true>(a, begin, end) : planes<false>(a, begin, end);
}

}  // namespace

extern const Int8AffineKernels int8_affine_kernels;
const Int8AffineKernels int8_affine_kernels = {run_channels, run_planes};

}  // namespace PK_ISA
}  // namespace pk
