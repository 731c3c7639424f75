// The entry points of int8 convolution: validation and the plan, then the table of the ISA in force.
#include <cmath>
#include <cstring>
#include <vector>

#include "common/conv_shape.h"
#include "common/sizes.h"
#include "cpu/int8_conv2d/choose.h"

namespace pk {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;  // a size, stride, padding or dilation

Status kernels_in_force(const Int8ConvKernels** kernels) {
  Isa isa;
  PK_TRY(active_isa(&isa));
  *kernels = PK_DOT4_TABLE_OF(int8_conv_kernels, isa);
  return kOk;
}

bool is_int8(int32_t z) { return z >= -128 && z <= 127; }

// Validates all that goes into the blob except the weights.
Status check_options(const ConvShape& s, const Int8ConvOptions& o, bool has_table, bool plain) {
  const int64_t channels = s.c / s.groups;
  if (!product_fits({channels + 1, s.r, s.s, 4}) || channels * s.r * s.s > kInt8MaxK) {
    return {"weight: expected at most 131071 numbers a filter, beyond which int32 sums may wrap"};
  }
  if (o.x_zero_point != 0 && channels * s.r * s.s > kInt8MaxKWithZeroPoint) {
    return {"weight: expected at most 65793 numbers a filter with a zero point, beyond which int32 sums may wrap"};
  }
  if (!product_fits({s.k + 64 * s.groups, channels * s.r * s.s + 16, 8})) return {"weight: it is too large"};
  if (!is_int8(o.x_zero_point)) return {"x_zero_point: expected a number in [-128, 127]"};
  if (!is_int8(o.residual_zero_point)) return {"residual_zero_point: expected a number in [-128, 127]"};
  if (!is_int8(o.out_zero_point)) return {"out_zero_point: expected a number in [-128, 127]"};
  if (static_cast<uint32_t>(o.activation) >= static_cast<uint32_t>(kActivations)) return {"activation: unknown"};
  const DType out = o.out_dtype;
  if (out != DType::i8 && out != DType::f32 && out != DType::bf16 && out != DType::i32) {
    return {"out_dtype: the CPU kernels have int8, float32, bfloat16 and int32"};
  }
  if (out != DType::i8 && (has_table || o.out_zero_point != 0)) {
    return {"out_dtype: expected int8, for a table or a zero point"};
  }
  if (out == DType::i32 && !(plain && o.activation == Activation::none && o.out_scale == 1.0f)) {
    return {"out_dtype: int32 is the plain sum; expected a float dtype or int8 with scales, bias or activation"};
  }
  return kOk;
}

// A shape that is packed: the image may have any size.
Status check_packed_shape(ConvShape s) {
  s.n = 0;
  s.h = s.dilation_h * (s.r - 1) + 1, s.w = s.dilation_w * (s.s - 1) + 1;
  return check_conv_shape(s, kLargest, "weight: it is too large");
}

// How many groups are packed as one, with zeros where they do not meet: so many as fill a panel. That is as many
// products, for a panel has kPackedColumns columns whatever a group has, but longer sums and whole vectors of outputs.
int64_t merged_groups(const ConvShape& s) {
  constexpr int64_t kMost = 1024;  // numbers of a filter, beyond which a sum is long enough
  if (is_depthwise(s) || s.groups == 1) return 1;
  const int64_t filters = s.k / s.groups, depth = s.c / s.groups * s.r * s.s;
  int64_t merged = 1;
  for (int64_t m = 2; m <= s.groups && m * filters <= kPackedColumns && m * depth <= kMost; ++m) {
    if (s.groups % m == 0) merged = m;
  }
  return merged;
}

// Do the sums of each filter, (k, depth), fit the 26 bits that winograd.h keeps?
bool winograd_fits(const int8_t* weight, int64_t k, int64_t depth) {
  for (int64_t i = 0; i < k; ++i, weight += depth) {
    int64_t sum = 0;
    for (int64_t j = 0; j < depth; ++j) sum += weight[j] < 0 ? -weight[j] : weight[j];
    if (sum >= int64_t{1} << 18) return false;  // of x in [-128, 127]
  }
  return true;
}

// With the largest sum and residual that there are; room for the rounding of each operation.
bool fits_int32(const Int8ConvPacking& args) {
  const Int8ConvOptions& o = args.options;
  for (int64_t k = 0; k < args.shape.k; ++k) {
    const double scale = args.scale != nullptr ? args.scale[k] : 1, bias = args.bias != nullptr ? args.bias[k] : 0;
    const double most = std::abs(scale) * 0x1p31 + std::abs(bias) + std::abs(o.residual_scale) * 255.0;
    if (!(most < 0x1p30 && most * std::abs(o.out_scale) < 0x1p30)) return false;  // NaN is not less
  }
  return true;
}

// An ISA whose products of words cost four of bytes never goes by Winograd's algorithm (pays_winograd).
WinogradForm winograd_form(const Int8ConvPacking& args, const Int8ConvKernels& kernels) {
  const bool packed = has_winograd(args.shape) && !args.once && kernels.tiling.word_cost < 4;
  return packed ? WinogradForm::packed : WinogradForm::none;
}

// The size of an image that any filter fits is not known here.
Status check_sizes(const ConvShape& s) {
  for (const int64_t size : {s.k, s.c, s.r, s.s, s.dilation_h, s.dilation_w, s.groups}) {
    if (size < 0 || size > kLargest) return {"weight: it is too large"};
  }
  return product_fits({s.dilation_h, s.r}) && product_fits({s.dilation_w, s.s}) ? kOk : Status{"weight: too large"};
}

}  // namespace

