// int8 convolution on one ISA: x to adjacent channels where they are not, then the algorithm that choose.h takes.
#include "cpu/int8_conv2d/direct.h"
// direct.h first: the others share its division of work.
#include "cpu/int8_conv2d/byte_pairs.h"
#include "cpu/int8_conv2d/depthwise.h"
#include "cpu/int8_conv2d/depthwise_quads.h"
#include "cpu/int8_conv2d/winograd.h"

namespace pk {
namespace PK_ISA {
namespace {

template <class Algorithm>
inline void run_on(const Algorithm& algorithm, const Int8ConvBlocking& cut, char* workspace, const Executor& executor) {
  with_kind(algorithm.epilogue.kind, [&](auto kind) {
    parallel_for(executor, 0, cut.slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        algorithm.template run_slot<decltype(kind)::value>(i, workspace + i * cut.slot_bytes);
      }
    });
  });
}

void run(const Int8ConvPlan& plan, char* workspace, const Executor& executor) {
  const ConvShape& s = plan.shape;
  const Int8ConvBlocking& cut = plan.blocking;
  workspace += (64 - reinterpret_cast<uintptr_t>(workspace) % 64) % 64;
  const auto* x = static_cast<const int8_t*>(plan.args.x.data);
  int64_t stride[4];
  std::memcpy(stride, plan.args.x.stride, sizeof stride);
  if (cut.turn) {
    auto* const to = reinterpret_cast<int8_t*>(workspace);
    parallel_for(executor, 0, s.n * s.h, max(1, (1 << 16) / max(1, s.w * s.c)),
                 [&](int64_t begin, int64_t end) { turn_rows(s, x, stride, begin, end, to); });
    x = to;
    stride[0] = s.h * s.w * s.c, stride[1] = 1, stride[2] = s.w * s.c, stride[3] = s.c;
    workspace += cut.turned_bytes;
  }
  const auto* const packed = static_cast<const char*>(plan.args.packed);
  const char* const body = packed + Int8ConvLayout(s).body_at();
  const Int8Conv call{plan, s, cut, x, {stride[0], stride[1], stride[2], stride[3]}, body, Epilogue(plan, packed)};
  if (cut.quads) {
    if constexpr (kQuads) run_on(DepthwiseQuads{call}, cut, workspace, executor);
  } else if (cut.depthwise) {
    run_on(Depthwise{call}, cut, workspace, executor);
  } else if (cut.winograd) {
    run_on(Winograd{call, packed + Int8ConvLayout(s).winograd_at()}, cut, workspace, executor);
  } else if (cut.byte_pairs) {
    if constexpr (kBytePairs) run_on(DirectBytes{call}, cut, workspace, executor);
  } else {
    run_on(Direct{call}, cut, workspace, executor);
  }
}

void pack(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body, const Executor& executor) {
  if (kQuads && has_quads(s)) {
    pack_quads(s, x_zero_point, weight, body);
  } else if (is_depthwise(s)) {
    pack_depthwise(s, x_zero_point, weight, body);
  } else if (kBytePairs && has_byte_pairs(s)) {
    pack_bytes(s, x_zero_point, weight, body, executor);
  } else {
    pack_direct(s, x_zero_point, weight, body, executor);
  }
}

}  // namespace

extern const Int8ConvKernels int8_conv_kernels;
const Int8ConvKernels int8_conv_kernels = {kLayout, kConvTiling, run, pack, pack_winograd};

}  // namespace PK_ISA
}  // namespace pk
