// What the choice of tiles and algorithms may know of a GPU. Plain numbers, so that choices are pure functions and are
// tested where no GPU is.
#pragma once

#include <cstdint>

#include "pykernels/status.h"

namespace pk::cuda {

struct Device {
  int capability = 80;              // 10 * major + minor: 80, 86, 89, 90, ...
  int multiprocessors = 108;        // SMs
  int shared_per_block = 166912;    // bytes of dynamic shared memory that a block can ask for
  int registers_per_block = 65536;  // 32-bit registers
  int64_t l2_bytes = 40ll << 20;    // L2 cache
};

// The current CUDA device; asked once per device, then remembered.
Status current_device(Device* device);

}  // namespace pk::cuda