Status make_packing_plan(const Int8ConvPacking& args, Int8ConvPackingPlan* plan) {
  *plan = {args, nullptr, 0};
  PK_TRY(kernels_in_force(&plan->kernels));
  PK_TRY(check_sizes(args.shape));
  PK_TRY(check_packed_shape(args.shape));
  const bool plain = args.scale == nullptr && args.bias == nullptr;
  PK_TRY(check_options(args.shape, args.options, args.table != nullptr, plain));
  ConvShape s = args.shape;
  s.groups /= merged_groups(s);
  plan->packed_bytes = packed_bytes(s, winograd_form(args, *plan->kernels));
  return kOk;
}

void pack(const Int8ConvPackingPlan& plan, void* packed, const Executor& executor) {
  const Int8ConvPacking& args = plan.args;
  ConvShape s = args.shape;
  s.n = s.h = s.w = 0;
  s.groups /= merged_groups(s);
  const Int8ConvLayout layout(s);
  Int8ConvHeader header{};
  std::memcpy(header.magic, kInt8ConvMagic, sizeof header.magic);
  header.version = kInt8ConvVersion;
  header.layout = plan.kernels->layout;
  header.products = args.shape.k * (args.shape.c / args.shape.groups) * s.r * s.s;
  header.shape = s;
  header.options = args.options;
  header.has_table = args.table != nullptr;
  header.winograd = winograd_form(args, *plan.kernels);
  header.fits_int32 = fits_int32(args);
  auto* const to = static_cast<char*>(packed);
  std::memset(to, 0, static_cast<size_t>(layout.body_at()));
  auto *const scale = reinterpret_cast<float*>(to + layout.scale_at()), *const bias = reinterpret_cast<float*>(
                                                                            to + layout.bias_at());
  const int64_t columns = s.k / layout.groups;
  for (int64_t k = 0; k < s.k; ++k) {
    const int64_t at = k / columns * layout.columns + k % columns;
    scale[at] = args.scale != nullptr ? args.scale[k] : 1.0f;
    bias[at] = args.bias != nullptr ? args.bias[k] : -0.0f;  // x + -0 is x, also where x is -0
  }
  if (args.table != nullptr) std::memcpy(to + layout.table_at(), args.table, 256);
  // The sums go over lines, columns and channels of a filter, in this order; of groups that are merged, over zeros in
  // the channels of the others.
  const int64_t channels = args.shape.c / args.shape.groups, filters = s.k / args.shape.groups, merged = s.c / s.groups;
  const int64_t* const stride = args.weight.stride;
  const auto* const weight = static_cast<const int8_t*>(args.weight.data);
  std::vector<int8_t> dense(static_cast<size_t>(s.k * merged * s.r * s.s));
  int8_t* next = dense.data();
  for (int64_t k = 0; k < s.k; ++k) {
    const int64_t first = merged == 0 ? 0 : k / filters * channels % merged;
    for (int64_t r = 0; r < s.r; ++r) {
      for (int64_t t = 0; t < s.s; ++t, next += merged) {
        const int8_t* const from = weight + k * stride[0] + r * stride[2] + t * stride[3];
        for (int64_t c = 0; c < channels; ++c) next[first + c] = from[c * stride[1]];
      }
    }
  }
  plan.kernels->pack(s, args.options.x_zero_point, dense.data(), to + layout.body_at(), executor);
  if (header.winograd == WinogradForm::packed) {
    if (!winograd_fits(dense.data(), s.k, 9 * s.c)) header.winograd = WinogradForm::does_not_fit;
    plan.kernels->pack_winograd(s, args.options.x_zero_point, dense.data(), to + layout.winograd_at(), executor);
  }
  std::memcpy(to, &header, sizeof header);
}

