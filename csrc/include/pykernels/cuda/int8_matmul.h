// int8 matrix product with an epilogue, its packed weights, and quantisation, on a CUDA device. Free of torch.
//
// The arguments are those of pykernels/int8_matmul.h, which has the formulas; every pointer is one of the device, a and
// x and out may also be f16, and an a_zero_point outside [-128, 127] goes unseen (its sums are right modulo 2^32).
// Nothing here allocates, waits for the device, or depends on the order in which blocks run; all of it can be captured
// in a CUDA graph. The sums are exact; the same input gives the same bits on every device and by every algorithm.
#pragma once

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
struct Int8Choice {
  Int8Algorithm algorithm = Int8Algorithm::automatic;
  int split = 0;  // K is cut into so many slices, added in order by a second kernel; 0: chosen
};

// The packed form of b (k, n), all of it made by pack:
//   n rows of round_up(k, 32) bytes, row j column j of b, zero behind k
//   n int32, the sums of b's columns
//   k % 32 bytes of nothing
// so that its size together with n tells k, and no header in the device's memory has to be waited for.
struct Int8PackingPlan {
  int64_t k, n, packed_bytes;
};
PK_API Status make_packing_plan(int64_t k, int64_t n, Int8PackingPlan* plan);
// `packed` is aligned to 16 bytes.
PK_API Status pack(const Int8PackingPlan& plan, const int8_t* b, int64_t stride_k, int64_t stride_n, void* packed,
                   void* stream);

struct Int8MatmulArgs : pk::Int8MatmulArgs {
  Int8Choice asked;
};

// Args that have been checked, and how they are computed on the device that was current.
struct Int8MatmulPlan {
  Int8MatmulArgs args;  // `out` may be set, and any pointer changed for one as aligned, between make_plan and run
  Int8Choice choice;
  int64_t workspace_bytes = 0;
  // The rest is the kernels' own: K padded, what they need of the operands first, and where in the workspace it lies.
  int64_t k = 0;
  int multiprocessors = 0;
  bool copy_a = false, copy_b = false, sum_b = false, slices = false;
  int64_t a = 0, a_scale = 0, b = 0, sums = 0, partial = 0;
};

PK_API Status make_plan(const Int8MatmulArgs& args, Int8MatmulPlan* plan);
// workspace: [plan.workspace_bytes], aligned to 256 bytes. Trusts the plan: nothing is checked again.
PK_API Status run(const Int8MatmulPlan& plan, void* workspace, void* stream);

struct QuantizeInt8Plan {
  QuantizeInt8Args args;
  int64_t workspace_bytes = 0;
  int parts = 0;  // of a channel; 0: a channel is one run, and one kernel does it all
};

PK_API Status make_plan(const QuantizeInt8Args& args, QuantizeInt8Plan* plan);
PK_API Status run(const QuantizeInt8Plan& plan, void* workspace, void* stream);

}  // namespace pk::cuda
