// y = act(conv2d(x, weight) * scale[k] + shift[k] + residual): convolution, folded batch norm, residual and activation
// in one pass.
//
// The weight is packed once for the ISA in force (conv_pack) and then used any number of times (conv_bn_act). Sums are
// float32 whatever the element type; each output's summation order depends on the shape, the algorithm and the ISA
// alone, so for one packed weight the bits don't depend on the threads, the batch or the memory format.
#pragma once

#include <cstdint>

#include "pykernels/activation.h"
#include "pykernels/dtype.h"
#include "pykernels/isa.h"
#include "pykernels/parallel.h"
#include "pykernels/status.h"

namespace pk {

// x: (n, c, h, w), weight: (k, c / groups, r, s), y: (n, k, p, q).
struct ConvShape {
  int64_t n, c, h, w;
  int64_t k, r, s;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left, pad_bottom, pad_right;
  int64_t dilation_h, dilation_w;
  int64_t groups;

  __attribute__((always_inline)) int64_t p() const {
    return (h + pad_top + pad_bottom - dilation_h * (r - 1) - 1) / stride_h + 1;
  }
  __attribute__((always_inline)) int64_t q() const {
    return (w + pad_left + pad_right - dilation_w * (s - 1) - 1) / stride_w + 1;
  }
};

// What the caller of conv_pack asks for. Direct suits every shape. Winograd, F(4, 3) and F(2, 3), suits 3 x 3 filters
// at stride 1 and dilation 1 in one group; its relative error in L2 is below 1e-6 (F(4, 3)), and it gives NaN and
// infinity to the same outputs as direct.
enum class ConvAlgorithm : int32_t { direct, winograd4, winograd2 };
inline constexpr int kConvAlgorithms = 3;

// A tensor of four dimensions in logical order (n, c, h, w), any strides, in elements.
struct ConvTensor {
  const void* data = nullptr;
  int64_t stride[4] = {};
};

struct ConvArgs {
  ConvShape shape;
  DType dtype;                   // of x, residual and y: f32 or bf16; on CUDA also f16
  ConvTensor x;                  // (n, c, h, w)
  const void* packed = nullptr;  // [packed_bytes], of conv_pack
  int64_t packed_bytes = 0;
  const float* scale = nullptr;  // (k,), or null: 1
  const float* shift = nullptr;  // (k,), or null: 0
  ConvTensor residual;           // (n, k, p, q), or data null: 0
  void* y = nullptr;             // (n, k, p, q)
  int64_t y_stride[4] = {};
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  void* workspace = nullptr;     // [workspace_bytes], at least conv_workspace_bytes
  int64_t workspace_bytes = 0;
  bool tf32 = false;  // f32 factors may be rounded to tf32, where that is faster; on CUDA it is
};

// Refuses sizes that are negative or impossible, and an output without pixels. All functions below check it first.
PK_API Status conv_check(const ConvShape& shape);

// The algorithm that is likely fastest for the shape, by a model of its operations and of the bytes of weight that it
// streams. A function of the shape alone, not of threads or ISA. `packs`: the weight is packed for this one call, and
// the packing counts.
PK_API Status conv_choose(const ConvShape& shape, bool packs, ConvAlgorithm* algorithm);

// The size of the packed weight for the ISA in force, and the packing. weight: (k, c / groups, r, s), f32 or bf16.
PK_API Status conv_packed_bytes(const ConvShape& shape, ConvAlgorithm algorithm, int64_t* bytes);
PK_API Status conv_pack(const ConvShape& shape, ConvAlgorithm algorithm, DType dtype, const ConvTensor& weight,
                        void* packed, int64_t packed_bytes, const Executor& executor);

// The size of the workspace that conv_bn_act needs with these arguments, `workspace` itself unset. Checks `packed`:
// a blob that is truncated, of another shape or packed for another ISA is refused.
PK_API Status conv_workspace_bytes(const ConvArgs& args, const Executor& executor, int64_t* bytes);
PK_API Status conv_bn_act(const ConvArgs& args, const Executor& executor);

}  // namespace pk
