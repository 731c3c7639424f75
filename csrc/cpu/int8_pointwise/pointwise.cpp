// Rows of elements in vectors. Where x's rows are y's columns, a tile of both passes through memory as bytes, whose
// order is changed: that is a quarter of the work of changing the order of floats.
#include "cpu/elements.h"
#include "cpu/int8_pointwise/kernels.h"
#include "cpu/int8_pointwise/turn.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kTile = 4 * kSide;  // bytes of a row of a tile

inline I32 load_bytes(const int8_t* from) { return to_i32(load<I8Quarter>(from)); }
inline I32 load_bytes(const int8_t* from, int64_t count) {
  int8_t lanes[kLanes] = {};
  copy_partial(lanes, from, count);
  return load_bytes(lanes);
}

// From a float in units of the grid's scale to its bytes.
struct Rounding {
  F32 low, high;
  I32 zero;

  explicit Rounding(int32_t zero_point)
      : low(broadcast(static_cast<float>(-128 - zero_point))),
        high(broadcast(static_cast<float>(127 - zero_point))),
        zero(broadcast(zero_point)) {}

  // Low bytes, of a NaN the zero point. Unsigned: what a NaN becomes may wrap.
  I32 operator()(F32 t) const {
    return bit_cast<I32>(bit_cast<U32>(nearest(min(high, max(low, t)))) + bit_cast<U32>(zero));
  }
};

// y[i] = the low byte of values(i), i < count; values(i, n) has n < kLanes lanes.
template <class Values>
inline void store_row(const Values& values, int64_t count, int8_t* y) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    store(y + i, to_i8(values(i), values(i + kLanes), values(i + 2 * kLanes), values(i + 3 * kLanes)));
  }
  for (; i + kLanes <= count; i += kLanes) store(y + i, to_i8(values(i)));
  if (i == count) return;
  const I8Quarter last = to_i8(values(i, count - i));
  copy_partial(y + i, reinterpret_cast<const int8_t*>(&last), count - i);
}

template <class T>
inline void quantize_row(const T* x, F32 inverse, const Rounding& rounding, int64_t count, int8_t* y) {
  struct Values {
    const T* x;
    F32 inverse;
    const Rounding& rounding;
    I32 operator()(int64_t i) const { return rounding(load_widened(x + i) * inverse); }
    I32 operator()(int64_t i, int64_t n) const { return rounding(load_widened(x + i, n) * inverse); }
  };
  store_row(Values{x, inverse, rounding}, count, y);
}

template <class T>
inline void dequantize_row(const int8_t* x, I32 zero, F32 scale, int64_t count, T* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_narrowed(y + i, to_f32(load_bytes(x + i) - zero) * scale);
  if (i < count) store_narrowed(y + i, to_f32(load_bytes(x + i, count - i) - zero) * scale, count - i);
}

template <class T>
void quantize_rows(const Int8PointwiseArgs& a, const Int8Block& b) {
  const Rounding rounding(a.y_zero);
  for (int64_t r = 0; r < b.rows; ++r) {
    quantize_row(static_cast<const T*>(b.x) + r * b.x_step, broadcast(a.y_inverse), rounding, b.count,
                 static_cast<int8_t*>(b.y) + r * b.y_step);
  }
}

template <class T>
void dequantize_rows(const Int8PointwiseArgs& a, const Int8Block& b) {
  for (int64_t r = 0; r < b.rows; ++r) {
    dequantize_row(static_cast<const int8_t*>(b.x) + r * b.x_step, broadcast(a.x_zero), broadcast(a.x_scale), b.count,
                   static_cast<T*>(b.y) + r * b.y_step);
  }
}

template <class T>
void quantize_turned(const Int8PointwiseArgs& a, const Int8Block& b) {
  const Rounding rounding(a.y_zero);
  const bool three = b.rows == 3 && b.y_step == 3;
  for (int64_t r = 0; r < b.rows; r += kSide) {
    const int64_t rows = min(kSide, b.rows - r);
    for (int64_t i = 0; i < b.count; i += kTile) {
      const int64_t count = min(kTile, b.count - i);
      int8_t tile[kSide][kTile];
      for (int64_t k = 0; k < rows; ++k) {
        quantize_row(static_cast<const T*>(b.x) + (r + k) * b.x_step + i, broadcast(a.y_inverse), rounding, count,
                     tile[k]);
      }
      int8_t* const y = static_cast<int8_t*>(b.y) + i * b.y_step + r;
      for (int64_t j = 0; j < count; j += kSide) {
        if (three && j + kSide <= count) {
          weave_three(load<Bytes>(tile[0] + j), load<Bytes>(tile[1] + j), load<Bytes>(tile[2] + j), y + 3 * j);
        } else {
          turn_some(tile[0] + j, kTile, rows, min(kSide, count - j), y + j * b.y_step, b.y_step);
        }
      }
    }
  }
}

template <class T>
void dequantize_turned(const Int8PointwiseArgs& a, const Int8Block& b) {
  for (int64_t i = 0; i < b.count; i += kSide) {
    const int64_t count = min(kSide, b.count - i);
    for (int64_t r = 0; r < b.rows; r += kTile) {
      const int64_t rows = min(kTile, b.rows - r);
      int8_t tile[kSide][kTile];
      for (int64_t k = 0; k < rows; k += kSide) {
        turn_some(static_cast<const int8_t*>(b.x) + (r + k) * b.x_step + i, b.x_step, min(kSide, rows - k), count,
                  tile[0] + k, kTile);
      }
      for (int64_t j = 0; j < count; ++j) {
        dequantize_row(tile[j], broadcast(a.x_zero), broadcast(a.x_scale), rows,
                       static_cast<T*>(b.y) + (i + j) * b.y_step + r);
      }
    }
  }
}

// Calls body<element type of what is not int8>().
template <class Body>
void by_type(const Int8PointwiseArgs& a, const Body& body) {
  a.dtype == DType::f32 ? body.template operator()<float>() : body.template operator()<bf16_t>();
}

void run_rows(const Int8PointwiseArgs& a, const Int8Block& b) {
  by_type(
      a, [&]<class T>() { a.kind == Int8PointwiseKind::quantize ? quantize_rows<T>(a, b) : dequantize_rows<T>(a, b); });
}

void run_turned(const Int8PointwiseArgs& a, const Int8Block& b) {
  by_type(a, [&]<class T>() {
    a.kind == Int8PointwiseKind::quantize ? quantize_turned<T>(a, b) : dequantize_turned<T>(a, b);
  });
}

}  // namespace

extern const Int8PointwiseKernels int8_pointwise_kernels;
const Int8PointwiseKernels int8_pointwise_kernels = {run_rows, run_turned};

}  // namespace PK_ISA
}  // namespace pk
