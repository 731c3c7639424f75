// A stand-in for libtorch_cuda.so, to link against where torch is a CPU build; it is never shipped.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;  // AOTI_TORCH_FAILURE
}
