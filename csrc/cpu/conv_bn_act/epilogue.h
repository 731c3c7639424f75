// What follows the sums of a convolution: y = act(sum * scale[k] + shift[k] + residual), for any layout of y.
//
// The methods leave sums in L1, some pixels x a panel of channels, and call `finish`: one loop for each activation,
// dtype and layout, chosen once a call. In it consecutive vectors depend on nothing of each other, so that the long
// polynomials of several of them are under way at a time.
#pragma once

#include "cpu/vec.h"
#include "pykernels/conv_bn_act.h"

namespace pk {
namespace PK_ISA {

struct Epilogue;

// Some pixels x channels [k0, k0 + count) of the output.
struct Finish {
  const float* sums;  // [pixels][row]
  int64_t row;        // a whole number of vectors, as wide as count at least
  int64_t pixels;
  const int64_t* y_at;         // [pixels]: the element offset of each pixel's channel 0 in y,
  const int64_t* residual_at;  // and in residual
  int64_t k0, count;
};

using FinishFunction = void (*)(const Epilogue& e, const Finish& f);

// Some pixels that are adjacent in y and in residual x channels [k0, k0 + count).
struct FinishRows {
  const float* sums;  // [count][row]
  int64_t row;        // a whole number of vectors, as wide as pixels at least
  int64_t pixels;
  int64_t y_at, residual_at;  // the element offset of the first pixel's channel 0 in y and in residual
  int64_t k0, count;
};

using FinishRowsFunction = void (*)(const Epilogue& e, const FinishRows& f);

struct FinishTable {
  FinishRowsFunction rows_of[kActivations][2][2];  // [activation][with constants by channel][bf16]
  FinishFunction of[kActivations][2][2][2];        // [activation][with constants by channel][bf16][planes]
};
extern const FinishTable conv_finish;

struct Epilogue {
  const float* scale;       // (k,) or null
  const float* shift;       // (k,) or null
  const float* parameters;  // (parameters_of(activation), k) or null
  int64_t k;
  const char* residual;
  char* y;
  int64_t residual_c, y_c;  // strides of the channels, in elements
  float negative_slope;
  bool planes;  // y's or residual's channels are not adjacent
  Activation activation;
  bool in_registers;  // y and residual float32 with adjacent channels, and an activation of a few instructions
  int64_t element;    // bytes
  FinishFunction function;
  FinishRowsFunction rows_function;
};

namespace {

// Is it a few instructions, for which a tile's sums need not leave the registers?
constexpr bool is_short(Activation activation) {
  return activation == Activation::none || activation == Activation::relu || activation == Activation::leaky_relu ||
         activation == Activation::relu6 || activation == Activation::hardswish ||
         activation == Activation::hardsigmoid;
}

inline Epilogue make_epilogue(const ConvArgs& args) {
  const auto* residual = static_cast<const char*>(args.residual.data);
  const bool bf16 = args.dtype == DType::bf16;
  const bool adjacent = args.y_stride[1] == 1 && (residual == nullptr || args.residual.stride[1] == 1);
  const bool planes = !adjacent || args.shape.k == 1;
  const bool own = args.parameters != nullptr;
  return {args.scale,
          args.shift,
          args.parameters,
          args.shape.k,
          residual,
          static_cast<char*>(args.y),
          args.residual.stride[1],
          args.y_stride[1],
          args.negative_slope,
          planes,
          args.activation,
          !bf16 && !planes && !own && is_short(args.activation),
          static_cast<int64_t>(size_of(args.dtype)),
          conv_finish.of[static_cast<int>(args.activation)][own][bf16][planes],
          conv_finish.rows_of[static_cast<int>(args.activation)][own][bf16]};
}

// Brings the first cache line of a pixel's output channels from k0 on, and of its residual, where channels are
// adjacent.
inline void fetch_output(const Epilogue& e, int64_t y_at, int64_t residual_at, int64_t k0) {
  if (e.residual) __builtin_prefetch(e.residual + (residual_at + k0) * e.element);
  __builtin_prefetch(e.y + (y_at + k0) * e.element, 1);
}

inline void finish(const Epilogue& e, const Finish& f) { e.function(e, f); }
inline void finish_adjacent(const Epilogue& e, const FinishRows& f) { e.rows_function(e, f); }

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
