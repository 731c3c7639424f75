// Rows of elements in vectors. Where x's rows are y's columns, a tile of both passes through memory as bytes, whose
// order is changed: that is a quarter of the work of changing the order of floats.
#include "cpu/activate.h"
#include "cpu/byte_table.h"
#include "cpu/bytes.h"
#include "cpu/elements.h"
#include "cpu/int8_pointwise/bounds.h"
#include "cpu/int8_pointwise/kernels.h"
#include "cpu/int8_pointwise/turn.h"

namespace pk {
namespace PK_ISA {
namespace {

using Args = Int8PointwiseArgs;

constexpr int64_t kTile = 4 * kSide;  // bytes of a row of a tile

template <class T>
class Quantizer {
 public:
  explicit Quantizer(const Args& a) : inverse_(broadcast(a.y_inverse)), rounding_(a.y_zero) {}

  void row(const T* x, int64_t count, int8_t* y) const { store_row(Row{*this, x}, count, y); }

 private:
  struct Row {
    const Quantizer& q;
    const T* x;
    I32 operator()(int64_t i) const { return q.rounding_(load_widened(x + i) * q.inverse_); }
    I32 operator()(int64_t i, int64_t n) const { return q.rounding_(load_widened(x + i, n) * q.inverse_); }
  };

  F32 inverse_;
  Rounding rounding_;
};

template <class T>
class Dequantizer {
 public:
  explicit Dequantizer(const Args& a) : scale_(broadcast(a.x_scale)), zero_(broadcast(a.x_zero)) {}

  void row(const int8_t* x, int64_t count, T* y) const {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store_narrowed(y + i, value(load_bytes(x + i)));
    if (i < count) store_narrowed(y + i, value(load_bytes(x + i, count - i)), count - i);
  }

 private:
  F32 value(I32 q) const { return to_f32(q - zero_) * scale_; }

  F32 scale_;
  I32 zero_;
};

// kBounds: the activation is_bounds.
template <bool kBounds>
class Adder {
 public:
  explicit Adder(const Args& a)
      : a_(a),
        x_scale_(broadcast(a.x_scale)),
        b_scale_(broadcast(a.b_scale)),
        inverse_(broadcast(a.y_inverse)),
        x_zero_(broadcast(a.x_zero)),
        b_zero_(broadcast(a.b_zero)),
        rounding_(rounding_within(a.y_zero, a.activation, inverse_)) {}

  void row(const int8_t* x, const int8_t* b, int64_t count, int8_t* y) const { store_row(Row{*this, x, b}, count, y); }

 private:
  struct Row {
    const Adder& add;
    const int8_t *x, *b;
    I32 operator()(int64_t i) const { return add.sum(load_bytes(x + i), load_bytes(b + i)); }
    I32 operator()(int64_t i, int64_t n) const { return add.sum(load_bytes(x + i, n), load_bytes(b + i, n)); }
  };

  I32 sum(I32 x, I32 b) const {
    F32 t = to_f32(x - x_zero_) * x_scale_ + to_f32(b - b_zero_) * b_scale_;
    if constexpr (!kBounds) t = activate(t, a_.activation, a_.negative_slope);
    return rounding_(t * inverse_);
  }

