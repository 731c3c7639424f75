// The family's tables of kernels.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/int8_pointwise.h"

namespace pk {

// Elements of two dimensions: `rows` of `count`, and the steps from row to row, in elements.
struct Int8Block {
  int64_t rows, count;
  const void* x;
  int64_t x_step;
  const void* b;
  int64_t b_step;
  void* y;
  int64_t y_step;
};

struct Int8PointwiseKernels {
  void (*rows)(const Int8PointwiseArgs& args, const Int8Block& block);    // all rows are adjacent elements
  void (*turned)(const Int8PointwiseArgs& args, const Int8Block& block);  // x's rows are, and y's columns
};

// All tensors have elements, and those of y don't overlap.
struct Int8AffineKernels {
  void (*channels)(const Int8AffineArgs& args, int64_t begin, int64_t end);  // pixels, of adjacent channels
  void (*planes)(const Int8AffineArgs& args, int64_t begin, int64_t end);    // channels of images
};

PK_DECLARE_TABLES(Int8PointwiseKernels, int8_pointwise_kernels)
PK_DECLARE_DOT4_TABLE(Int8PointwiseKernels, int8_pointwise_kernels)
PK_DECLARE_TABLES(Int8AffineKernels, int8_affine_kernels)
PK_DECLARE_DOT4_TABLE(Int8AffineKernels, int8_affine_kernels)

}  // namespace pk
