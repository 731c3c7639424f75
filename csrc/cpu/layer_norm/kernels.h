// The family's table of kernels. Internal linkage: ISA sources include it.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/layer_norm.h"

namespace pk {

struct LayerNormKernels {
  // Pixels [0, count) from x on, of args.c channels: these adjacent, and pixels args.x_stride[3] apart.
  void (*rows)(const LayerNormArgs& args, const void* x, void* y, int64_t count);
  // The same where pixels are adjacent, and channels args.x_stride[1] apart.
  void (*columns)(const LayerNormArgs& args, const void* x, void* y, int64_t count);
};

PK_DECLARE_TABLES(LayerNormKernels, layer_norm_kernels)

}  // namespace pk
