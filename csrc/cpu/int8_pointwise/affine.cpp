// A number times its channel's scale plus its channel's shift, with an activation. Two loops; each call chooses one:
//
//   channels adjacent in all tensors (channels_last and slices of it): up to four vectors of channels, pixel by pixel
//   else:                                                              rows of pixels of one channel, vectors of pixels
//
// In the first one the constants of these channels stay in registers.
#include "cpu/activate.h"
#include "cpu/int8_pointwise/bounds.h"
#include "cpu/int8_pointwise/kernels.h"

namespace pk {
namespace PK_ISA {
namespace {

using Args = Int8AffineArgs;

constexpr int64_t kBlockBytes = 8192;

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

// Adjacent elements of one channel.
template <bool kBounds>
struct OfPixels {
  Affine<kBounds> affine;
  const int8_t* x;
  F32 scale, shift;

  I32 operator()(int64_t i) const { return affine(load_bytes(x + i), scale, shift); }
  I32 operator()(int64_t i, int64_t n) const { return affine(load_bytes(x + i, n), scale, shift); }
};

// Elements that are `pixels` rows of x and y, so far apart.
struct Rows {
  int64_t pixels;
  const int8_t* x;
  int64_t x_step;
  int8_t* y;
  int64_t y_step;
};

// kVectors of adjacent channels of all pixels: 4 vectors of results become one.
template <int kVectors, bool kBounds>
inline void columns(const Affine<kBounds>& affine, const Rows& r, const float* scale, const float* shift) {
  F32 scales[kVectors], shifts[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    scales[v] = load<F32>(scale + v * kLanes), shifts[v] = load<F32>(shift + v * kLanes);
  const auto at = [&](int64_t pixel, int v) {
    return affine(load_bytes(r.x + pixel * r.x_step + v * kLanes), scales[v], shifts[v]);
  };
  int64_t i = 0;
  if constexpr (kVectors == 4) {
    for (; i < r.pixels; ++i) store(r.y + i * r.y_step, to_i8(at(i, 0), at(i, 1), at(i, 2), at(i, 3)));
  } else if constexpr (kVectors == 2) {
    for (; i + 2 <= r.pixels; i += 2) {
      const I8 both = to_i8(at(i, 0), at(i, 1), at(i + 1, 0), at(i + 1, 1));
      std::memcpy(r.y + i * r.y_step, &both, kVecBytes / 2);
      std::memcpy(r.y + (i + 1) * r.y_step, reinterpret_cast<const int8_t*>(&both) + kVecBytes / 2, kVecBytes / 2);
    }
  }
  for (; i < r.pixels; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_bytes(r.y + i * r.y_step + v * kLanes, at(i, v));
  }
}

template <bool kBounds>
void piece(const Affine<kBounds>& affine, Rows r, int64_t count, const float* scale, const float* shift) {
  const auto next = [&](int64_t done) {
    r.x += done, r.y += done, scale += done, shift += done;
    count -= done;
  };
  for (; count >= 4 * kLanes; next(4 * kLanes)) columns<4>(affine, r, scale, shift);
  for (; count >= 2 * kLanes; next(2 * kLanes)) columns<2>(affine, r, scale, shift);
  for (; count >= kLanes; next(kLanes)) columns<1>(affine, r, scale, shift);
  if (count == 0) return;
  const F32 last_scale = load_partial(scale, count), last_shift = load_partial(shift, count);
  for (int64_t i = 0; i < r.pixels; ++i) {
    store_bytes(r.y + i * r.y_step, affine(load_bytes(r.x + i * r.x_step, count), last_scale, last_shift), count);
  }
}

// Pixels [begin, end) of n * h * w: so many at a time that y stays in the first cache until its lines are whole.
template <bool kBounds>
void channels(const Args& a, int64_t begin, int64_t end) {
  const Affine<kBounds> affine(a);
  const int64_t most = max(int64_t{2}, kBlockBytes / a.c);
  while (begin < end) {
    const int64_t row = begin / a.w, w = begin % a.w, n = row / a.h, h = row % a.h;
    const int64_t pixels = min(min(most, a.w - w), end - begin);
    const auto at = [&](const int64_t* stride) { return n * stride[0] + h * stride[2] + w * stride[3]; };
    int8_t* y = a.y + at(a.y_stride);
    const float *scale = a.scale, *shift = a.shift;
    for (int64_t i = 0; i < a.pieces; ++i) {
      const Int8Piece& x = a.x[i];
      const Rows rows = {pixels, x.data + at(x.stride), x.stride[3], y, a.y_stride[3]};
      piece(affine, rows, x.channels, scale, shift);
      y += x.channels, scale += x.channels, shift += x.channels;
    }
    begin += pixels;
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
