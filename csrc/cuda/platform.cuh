// The CUDA dialect that the kernels are written in, for its two compilers: nvcc, and g++ with the SIMT harness of
// tests/native/simt, which runs the same kernels on a CPU.
//
// What the harness asks of a kernel: shared memory only through dynamic_shared (no __shared__ variables), no launch but
// through launch.cuh, PTX only through ptx.cuh, and ptx::backoff() in every loop that polls memory.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "simt/cuda.h"
#endif

#include <cstddef>
#include <cstdint>

#include "common/rounding.h"

#define PK_DEVICE __device__ __forceinline__

// Before a loop whose index selects registers: it must be unrolled, or the array goes to local memory. (g++ knows no
// such pragma.) PK_ROLLED: before one that must not be, or its code would be too long.
#ifdef __CUDACC__
#define PK_UNROLL _Pragma("unroll")
#define PK_ROLLED _Pragma("unroll 1")
#else
#define PK_UNROLL
#define PK_ROLLED
#endif

// Kernels for Hopper (wgmma, setmaxnreg) have bodies only where the target has them; files named *_sm90.cu are compiled
// for sm_90a alone.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PK_HAS_SM90A 1
#else
#define PK_HAS_SM90A 0
#endif

namespace pk::cuda {

inline constexpr int kWarp = 32;

// The block's dynamic shared memory, aligned to 1024 bytes (what the 128-byte swizzle of TMA and wgmma counts from).
template <class T>
PK_DEVICE T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) unsigned char pk_dynamic_shared[];
  return reinterpret_cast<T*>(pk_dynamic_shared);
#else
  return static_cast<T*>(simt::dynamic_shared());
#endif
}

}  // namespace pk::cuda
