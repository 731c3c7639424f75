// What the files of this folder offer api.cu. Every int8 operand is rows of K: contiguous, aligned to 16 bytes, `k`
// bytes long, k a multiple of 16, zero where the problem's own K has ended.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/int8_matmul/choose.h"
#include "pykernels/int8_matmul.h"

namespace pk::cuda::int8 {

// From sums to outputs; the pointers as in Int8MatmulArgs.
struct Epilogue {
  const float *a_scale, *b_scale, *bias;
  const int32_t* a_zero_point;
  const int32_t* column_sums;                                   // (n), given where a_zero_point is
  int32_t a_scale_stride, b_scale_stride, a_zero_point_stride;  // 1 or 0
  Activation activation;
  float negative_slope;
  DType out_dtype;
  int out_size;  // of an output, in bytes
  void* out;     // (m, n)
  int64_t m, n;
  bool wide;  // four neighbours of a row, from a multiple of four on, are aligned to their size
};

// Strides of rows are below kMaxStride: an offset within a tile of rows fits an int.
inline constexpr int64_t kMaxStride = 1 << 22;

struct Product {
  int64_t m, n, k;
  const int8_t* a;  // (m, k)
  int64_t a_stride;
  const int8_t* b;  // (n, k)
  int64_t b_stride;
  int split = 1;
  int32_t* partial = nullptr;  // (split, m, round_up(n, 4)), where split > 1
};

Status gemv(const Product& p, const Epilogue& e, int multiprocessors, void* stream);
Status skinny(const Product& p, const Epilogue& e, void* stream);
Status tiles(const Product& p, const Epilogue& e, Int8Algorithm algorithm, void* stream);
Status hopper_tiles(const Product& p, const Epilogue& e, Int8Algorithm algorithm, int multiprocessors, void* stream);
// The epilogue of a product that was split.
Status add_slices(const Product& p, const Epilogue& e, void* stream);

// to[r * to_stride + i] = from[r * stride_row + i * stride_k] for i < k, 0 for the rest of to_stride, a multiple of 16.
Status copy_rows(const int8_t* from, int64_t rows, int64_t k, int64_t stride_row, int64_t stride_k, int8_t* to,
                 int64_t to_stride, void* stream);
// sums[r] = sum of row r.
Status sum_rows(const int8_t* from, int64_t rows, int64_t k, int64_t stride, int32_t* sums, void* stream);

// Each row of x (rows, k) to a row of `to`, of which k bytes count and the rest up to to_stride becomes zero.
// zero_point may be none.
Status quantize_rows(DType dtype, const void* x, int64_t rows, int64_t k, int64_t stride, bool symmetric, int8_t* to,
                     int64_t to_stride, float* scale, int32_t* zero_point, void* stream);

// Fills in what follows of the plan's problem.
void plan_quantize(const Device& device, QuantizeInt8Plan* plan);
Status quantize(const QuantizeInt8Plan& plan, void* workspace, void* stream);

}  // namespace pk::cuda::int8
