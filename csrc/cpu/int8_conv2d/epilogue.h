// From a vector of int32 sums, a channel a lane, to the output in its final dtype. The family is compiled with
// -ffp-contract=off (cmake/isa.cmake): each operation is a rounding of its own, and so the bits are those of plain
// float32 arithmetic, whatever the ISA.
#pragma once

#include "cpu/activate.h"
#include "cpu/bytes.h"
#include "cpu/elements.h"
#include "cpu/int8_conv2d/kernels.h"

namespace pk {
namespace PK_ISA {
namespace {

// How much of the epilogue a call needs: int8 to int8 with adjacent channels, an activation that is a pair of bounds
// and numbers that fit int32, without and with an int8 residual; with any other activation; or anything.
enum class Kind { plain, added, curved, any };

// Is it short enough to be part of a tile, whose sums are in registers then?
constexpr bool is_short(Kind kind) { return kind == Kind::plain || kind == Kind::added; }

// Of a call.
struct Epilogue {
  const Int8ConvPlan* plan;
  const float *scale, *bias;  // of a column
  const int8_t* table;        // or null
  float low, high;            // of t * out_scale, for int8
  bool bounded, scaled;       // low and high are the activation too; out_scale is not 1
  bool cut;                   // low and high are more than the bounds of int8
  Kind kind;

  Epilogue(const Int8ConvPlan& p, const char* packed) : plan(&p) {
    const Int8ConvLayout l(p.shape);
    const Int8ConvOptions& o = p.options;
    Int8ConvHeader header;
    std::memcpy(&header, packed, sizeof header);
    scale = reinterpret_cast<const float*>(packed + l.scale_at());
    bias = reinterpret_cast<const float*>(packed + l.bias_at());
    table = header.has_table ? reinterpret_cast<const int8_t*>(packed + l.table_at()) : nullptr;
    low = static_cast<float>(-128 - o.out_zero_point), high = static_cast<float>(127 - o.out_zero_point);
    // Rounding keeps order: the bounds of an activation may come after the multiplication as well.
    const bool relu = o.activation == Activation::relu, relu6 = o.activation == Activation::relu6;
    bounded = o.out_dtype == DType::i8 && o.out_scale > 0 && (relu || relu6 || o.activation == Activation::none);
    if (bounded && (relu || relu6)) low = 0.0f;
    if (bounded && relu6 && 6.0f * o.out_scale < high) high = 6.0f * o.out_scale;
    scaled = o.out_scale != 1.0f;
    // Rounding keeps order here too: to bounds that round to those of int8, saturation takes it.
    const auto zero = static_cast<float>(o.out_zero_point);
    cut = low >= -127.5f - zero || high <= 126.5f - zero;
    const ConvTensor& r = p.args.residual;
    const bool adjacent = p.args.y_stride[1] == 1 && (r.data == nullptr || r.stride[1] == 1);
    kind = o.out_dtype != DType::i8 || !adjacent || table != nullptr ? Kind::any
           : !bounded                                                ? (r.data == nullptr ? Kind::curved : Kind::any)
           : !header.fits_int32                                      ? Kind::any
           : r.data == nullptr                                       ? Kind::plain
           : p.args.residual_dtype == DType::i8                      ? Kind::added
                                                                     : Kind::any;
  }
};

// What the algorithms know of a call.
struct Int8Conv {
  const Int8ConvPlan& plan;
  const ConvShape& shape;
  const Int8ConvBlocking& cut;
  const int8_t* x;
  int64_t stride[4];  // of x, with adjacent channels
  const char* body;   // of the packed weight
  Epilogue epilogue;
};

// Where a pixel's first channel is in y and in the residual, in elements.
struct Pixel {
  int64_t y, residual;
};

inline Pixel pixel_at(const Int8ConvPlan& p, int64_t n, int64_t row, int64_t column) {
  const int64_t *y = p.args.y_stride, *r = p.args.residual.stride;
  return {n * y[0] + row * y[2] + column * y[3], n * r[0] + row * r[2] + column * r[3]};
}

template <class T>
inline void gather_lanes(const T* from, int64_t stride, int64_t count, T (&lanes)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? from[i * stride] : T{};
}
template <class T>
inline void scatter_lanes(T* to, int64_t stride, int64_t count, const T (&lanes)[kLanes]) {
  for (int i = 0; i < count; ++i) to[i * stride] = lanes[i];
}
template <class T, class V>
inline void store_lanes(T* to, int64_t stride, int64_t count, V v) {
  static_assert(sizeof v == kLanes * sizeof(T));
  if (stride == 1 && count == kLanes) return store(to, v);
  T lanes[kLanes];
  store(lanes, v);
  scatter_lanes(to, stride, count, lanes);
}

// `count` channels of the residual, as floats.
inline F32 residual_of(const Int8ConvPlan& p, int64_t at, int64_t count) {
  const ConvTensor& r = p.args.residual;
  const int64_t stride = r.stride[1];
  if (p.args.residual_dtype == DType::i8) {
    int8_t lanes[kLanes];
    gather_lanes(static_cast<const int8_t*>(r.data) + at, stride, count, lanes);
    return to_f32(to_i32(load<I8Quarter>(lanes)) - p.options.residual_zero_point);
  }
  if (p.args.residual_dtype == DType::f32) {
    float lanes[kLanes];
    gather_lanes(static_cast<const float*>(r.data) + at, stride, count, lanes);
    return load<F32>(lanes);
  }
  bf16_t lanes[kLanes];
  gather_lanes(static_cast<const bf16_t*>(r.data) + at, stride, count, lanes);
  return load_bf16(lanes);
}

// The epilogue of up to kLanes channels, from `channel` on, for any number of pixels. What it reads for each pixel are
// members of its own: the stores of bytes might change whatever else is in memory.
template <Kind kind>
class Channels {
 public:
  // `column`: of the packed form, where scale and bias are padded.
  Channels(const Epilogue& e, int64_t column, int64_t channel, int64_t count)
      : epilogue_(e),
        scale_(load<F32>(e.scale + column)),
        bias_(load<F32>(e.bias + column)),
        low_(broadcast(e.low)),
        high_(broadcast(e.high)),
        out_scale_(broadcast(e.plan->options.out_scale)),
        residual_scale_(broadcast(e.plan->options.residual_scale)),
        residual_zero_(broadcast(e.plan->options.residual_zero_point)),
        out_zero_(broadcast(e.plan->options.out_zero_point)),
        zero_words_(I16{} + static_cast<int16_t>(e.plan->options.out_zero_point)),
        scaled_(e.scaled),
        cut_(e.cut),
        full_(count == kLanes),
        count_(count),
        channel_(channel),
        activation_(e.plan->options.activation),
        negative_slope_(e.plan->options.negative_slope),
        y_(static_cast<int8_t*>(e.plan->args.y) + (kind == Kind::any ? 0 : channel)),
        residual_(kind == Kind::added ? static_cast<const int8_t*>(e.plan->args.residual.data) + channel : nullptr) {}