Status make_plan(const Int8ConvArgs& args, int threads, Int8ConvPlan* plan) {
  *plan = {};
  plan->args = args;
  PK_TRY(kernels_in_force(&plan->kernels));
  Int8ConvHeader header;
  if (args.packed_bytes < static_cast<int64_t>(sizeof header)) return {"packed: too short for a packed weight"};
  std::memcpy(&header, args.packed, sizeof header);
  if (std::memcmp(header.magic, kInt8ConvMagic, sizeof header.magic) != 0) {
    return {"packed: no packed weight of int8_conv2d: its first bytes are others"};
  }
  if (header.version != kInt8ConvVersion) return {"packed: made by another version of pykernels; pack again"};
  if (header.layout != plan->kernels->layout) {
    return {"packed: made for another instruction set; pack again on this one"};
  }
  ConvShape& s = plan->shape = header.shape;
  PK_TRY(check_sizes(s));
  PK_TRY(check_packed_shape(s));
  // A blob with scale or bias and int32 was refused when it was made, and would do no harm.
  PK_TRY(check_options(s, header.options, header.has_table != 0, true));
  const bool winograd = header.winograd != WinogradForm::none;
  if ((winograd && !has_winograd(s)) || args.packed_bytes != packed_bytes(s, header.winograd))
    return {"packed: cut short or extended: its size is wrong"};
  plan->options = header.options;
  s.n = args.n, s.h = args.h, s.w = args.w;
  PK_TRY(check_conv_shape(s, kLargest, "x: it is too large"));
  if (!product_fits({s.n + 64, s.h + 64, s.w + 64, s.c + 64, 8}) ||
      !product_fits({s.n + 64, s.p() + 64, s.q() + 64, s.k + 64, 8}) ||
      !product_fits({s.q() + 64, s.r, s.s, s.c / s.groups + 64, 64})) {
    return {"x: it is too large"};
  }
  if (args.residual.data != nullptr) {
    const DType r = args.residual_dtype;
    if (r != DType::i8 && r != DType::f32 && r != DType::bf16) {
      return {"residual: the CPU kernels have int8, float32 and bfloat16"};
    }
    if (plan->options.out_dtype == DType::i32) return {"residual: expected none, for int32 is the plain sum"};
  }
  if (s.n == 0) return kOk;
  plan->blocking = choose_conv(s, s.c > 1 && args.x.stride[1] != 1, header.winograd == WinogradForm::packed,
                               plan->kernels->tiling, threads);
  plan->workspace_bytes = workspace_of(plan->blocking);
  return kOk;
}

void run(const Int8ConvPlan& plan, void* workspace, const Executor& executor) {
  if (plan.shape.n == 0) return;
  plan.kernels->run(plan, static_cast<char*>(workspace), executor);
}

}  // namespace pk
