// What is done to each element of int8 tensors on the CPU. The real value of an element is scale * (q - zero_point).
//
//   quantize    y = rounded(x * y_inverse)
//   dequantize  y = (x - x_zero) * x_scale
//   add         y = rounded(act((x - x_zero) * x_scale + (b - b_zero) * b_scale) * y_inverse)
//   lookup      y = table[x + 128]
//   affine      y = rounded(act(x * scale[c] + shift[c]) * y_inverse), of tensors joined along their channels
//
//   rounded(t) = saturate(nearest_even(t) + y_zero), NaN as 0; y_inverse is 1 / scale
//
// x, b, y: of the same size, up to eight dimensions; float32 or bfloat16 where they are not int8. Each operation is a
// rounding of its own to float32, and none is fused: but for the activations other than none, relu, relu6 and
// leaky_relu y is the same to the bit on every ISA, for every number of threads and in every memory format. y may be x
// or b where it has their strides and type.
//
//   Int8PointwiseArgs args;
//   Int8PointwisePlan plan;
//   Status status = make_plan(args, &plan);  // refuses tensors whose elements are not adjacent, see Int8PointwisePlan
//   run(plan, executor);
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

enum class Int8PointwiseKind : int32_t { quantize, dequantize, add, lookup };
inline constexpr int32_t kInt8PointwiseKinds = 4;
inline constexpr int kInt8PointwiseDims = 8;

struct Int8PointwiseArgs {
  Int8PointwiseKind kind = Int8PointwiseKind::quantize;
  DType dtype = DType::f32;  // of what is not int8: f32 or bf16
  float x_scale = 1.0f, b_scale = 1.0f, y_inverse = 1.0f;
  int32_t x_zero = 0, b_zero = 0, y_zero = 0;  // in [-128, 127]
  Activation activation = Activation::none;
  float negative_slope = 0.01f;   // leaky_relu's
  const int8_t* table = nullptr;  // (256)
  int64_t dim = 0;
  int64_t size[kInt8PointwiseDims] = {};
  const void* x = nullptr;
  int64_t x_stride[kInt8PointwiseDims] = {};  // in elements
  const void* b = nullptr;                    // of `add`
  int64_t b_stride[kInt8PointwiseDims] = {};
  void* y = nullptr;  // whose elements don't overlap
  int64_t y_stride[kInt8PointwiseDims] = {};
};

struct Int8PointwiseKernels;

// Dimensions in y's order, those merged that lie alike in all tensors; two at least. Elements are adjacent along the
// last one, in y and in all others; or, where a tensor is quantised or dequantised, x's are along the last but one:
// then it is `turned`.
struct Int8PointwisePlan {
  struct Dim {
    int64_t size, x, b, y;  // strides
  };
  Int8PointwiseArgs args;  // pointers may be set, or changed, between make_plan and run
  const Int8PointwiseKernels* kernels = nullptr;
  Dim dims[kInt8PointwiseDims] = {};
  int64_t dim = 0;
  bool turned = false;
};

PK_API Status make_plan(const Int8PointwiseArgs& args, Int8PointwisePlan* plan);
PK_API void run(const Int8PointwisePlan& plan, const Executor& executor);

// A tensor in logical order (n, channels, h, w), any strides, in elements.
struct Int8Piece {
  const int8_t* data = nullptr;
  int64_t channels = 0;
  int64_t stride[4] = {};
};

// A batch norm that no convolution takes: scale and shift have x's grid in them.
struct Int8AffineArgs {
  int64_t n = 0, c = 0, h = 0, w = 0;
  const Int8Piece* x = nullptr;  // [pieces], whose channels are c together; read by run too
  int64_t pieces = 0;
  const float *scale = nullptr, *shift = nullptr;  // (c,)
  float y_inverse = 1.0f;
  int32_t y_zero = 0;  // in [-128, 127]
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  int8_t* y = nullptr;           // (n, c, h, w), whose elements don't overlap; may be a piece that lies alike
  int64_t y_stride[4] = {};
};

struct Int8AffineKernels;

struct Int8AffinePlan {
  Int8AffineArgs args;
  const Int8AffineKernels* kernels = nullptr;
};

PK_API Status make_plan(const Int8AffineArgs& args, Int8AffinePlan* plan);
PK_API void run(const Int8AffinePlan& plan, const Executor& executor);

}  // namespace pk
