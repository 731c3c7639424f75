// What the library was built for and with, in plain text: readable by ctypes, without torch, a driver or a GPU.
#include "pykernels/cuda/build.h"

// For example "archs=80+ptx 90a;nvcc=13.0.88".
extern "C" const char* pykernels_cuda_build() { return "archs=" PK_CUDA_ARCHS ";nvcc=" PK_NVCC_VERSION; }
