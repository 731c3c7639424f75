// The properties of the current device.
#include "cuda/device.h"
#include "cuda/platform.cuh"

#ifdef __CUDACC__
#include <atomic>
#endif

namespace pk::cuda {

#ifdef __CUDACC__
Status current_device(Device* device) {
  constexpr int kDevices = 64;
  static Device known[kDevices];
  static std::atomic<bool> asked[kDevices];
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error == cudaSuccess && index < kDevices && asked[index].load(std::memory_order_acquire)) {
    *device = known[index];
    return kOk;
  }
  int major = 0, minor = 0, l2 = 0;
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, index);
  };
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(&device->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&device->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&device->registers_per_block, cudaDevAttrMaxRegistersPerBlock);
  ask(&l2, cudaDevAttrL2CacheSize);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return {cudaGetErrorString(error)};
  }
  device->capability = 10 * major + minor;
#if !PK_BUILT_SM90A
  // The kernels for Hopper have no bodies in this build: those for Ampere run there.
  if (device->capability == 90) device->capability = 89;
#endif
  device->l2_bytes = l2;
  // Two threads that ask at once write the same numbers; the flag is set once they are whole.
  if (index < kDevices) {
    static std::atomic_flag writing[kDevices];
    if (!writing[index].test_and_set()) {
      known[index] = *device;
      asked[index].store(true, std::memory_order_release);
    }
  }
  return kOk;
}
#else
Status current_device(Device* device) {
  *device = simt::device();
  return kOk;
}
#endif

}  // namespace pk::cuda
