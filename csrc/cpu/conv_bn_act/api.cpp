// The entry points: a plan checks the problem, picks the ISA's table, chooses the method or reads it off the packed
// weight's header, and has the method work out its blocking; then the method packs and runs by it.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "common/conv_shape.h"
#include "common/sizes.h"
#include "cpu/conv_bn_act/choose.h"

namespace pk {
namespace {

// Sizes are kept small enough that no product of them below leaves int64.
constexpr int64_t kLargest = int64_t{1} << 31;
constexpr int64_t kHeaderBytes = sizeof(ConvHeader);

// PYKERNELS_WINOGRAD=0 leaves Winograd's method out, for those to whom its rounding matters.
struct Winograd {
  bool wanted = true;
  char error[128] = "";
};

const Winograd& winograd() {
  static const Winograd asked = [] {
    Winograd w;
    const char* const value = std::getenv("PYKERNELS_WINOGRAD");
    if (value == nullptr || *value == '\0' || std::strcmp(value, "1") == 0) return w;
    w.wanted = false;
    if (std::strcmp(value, "0") == 0) return w;
    std::snprintf(w.error, sizeof w.error, "PYKERNELS_WINOGRAD: expected 0 or 1, got '%.32s'", value);
    return w;
  }();
  return asked;
}

ConvAlgorithm choose(const ConvShape& shape, bool packs) {
  return winograd().wanted ? choose_algorithm(shape, packs) : ConvAlgorithm::direct;
}

Status pick(const ConvKernels** table) {
  if (winograd().error[0] != '\0') return {winograd().error};
  Isa isa;
  PK_TRY(active_isa(&isa));
  *table = PK_TABLE_OF(conv_kernels, isa);
  return kOk;
}

// Of a shape that passes, no method's sizes overflow.
Status check_shape(const ConvShape& shape) {
  PK_TRY(check_conv_shape(shape, kLargest, "a size, stride, padding or dilation is above 2^31"));
  const int64_t padded_h = shape.h + shape.pad_top + shape.pad_bottom,
                padded_w = shape.w + shape.pad_left + shape.pad_right;
  if (!product_fits({shape.n + 1, shape.c + 64, padded_h, padded_w, 4}) ||
      !product_fits({shape.k + 64, shape.c + 64, shape.r, shape.s, 4}) ||
      !product_fits({shape.n + 1, shape.k + 64, shape.p(), shape.q(), 4}) ||
      !product_fits({shape.r, shape.s, shape.p(), shape.q(), 8}) ||
      // Each of some thousand threads may hold rows of x, 64 channels at a time; then the multiply-adds of the whole.
      !product_fits({4096, shape.h + 1, padded_w, 64, 4}) ||
      !product_fits({shape.n + 1, shape.k + 64 * shape.groups, shape.c / shape.groups + 1, shape.r, shape.s, shape.p(),
                     shape.q()})) {
    return {"the sizes are too large"};
  }
  return kOk;
}

void set_method(const ConvKernels& table, const ConvShape& shape, ConvAlgorithm algorithm, ConvLayout layout,
                ConvPlan* plan) {
  plan->algorithm = algorithm;
  plan->layout = static_cast<int32_t>(layout);
  plan->lanes = table.lanes;
  plan->method = table.methods[plan->layout];
  plan->packed_bytes = kHeaderBytes + 4 * plan->method->packed_floats(shape);
}

void set_blocking(const ConvArgs& args, int threads, ConvPlan* plan) {
  plan->args = args;
  plan->workspace_bytes = plan->method->plan(args, threads, plan->blocking) + kConvAlign;
}

// Behind the header.
int64_t floats_of(const ConvPlan& plan) { return (plan.packed_bytes - kHeaderBytes) / 4; }

// What the plans for running check alike.
Status begin(const ConvArgs& args, const ConvKernels** table) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  const auto code = static_cast<int32_t>(args.activation);
  if (code < 0 || code >= kActivations) return {"activation: not a code of pykernels.ops.ACTIVATIONS"};
  if (args.parameters != nullptr && parameters_of(args.activation) == 0) {
    return {"parameters: expected none, for the activation has no constants"};
  }
  PK_TRY(check_shape(args.shape));
  return pick(table);
}

// Checks the header and takes the method from it.
Status open(const ConvArgs& args, const ConvKernels& table, ConvPlan* plan) {
  ConvHeader header;
  if (args.packed == nullptr || args.packed_bytes < kHeaderBytes) {
    return {"packed: expected a blob of conv_pack, got one that is shorter than its header"};
  }
  std::memcpy(&header, args.packed, sizeof header);
  if (header.magic != kConvMagic) return {"packed: expected a blob of conv_pack, got one without its magic number"};
  if (header.version != kConvVersion) {
    return {"packed: the blob is of another version of pykernels; pack the weight again"};
  }
  if (header.lanes != table.lanes) {
    return {"packed: the blob was packed for another ISA than the one in force; pack the weight again"};
  }
  const ConvShape& shape = args.shape;
  if (header.k != shape.k || header.c != shape.c || header.r != shape.r || header.s != shape.s ||
      header.groups != shape.groups) {
    return {"packed: the blob holds a weight of another shape or of other groups than weight_shape, x and groups say"};
  }
  if (header.layout < 0 || header.layout >= kConvLayouts) {
    return {"packed: the blob has a layout that this version of pykernels does not know; pack the weight again"};
  }
  // Every method takes the shapes that its layout is chosen for, and no others.
  const auto layout = static_cast<ConvLayout>(header.layout);
  const ConvAlgorithm algorithm = algorithm_of(layout);
  ConvLayout expected;
  if (!choose_layout(shape, algorithm, &expected) || layout != expected) {
    return {"packed: the blob has a layout that does not suit its own shape"};
  }
  if (algorithm != ConvAlgorithm::direct &&
      (shape.stride_h != 1 || shape.stride_w != 1 || shape.dilation_h != 1 || shape.dilation_w != 1)) {
    return {"packed: the blob was packed for Winograd, which needs stride 1 and dilation 1"};
  }
  set_method(table, shape, algorithm, layout, plan);
  if (header.floats != floats_of(*plan) || args.packed_bytes != plan->packed_bytes) {
    return {"packed: the blob's size is not the one that its header asks for"};
  }
  return kOk;
}

}  // namespace

