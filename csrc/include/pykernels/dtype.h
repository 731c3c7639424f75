// Element types of the kernel API. bf16 and f16 are passed as raw 16-bit words; only the CUDA kernels take f16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pk {

enum class DType : int32_t { f32, bf16, i8, i32, f16 };

using bf16_t = uint16_t;

static constexpr size_t size_of(DType t) {
  return t == DType::f32 || t == DType::i32 ? 4 : t == DType::bf16 || t == DType::f16 ? 2 : 1;
}

}  // namespace pk
