// Which instruction set the CPU kernels use: detected, compiled, chosen.
#pragma once

#include <cstdint>

#include "pykernels/status.h"

#define PK_API __attribute__((visibility("default")))

namespace pk {

// In rising order for each architecture: where one runs, the ones before it do. On 64-bit ARM `scalar` has NEON, which
// every such CPU has.
enum class Isa : int32_t { scalar, avx2, avx512, avx512_vnni, neon_dotprod };

inline constexpr int kIsas = 5;

PK_API const char* isa_name(Isa isa);

// Was this library built with kernels for `isa`, and can this CPU and operating system run them?
PK_API bool isa_compiled(Isa isa);
PK_API bool isa_supported(Isa isa);

// The ISA in force: the forced one, else PYKERNELS_ISA, else the best that is compiled and supported.
// Fails if PYKERNELS_ISA names none, or one that cannot run here; the message says which can.
PK_API Status active_isa(Isa* isa);

// Forces an ISA by name for the whole process; nullptr returns to PYKERNELS_ISA or detection.
PK_API Status force_isa(const char* name);

}  // namespace pk