  const Args& a_;
  F32 x_scale_, b_scale_, inverse_;
  I32 x_zero_, b_zero_;
  Rounding rounding_;
};

inline void lookup_row(const ByteTable& table, const int8_t* x, int64_t count, int8_t* y) {
  int64_t i = 0;
  for (; i + kVecBytes <= count; i += kVecBytes) store(y + i, table(load<I8>(x + i)));
  for (; i < count; ++i) y[i] = table(x[i]);
}

template <class T>
void quantize_turned(const Args& a, const Int8Block& b) {
  const Quantizer<T> quantizer(a);
  const bool three = b.rows == 3 && b.y_step == 3;
  for (int64_t r = 0; r < b.rows; r += kSide) {
    const int64_t rows = min(kSide, b.rows - r);
    for (int64_t i = 0; i < b.count; i += kTile) {
      const int64_t count = min(kTile, b.count - i);
      int8_t tile[kSide][kTile];
      for (int64_t k = 0; k < rows; ++k) {
        quantizer.row(static_cast<const T*>(b.x) + (r + k) * b.x_step + i, count, tile[k]);
      }
      int8_t* const y = static_cast<int8_t*>(b.y) + i * b.y_step + r;
      for (int64_t j = 0; j < count; j += kSide) {
        if (three && j + kSide <= count) {
          weave_three(load<Bytes>(tile[0] + j), load<Bytes>(tile[1] + j), load<Bytes>(tile[2] + j), y + 3 * j);
        } else {
          turn(tile[0] + j, kTile, rows, min(kSide, count - j), y + j * b.y_step, b.y_step);
        }
      }
    }
  }
}

template <class T>
void dequantize_turned(const Args& a, const Int8Block& b) {
  const Dequantizer<T> dequantizer(a);
  for (int64_t i = 0; i < b.count; i += kSide) {
    const int64_t count = min(kSide, b.count - i);
    for (int64_t r = 0; r < b.rows; r += kTile) {
      const int64_t rows = min(kTile, b.rows - r);
      int8_t tile[kSide][kTile];
      for (int64_t k = 0; k < rows; k += kSide) {
        turn(static_cast<const int8_t*>(b.x) + (r + k) * b.x_step + i, b.x_step, min(kSide, rows - k), count,
             tile[0] + k, kTile);
      }
      for (int64_t j = 0; j < count; ++j) {
        dequantizer.row(tile[j], rows, static_cast<T*>(b.y) + (i + j) * b.y_step + r);
      }
    }
  }
}

// Calls body(x, y) for each row.
template <class X, class Y, class Body>
inline void each_row(const Int8Block& b, const Body& body) {
  for (int64_t r = 0; r < b.rows; ++r) {
    body(static_cast<const X*>(b.x) + r * b.x_step, static_cast<Y*>(b.y) + r * b.y_step, r);
  }
}

template <bool kBounds>
void add_rows(const Args& a, const Int8Block& block) {
  const Adder<kBounds> adder(a);
  each_row<int8_t, int8_t>(block, [&](const int8_t* x, int8_t* y, int64_t r) {
    adder.row(x, static_cast<const int8_t*>(block.b) + r * block.b_step, block.count, y);
  });
}

// Calls body<element type of what is not int8>().
template <class Body>
void by_type(const Args& a, const Body& body) {
  a.dtype == DType::f32 ? body.template operator()<float>() : body.template operator()<bf16_t>();
}

void run_rows(const Args& a, const Int8Block& b) {
  switch (a.kind) {
    case Int8PointwiseKind::quantize:
      return by_type(a, [&]<class T>() {
        const Quantizer<T> quantizer(a);
        each_row<T, int8_t>(b, [&](const T* x, int8_t* y, int64_t) { quantizer.row(x, b.count, y); });
      });
    case Int8PointwiseKind::dequantize:
      return by_type(a, [&]<class T>() {
        const Dequantizer<T> dequantizer(a);
        each_row<int8_t, T>(b, [&](const int8_t* x, T* y, int64_t) { dequantizer.row(x, b.count, y); });
      });
    case Int8PointwiseKind::add:
      return is_bounds(a.activation) ? add_rows<true>(a, b) : add_rows<false>(a, b);
    case Int8PointwiseKind::lookup: {
      const ByteTable table(a.table);
      each_row<int8_t, int8_t>(b, [&](const int8_t* x, int8_t* y, int64_t) { lookup_row(table, x, b.count, y); });
    }
  }
}

void run_turned(const Args& a, const Int8Block& b) {
  by_type(a, [&]<class T>() {
    a.kind == Int8PointwiseKind::quantize ? quantize_turned<T>(a, b) : dequantize_turned<T>(a, b);
  });
}

}  // namespace

extern const Int8PointwiseKernels int8_pointwise_kernels;
const Int8PointwiseKernels int8_pointwise_kernels = {run_rows, run_turned};

}  // namespace PK_ISA
}  // namespace pk
