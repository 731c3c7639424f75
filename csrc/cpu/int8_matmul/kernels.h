// The tables of the int8 family, one per ISA, and the head of a packed weight.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/int8_matmul.h"

namespace pk {

// First bytes of a packed b; behind it the column sums (int32, n rounded up to kPackedColumns), then the bytes of b in
// the layout of the ISA.
struct PackedHeader {
  char magic[8];
  uint32_t version;
  uint32_t layout;  // Int8Kernels::layout
  int64_t k, n;
  char reserved[32];
};
static_assert(sizeof(PackedHeader) == 64);

inline constexpr char kPackedMagic[8] = {'P', 'K', 'I', 'N', 'T', '8', 'B', '\0'};
inline constexpr uint32_t kPackedVersion = 1;
// Rounding that suits every ISA, so that the size of a blob depends on k and n alone.
inline constexpr int64_t kPackedColumns = 32, kPackedRows = 4;

static constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The functions get a checked problem with m, n > 0. `body` is a packed blob behind its header.
struct Int8Kernels {
  uint32_t layout;  // identifies the packed form: width of a panel, depth of a block, bytes of a group
  size_t (*workspace)(const Int8Matmul&, int threads);
  void (*matmul)(const Int8Matmul&, char* workspace, const Executor&);
  void (*pack)(const int8_t* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, char* body, const Executor&);
};

struct QuantizeKernels {
  void (*quantize)(const QuantizeInt8&, const Executor&);
};

PK_DECLARE_TABLES(Int8Kernels, int8_kernels)
PK_DECLARE_VNNI_TABLE(Int8Kernels, int8_kernels)
PK_DECLARE_TABLES(QuantizeKernels, quantize_kernels)
PK_DECLARE_VNNI_TABLE(QuantizeKernels, quantize_kernels)

}  // namespace pk
