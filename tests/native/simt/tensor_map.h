// A tensor map as the harness' TMA reads it: what csrc/cuda/tensor_map.h describes, in plain numbers, innermost
// dimension first.
#pragma once

#include <cstdint>

namespace simt {

struct TensorMap {
  const unsigned char* data = nullptr;
  int element = 0;  // bytes
  int rank = 0;
  int64_t size[5] = {};
  int64_t stride_bytes[5] = {};
  int64_t box[5] = {};
  bool swizzle = false;  // the 128-byte one
  bool im2col = false;
  // im2col: base pixels go from near to far (w, h; absolute, both ends included) by steps.
  int64_t near[2] = {}, far[2] = {}, step[2] = {};
  int64_t pixels = 0, channels = 0;
};

}  // namespace simt
