// One way to launch a kernel: checked, on the caller's stream, never synchronising.
#pragma once

#include "cuda/device.h"
#include "cuda/platform.cuh"
#include "pykernels/status.h"

namespace pk::cuda {

struct Launch {
  dim3 grid = dim3(1), block = dim3(1);
  int shared_bytes = 0;      // dynamic shared memory of a block
  int cluster = 1;           // blocks of a cluster, along x (sm_90)
  bool cooperative = false;  // all blocks are resident at once, so that they may wait for each other
};

// Fails with CUDA's own words. What the kernel does wrong later shows at the caller's next synchronisation.
template <class... Parameters, class... Arguments>
Status launch(void (*kernel)(Parameters...), const Launch& how, void* stream, const Arguments&... arguments) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return kOk;
#ifdef __CUDACC__
  cudaError_t error = cudaSuccess;
  if (how.shared_bytes > 48 * 1024) {
    // Always the device's own limit: another thread, launching the same kernel with less, must not lower it again
    // between this call and the launch.
    Device device;
    PK_TRY(current_device(&device));
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 device.shared_per_block);
  }
  if (error == cudaSuccess && how.cluster > 8) {
    error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2];
    int count = 0;
    if (how.cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count++].val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
    }
    if (how.cooperative) {
      attributes[count].id = cudaLaunchAttributeCooperative;
      attributes[count++].val.cooperative = 1;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = how.grid;
    config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    config.numAttrs = count;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // else the next caller would get this error
    return {cudaGetErrorString(error)};
  }
  return kOk;
#else
  (void)stream;
  simt::launch({how.grid, how.block, how.cluster, how.shared_bytes, how.cooperative},
               [=] { kernel(static_cast<Parameters>(arguments)...); });
  return kOk;
#endif
}

}  // namespace pk::cuda
