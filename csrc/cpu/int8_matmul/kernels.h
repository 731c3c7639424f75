// The tables of the int8 family, one per ISA, and the head of a packed weight.
#pragma once

#include "common/rounding.h"
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

static constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// First of part i when n things are dealt to `parts`.
static constexpr int64_t share(int64_t n, int64_t i, int64_t parts) { return n / parts * i + min(i, n % parts); }

// What is behind the header: column sums and panels.
static constexpr int64_t packed_body_bytes(int64_t k, int64_t n) {
  return (4 + round_up(k, kPackedRows)) * round_up(n, kPackedColumns);
}
// Of the panels that a thread packs for itself: a line over, so that they don't meet in one cache set.
static constexpr int64_t panel_stride(int64_t depth, int64_t nr) { return depth * nr + 64; }

// What choose.h must know of an ISA; tiling.h has the numbers.
struct Int8Tiling {
  int64_t mr, nr, kc, group;
  int64_t a_row_bytes;  // of a row of a in one block of k
  int64_t wide_bytes;   // of a panel widened to 16 bits; 0 where that is never done
};

// `body` is a packed blob behind its header.
struct Int8Kernels {
  uint32_t layout;  // identifies the packed form: width of a panel, depth of a block, bytes of a group
  Int8Tiling tiling;
  void (*matmul)(const Int8MatmulPlan&, char* workspace, const Executor&);  // m, n > 0
  void (*pack)(const int8_t* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n, char* body, const Executor&);
};

struct QuantizeKernels {
  void (*quantize)(const QuantizeInt8Args&, const Executor&);
};

PK_DECLARE_TABLES(Int8Kernels, int8_kernels)
PK_DECLARE_DOT4_TABLE(Int8Kernels, int8_kernels)
PK_DECLARE_TABLES(QuantizeKernels, quantize_kernels)
PK_DECLARE_DOT4_TABLE(QuantizeKernels, quantize_kernels)

}  // namespace pk
