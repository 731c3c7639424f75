// int8 matrix product with an epilogue, its packed weights, and quantisation, on a CUDA device. Free of torch.
//
// The problems are those of pykernels/int8_matmul.h, which has the formulas; every pointer is one of the device, a and
// x and out may also be f16, and an a_zero_point outside [-128, 127] goes unseen (its sums are right modulo 2^32).
// Nothing here allocates, waits for the device, or depends on the order in which blocks run; all of it can be captured
// in a CUDA graph. The sums are exact; the same input gives the same bits on every device and by every algorithm.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pykernels/int8_matmul.h"

namespace pk::cuda {

// How a product is computed. `automatic` chooses by shape and device (csrc/cuda/int8_matmul/choose.h); the others are
// for tests and tuning.
enum class Int8Algorithm : int32_t {
  automatic,
  gemv,        // m == 1: dot products
  skinny,      // m <= 16: the weights' rows take the tensor cores' tall side, the tokens the narrow one
  tile_64x64,  // cp.async and mma.sync tiles, m x n
  tile_128x128,
  tile_128x256,
  hopper_128x256,  // TMA and wgmma, capability 9.0 alone: persistent, in clusters of two
  hopper_128x128,
  hopper_swapped,  // m <= 64: the weights' rows on the tall side; always by slices, even a single one
};
struct Int8Plan {
  Int8Algorithm algorithm = Int8Algorithm::automatic;
  int split = 0;  // K is cut into so many slices, added in order by a second kernel; 0: chosen
};

// The packed form of b (k, n), all of it made by int8_pack:
//   n rows of round_up(k, 32) bytes, row j column j of b, zero behind k
//   n int32, the sums of b's columns
//   k % 32 bytes of nothing
// so that its size together with n tells k, and no header in the device's memory has to be waited for.
PK_API Status int8_packed_bytes(int64_t k, int64_t n, int64_t* bytes);
// `packed` is aligned to 16 bytes.
PK_API Status int8_pack(const int8_t* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, void* packed,
                        void* stream);

// Checks the problem and gives the bytes of the workspace, which is aligned to 256. `out` need not be set yet.
PK_API Status int8_matmul_workspace(const Int8Matmul& problem, const Int8Plan& plan, size_t* bytes);
PK_API Status int8_matmul(const Int8Matmul& problem, const Int8Plan& plan, void* workspace, size_t workspace_bytes,
                          void* stream);

PK_API Status quantize_int8_workspace(const QuantizeInt8& problem, size_t* bytes);
PK_API Status quantize_int8(const QuantizeInt8& problem, void* workspace, size_t workspace_bytes, void* stream);

}  // namespace pk::cuda