  void put(I32 sum, const Pixel& pixel) const {
    if constexpr (kind == Kind::any) {
      put_any(sum, pixel);
    } else if (full_) {
      put_whole(sum, pixel);
    } else {
      const I8Quarter bytes = bytes_of(sum, pixel, count_, activation_);
      copy_partial(y_ + pixel.y, reinterpret_cast<const int8_t*>(&bytes), count_);
    }
  }

  // Of several pixels, whose sums are `step` apart; pixel(i) is where the i-th lies.
  template <class PixelOf>
  void put_all(const int32_t* sums, int64_t step, int64_t pixels, const PixelOf& pixel) const {
    if constexpr (kind == Kind::curved) {
      // Compiled for each of the usual ones: a loop that decides once may have several vectors under way.
      switch (activation_) {
        case Activation::silu:
          return put_as<Activation::silu>(sums, step, pixels, pixel);
        case Activation::hardswish:
          return put_as<Activation::hardswish>(sums, step, pixels, pixel);
        case Activation::gelu:
          return put_as<Activation::gelu>(sums, step, pixels, pixel);
        case Activation::leaky_relu:
          return put_as<Activation::leaky_relu>(sums, step, pixels, pixel);
        default:
          break;
      }
    }
    int64_t i = 0;
    if constexpr (is_short(kind)) {
      for (; full_ && i + 4 <= pixels; i += 4, sums += 4 * step) {
        put_four(load<I32>(sums), load<I32>(sums + step), load<I32>(sums + 2 * step), load<I32>(sums + 3 * step),
                 [&](int64_t j) { return pixel(i + j); });
      }
    }
    for (; i < pixels; ++i, sums += step) put(load<I32>(sums), pixel(i));
  }

  // Of kLanes channels, and not for Kind::any.
  void put_whole(I32 sum, const Pixel& pixel) const { store(y_ + pixel.y, bytes_of(sum, pixel, kLanes, activation_)); }

