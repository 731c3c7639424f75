// What an ISA offers for convolutions: a table of methods, and the header that says which of them a packed weight is
// for. A new algorithm is one ConvMethod in its own file, one ConvLayout, one line in table.cpp and one in
// choose.h:choose_layout.
#pragma once

#include "cpu/dispatch.h"
#include "pykernels/conv_bn_act.h"

namespace pk {

enum class ConvLayout : int32_t { direct, narrow, merged, winograd4, winograd2 };

inline constexpr int kConvLayouts = 5;

// All arguments have been checked by the plan.
struct ConvMethod {
  // Elements of the packed weight, behind the header.
  int64_t (*packed_floats)(const ConvShape& shape);
  void (*pack)(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor& executor);
  // Fills ConvPlan::blocking with the method's Plan, and returns the bytes of workspace that `run` needs with it.
  int64_t (*plan)(const ConvArgs& args, int threads, void* blocking);
  // `weight` is what `pack` filled; the workspace begins on a boundary of kConvAlign bytes.
  void (*run)(const void* blocking, const ConvArgs& args, const float* weight, char* workspace,
              const Executor& executor);
  // chain.h:run_conv_chain, or null where no chain begins with this method.
  int64_t (*run_chain)(const ConvPlan* plans, int64_t count, const Executor& executor) = nullptr;
};

struct ConvKernels {
  int lanes;                                // packed weights of equal lanes are interchangeable
  const ConvMethod* methods[kConvLayouts];  // in the order of ConvLayout
};

inline constexpr int64_t kConvAlign = 64;

// The first bytes of a packed weight.
struct ConvHeader {
  uint32_t magic;
  uint32_t version;
  int32_t layout;  // ConvLayout
  int32_t lanes;
  int64_t k, c, r, s, groups;  // c: channels of x, over all groups
  int64_t floats;              // behind the header
  int64_t reserved[8];         // zero
};
static_assert(sizeof(ConvHeader) % kConvAlign == 0);

inline constexpr uint32_t kConvMagic = 0x764b4350;  // "PCKv"
inline constexpr uint32_t kConvVersion = 3;

PK_DECLARE_TABLES(ConvKernels, conv_kernels)

}  // namespace pk