Status conv_choose(const ConvShape& shape, bool packs, ConvAlgorithm* algorithm) {
  if (winograd().error[0] != '\0') return {winograd().error};
  PK_TRY(check_shape(shape));
  *algorithm = choose(shape, packs);
  return kOk;
}

Status make_packing_plan(const ConvShape& shape, ConvAlgorithm algorithm, DType dtype, ConvPlan* plan) {
  PK_TRY(check_shape(shape));
  ConvLayout layout;
  PK_TRY(choose_layout(shape, algorithm, &layout));
  if (dtype != DType::f32 && dtype != DType::bf16) return {"weight: expected float32 or bfloat16"};
  const ConvKernels* table;
  PK_TRY(pick(&table));
  set_method(*table, shape, algorithm, layout, plan);
  plan->args.shape = shape;
  plan->args.dtype = dtype;
  plan->workspace_bytes = 0;
  return kOk;
}

Status make_plan(const ConvArgs& args, int threads, ConvPlan* plan) {
  const ConvKernels* table;
  PK_TRY(begin(args, &table));
  PK_TRY(open(args, *table, plan));
  set_blocking(args, threads, plan);
  return kOk;
}

Status make_packing_plan(const ConvArgs& args, int threads, ConvPlan* plan) {
  const ConvKernels* table;
  PK_TRY(begin(args, &table));
  const ConvAlgorithm algorithm = choose(args.shape, true);
  ConvLayout layout;
  PK_TRY(choose_layout(args.shape, algorithm, &layout));
  set_method(*table, args.shape, algorithm, layout, plan);
  set_blocking(args, threads, plan);
  return kOk;
}

void pack(const ConvPlan& plan, const ConvTensor& weight, void* packed, const Executor& executor) {
  const ConvShape& shape = plan.args.shape;
  const ConvHeader header = {kConvMagic, kConvVersion, plan.layout,  plan.lanes,      shape.k, shape.c,
                             shape.r,    shape.s,      shape.groups, floats_of(plan), {}};
  std::memcpy(packed, &header, sizeof header);
  auto* floats = reinterpret_cast<float*>(static_cast<char*>(packed) + kHeaderBytes);
  plan.method->pack(shape, plan.args.dtype, weight, floats, executor);
}

void run(const ConvPlan& plan, void* workspace, const Executor& executor) {
  if (plan.args.shape.n == 0) return;
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  auto* aligned = reinterpret_cast<char*>((address + kConvAlign - 1) / kConvAlign * kConvAlign);
  const auto* weight = reinterpret_cast<const float*>(static_cast<const char*>(plan.args.packed) + kHeaderBytes);
  plan.method->run(plan.blocking, plan.args, weight, aligned, executor);
}

void run_chain(const ConvPlan* plans, const int64_t* kept, int64_t count, void* workspace, const Executor& executor) {
  for (int64_t i = 0; i < count;) {
    int64_t together = 1;  // those before the last of which are not kept
    while (i + together < count && !kept[i + together - 1]) ++together;
    const auto begin = plans[i].args.shape.n > 0 ? plans[i].method->run_chain : nullptr;
    const int64_t done = begin ? begin(plans + i, together, executor) : 0;
    if (done == 0) run(plans[i], workspace, executor);
    i += done > 0 ? done : 1;
  }
}

}  // namespace pk