  // Of four pixels, of whole vectors or not, where the numbers fit int32, in half the instructions: saturation takes
  // the bounds' place. at(i) is the pixel.
  template <bool whole = true, class At>
  [[gnu::always_inline]] void put_four(I32 a, I32 b, I32 c, I32 d, const At& at) const {
    const int64_t count = whole ? kLanes : count_;
    F32 t[4] = {value_of(a, at(0), count, activation_), value_of(b, at(1), count, activation_),
                value_of(c, at(2), count, activation_), value_of(d, at(3), count, activation_)};
    if (cut_) {
#pragma GCC unroll 4
      for (F32& v : t) v = min(high_, max(low_, v));
    }
    const I8 bytes = to_i8_saturated(nearest(t[0]), nearest(t[1]), nearest(t[2]), nearest(t[3]), zero_words_);
    I8Quarter quarters[4];
    store(quarters, bytes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if constexpr (whole) {
        store(y_ + at(i).y, quarters[i]);
      } else {
        copy_partial(y_ + at(i).y, reinterpret_cast<const int8_t*>(&quarters[i]), count_);
      }
    }
  }

 private:
  template <Activation kA, class PixelOf>
  void put_as(const int32_t* sums, int64_t step, int64_t pixels, const PixelOf& pixel) const {
    int8_t* const y = y_;
    if (full_) {
      for (int64_t i = 0; i < pixels; ++i) {
        store(y + pixel(i).y, bytes_of(load<I32>(sums + i * step), pixel(i), kLanes, kA));
      }
      return;
    }
    for (int64_t i = 0; i < pixels; ++i) {
      const I8Quarter bytes = bytes_of(load<I32>(sums + i * step), pixel(i), count_, kA);
      copy_partial(y + pixel(i).y, reinterpret_cast<const int8_t*>(&bytes), count_);
    }
  }

  __attribute__((always_inline)) F32 value_of(I32 sum, const Pixel& pixel, int64_t count, Activation activation) const {
    F32 t = to_f32(sum) * scale_ + bias_;
    if constexpr (kind == Kind::added) {
      t = t + residual_scale_ * to_f32(load_bytes(residual_ + pixel.residual, count) - residual_zero_);
    }
    if constexpr (kind == Kind::curved) t = activate(t, activation, negative_slope_);
    return scaled_ ? t * out_scale_ : t;
  }

  __attribute__((always_inline)) I8Quarter bytes_of(I32 sum, const Pixel& pixel, int64_t count,
                                                    Activation activation) const {
    return to_bytes(value_of(sum, pixel, count, activation));
  }

  I8Quarter to_bytes(F32 t) const {
    // Unsigned: what a NaN becomes may wrap.
    return to_i8(bit_cast<I32>(bit_cast<U32>(nearest(min(high_, max(low_, t)))) + bit_cast<U32>(out_zero_)));
  }

  void put_any(I32 sum, const Pixel& pixel) const {
    const Int8ConvPlan& p = *epilogue_.plan;
    const Int8ConvOptions& o = p.options;
    const int64_t stride = p.args.y_stride[1], at = pixel.y + channel_ * stride;
    if (o.out_dtype == DType::i32) return store_lanes(static_cast<int32_t*>(p.args.y) + at, stride, count_, sum);
    F32 t = to_f32(sum) * scale_ + bias_;
    if (p.args.residual.data != nullptr) {
      const F32 r = residual_of(p, pixel.residual + channel_ * p.args.residual.stride[1], count_);
      t = t + residual_scale_ * r;
    }
    if (!epilogue_.bounded) t = activate(t, o.activation, o.negative_slope);
    if (scaled_) t = t * out_scale_;
    switch (o.out_dtype) {
      case DType::i8: {
        I8Quarter bytes = to_bytes(t);
        if (epilogue_.table != nullptr) {
          for (int i = 0; i < kLanes; ++i) bytes[i] = epilogue_.table[bytes[i] + 128];
        }
        return store_lanes(static_cast<int8_t*>(p.args.y) + at, stride, count_, bytes);
      }
      case DType::f32:
        return store_lanes(static_cast<float*>(p.args.y) + at, stride, count_, t);
      case DType::bf16:
        return store_lanes(static_cast<bf16_t*>(p.args.y) + at, stride, count_, to_bf16(t));
      case DType::i32:
      case DType::f16:  // refused in api.cpp
        return;
    }
  }

  const Epilogue& epilogue_;
  F32 scale_, bias_, low_, high_, out_scale_, residual_scale_;
  I32 residual_zero_, out_zero_;
  I16 zero_words_;
  bool scaled_, cut_, full_;
  int64_t count_, channel_;
  Activation activation_;
  float negative_slope_;
  int8_t* y_;
  const int8_t* residual_;
};

// body(Kind) with the kind as a constant.
template <class Body>
inline void with_kind(Kind kind, const Body& body) {
  switch (kind) {
    case Kind::plain:
      return body(std::integral_constant<Kind, Kind::plain>{});
    case Kind::added:
      return body(std::integral_constant<Kind, Kind::added>{});
    case Kind::curved:
      return body(std::integral_constant<Kind, Kind::curved>{});
    case Kind::any:
      return body(std::integral_constant<Kind, Kind::any>{});
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
