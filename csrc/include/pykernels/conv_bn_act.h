// y = act(conv2d(x, weight) * scale[k] + shift[k] + residual): convolution, folded batch norm, residual and activation
// in one pass.
//
// The weight is packed once for the ISA in force (pack) and then used any number of times (run). Sums are
// float32 whatever the element type; each output's summation order depends on the shape, the algorithm and the ISA
// alone, so for one packed weight the bits don't depend on the threads, the batch or the memory format.
//
// A call is a plan and its run. The plan refuses what cannot be computed and works out everything that does not need
// the data; what runs by it checks nothing again.
#pragma once

#include <cstdint>

#include "common/activation.h"
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

// What the caller of pack asks for. Direct suits every shape. Winograd, F(4, 3) and F(2, 3), suits 3 x 3 filters
// at stride 1 and dilation 1; its relative error in L2 is below 1e-6 (F(4, 3)), and it gives NaN and
// infinity to the same outputs as direct.
enum class ConvAlgorithm : int32_t { direct, winograd4, winograd2 };
inline constexpr int kConvAlgorithms = 3;

// A tensor of four dimensions in logical order (n, c, h, w), any strides, in elements.
struct ConvTensor {
  const void* data = nullptr;
  int64_t stride[4] = {};
};

// What a call takes besides its tensors and their shape.
struct ConvOptions {
  Activation activation = Activation::none;
  float negative_slope = 0.01f;  // leaky_relu's
  bool tf32 = false;             // f32 factors may be rounded to tf32, where that is faster; on CUDA it is
};

struct ConvArgs : ConvOptions {
  ConvShape shape;
  DType dtype;                   // of x, residual and y: f32 or bf16; on CUDA also f16
  ConvTensor x;                  // (n, c, h, w)
  const void* packed = nullptr;  // [packed_bytes], of pack
  int64_t packed_bytes = 0;
  const float* scale = nullptr;  // (k,), or null: 1
  const float* shift = nullptr;  // (k,), or null: 0
  // (parameters_of(activation), k): the activation's constants for each channel, or null: the usual ones. CPU alone.
  const float* parameters = nullptr;
  ConvTensor residual;  // (n, k, p, q), or data null: 0
  void* y = nullptr;    // (n, k, p, q)
  int64_t y_stride[4] = {};
};

struct ConvMethod;
inline constexpr int kConvBlockingBytes = 192;

// A call whose arguments are checked, for the ISA that was in force when it was planned.
struct ConvPlan {
  ConvArgs args;  // pointers and y's strides may be set, or changed, between make_plan and run
  ConvAlgorithm algorithm;
  int32_t layout, lanes;  // as the packed weight's header has them
  int64_t packed_bytes;
  int64_t workspace_bytes;
  const ConvMethod* method;
  alignas(8) unsigned char blocking[kConvBlockingBytes];  // the method's own
};

// The algorithm that is likely fastest for the shape, by a model of its operations and of the bytes of weight that it
// streams; direct where the environment has PYKERNELS_WINOGRAD=0. Else a function of the shape alone, not of threads or
// ISA. `packs`: the weight is packed for this one call, and the packing counts. Refuses what every plan refuses: sizes
// that are negative or impossible, an output without pixels.
PK_API Status conv_choose(const ConvShape& shape, bool packs, ConvAlgorithm* algorithm);

// A plan for running with `args.packed`: a blob that is truncated, of another shape or packed for another ISA is
// refused. Of the strides a plan for running reads x's and y's stride[1]; the rest, the data above all, may be unset.
PK_API Status make_plan(const ConvArgs& args, int threads, ConvPlan* plan);

// A plan for packing and running, with the algorithm that suits the two together: `plan->args.packed` is to be set.
PK_API Status make_packing_plan(const ConvArgs& args, int threads, ConvPlan* plan);

// A plan for packing only. weight: (k, c / groups, r, s), f32 or bf16.
PK_API Status make_packing_plan(const ConvShape& shape, ConvAlgorithm algorithm, DType dtype, ConvPlan* plan);

// Fills `packed`, plan.packed_bytes of room.
PK_API void pack(const ConvPlan& plan, const ConvTensor& weight, void* packed, const Executor& executor);

// workspace: [plan.workspace_bytes], of any alignment. Trusts the plan: nothing is checked again.
PK_API void run(const ConvPlan& plan, void* workspace, const Executor& executor);

// Runs plans of which each reads what the one before it wrote. Of their results the last is wanted, and those that are
// `kept`, which may be read as residuals; what becomes of the others' memory is left open. So a convolution that
// widens, a depthwise one and a 1x1 one may go together by bands of rows. The bits are those of `run`, one after the
// other. kept: [count]; workspace: [the largest plan.workspace_bytes].
PK_API void run_chain(const ConvPlan* plans, const int64_t* kept, int64_t count, void* workspace,
                      const Executor& executor);

}  // namespace pk
