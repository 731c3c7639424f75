// The entry points: a plan checks the call and works out which kernel runs it, whether x is copied, and the workspace;
// its run launches.
//
// Images go in batches of less than 2^31 pixels and blocks, so that the kernels count in ints.
#include <algorithm>

#include "common/conv_shape.h"
#include "cuda/conv_bn_act/kernels.h"
#include "pykernels/cuda/conv_bn_act.h"

namespace pk::cuda {
namespace {

using namespace conv;  // NOLINT

constexpr int64_t kLargest = int64_t{1} << 28, kMostRows = int64_t{1} << 30;

// A call of any of the entries, as the launches see it.
struct Problem {
  ConvShape shape;
  ConvTensor x;
  const void* packed;
  int64_t columns;  // of `packed`
  Epilogue epilogue;
  float* moments;  // of the convolution with statistics; or null
};

Status check_shape(const ConvShape& s) {
  PK_TRY(check_conv_shape(s, kLargest - 1, "a size, stride, padding or dilation is 2^28 or more"));
  // The kernels count pixels of an image, and a filter's weights, in ints.
  const auto fits = [](int64_t a, int64_t b, int64_t c) {
    return static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c) < static_cast<double>(kMostRows);
  };
  const int64_t filter = s.c / s.groups + 16;
  if (!fits(s.h, s.w, 1) || !fits(s.r, s.s, 1) || !fits(s.p(), s.q(), 1) || !fits(s.r * s.s, filter, s.k / s.groups) ||
      !fits(s.groups, filter, 1) || s.dilation_h * s.r >= kLargest || s.dilation_w * s.s >= kLargest) {
    return {"the sizes are too large"};
  }
  return kOk;
}

bool aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// The strides of sizes of 1 are of no account, and may be anything: 0, then.
ConvTensor without_idle_strides(ConvTensor t, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t sizes[4] = {n, c, h, w};
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] == 1) t.stride[i] = 0;
  }
  return t;
}

// Adjacent channels, and every pixel and group at a multiple of `bytes` bytes.
bool has_vectors(const ConvTensor& t, int64_t element, int64_t channels, int64_t group_channels, int64_t bytes) {
  if ((t.stride[1] != 1 && channels > 1) || !aligned(t.data, bytes)) return false;
  if (channels > group_channels && group_channels * element % bytes != 0) return false;
  return t.stride[0] * element % bytes == 0 && t.stride[2] * element % bytes == 0 && t.stride[3] * element % bytes == 0;
}

// Of what check_shape and make_method keep below 2^31.
int to_int(int64_t v) { return static_cast<int>(v); }

int64_t align_256(int64_t bytes) { return round_up(bytes, 256); }

Status make_method(const ConvShape& s, const ConvTensor& given_x, Math math, ConvMethod* method) {
  const int64_t bytes = element_bytes(math), c_group = s.c / s.groups;
  const ConvTensor x = without_idle_strides(given_x, s.n, s.c, s.h, s.w);
  Device device;
  PK_TRY(current_device(&device));
  method->math = math;
  method->depthwise = is_depthwise(s);
  // Depthwise, all channels are one group to the copy; with several filters a channel they are read one by one.
  method->padded_c = method->depthwise ? round_up(s.c, 16 / bytes) : padded_channels(c_group, bytes);
  method->copy = method->depthwise ? 16 : copy_bytes(c_group, bytes);
  const int64_t unit = method->depthwise && s.k != s.c ? bytes : method->copy;
  method->copies_x = method->depthwise ? s.c * bytes % unit != 0 || !has_vectors(x, bytes, s.c, s.c, unit)
                                       : method->padded_c != c_group || !has_vectors(x, bytes, s.c, c_group, unit);
  const int64_t row = method->depthwise ? method->padded_c : s.groups * method->padded_c, pixels = s.p() * s.q();
  // The tensor-core kernel counts elements of x in ints; a view that is too wide for that becomes dense by the copy.
  const auto reach = [&](int64_t stride_h, int64_t stride_w) {
    return static_cast<double>(s.h + s.pad_top + s.pad_bottom + s.dilation_h) * static_cast<double>(stride_h) +
           static_cast<double>(s.w + s.pad_left + s.pad_right + s.dilation_w) * static_cast<double>(stride_w);
  };
  constexpr double kReach = kMostRows / 2;
  if (!method->depthwise && reach(x.stride[2], x.stride[3]) >= kReach) method->copies_x = true;
  if (!method->depthwise && reach(s.w * row, row) >= kReach && method->copies_x) return {"x: an image is too large"};
  const int64_t image = method->copies_x ? s.h * s.w * row : x.stride[0];
  method->images =
      std::clamp(kMostRows / std::max({pixels, s.h * s.w, image, int64_t{1}}), int64_t{1}, std::max(s.n, int64_t{1}));
  ConvShape batch = s;
  batch.n = method->images;
  const auto described = [&](int64_t size, int i) { return size == 1 || x.stride[i] > 0; };
  const bool tma = method->copies_x || (described(s.n, 0) && described(s.h, 2) && described(s.w, 3));
  const Choice choice = method->depthwise ? Choice{} : choose(batch, math, device, tma);
  method->tile = choice.tile, method->splits = choice.splits;
  method->copied_bytes = method->copies_x ? align_256(method->images * s.h * s.w * row * bytes) : 0;
  const int64_t width = round_up(s.k / s.groups, kChannelsAtOnce);
  method->partial_bytes =
      choice.splits > 1 ? align_256(4 * choice.splits * s.groups * method->images * pixels * width) : 0;
  const bool whole = !method->depthwise && choice.splits == 1 && method->images == s.n;
  method->tile_rows = !whole ? 0 : method->copy == 8 ? 128 : tile_size(choice.tile).m;
  return kOk;
}

ConvPackingPlan packing_of(const ConvShape& s, int64_t bytes) {
  const PackedSize size = packed_size(s, bytes);
  return {s, bytes, size.rows, size.columns, size.rows * size.columns * bytes};
}

// How the epilogue may access y and residual.
void describe(const ConvShape& s, const ConvTensor& y, const ConvTensor& residual, Epilogue* e) {
  for (int i = 0; i < 4; ++i) e->y_stride[i] = y.stride[i], e->residual_stride[i] = residual.stride[i];
  e->y = const_cast<void*>(y.data);
  e->residual = residual.data;
  e->q = static_cast<int>(s.q());
  e->pq = static_cast<int>(s.p() * s.q());
  const int64_t k_group = is_depthwise(s) ? s.k : s.k / s.groups;
  const auto vectors = [&](const ConvTensor& t, DType dtype) {
    const auto bytes = static_cast<int64_t>(size_of(dtype));
    return has_vectors(t, bytes, s.k, k_group, std::min<int64_t>(16, kChannelsAtOnce * bytes));
  };
  const auto linear = [&](const ConvTensor& t) {
    return (s.p() == 1 || t.stride[2] == s.q() * t.stride[3]) &&
           (s.n == 1 || t.stride[0] == s.p() * s.q() * t.stride[3]);
  };
  e->vectors = vectors(y, e->y_dtype) && (!residual.data || vectors(residual, e->residual_dtype));
  e->linear = s.q() > 1 && linear(y) && (!residual.data || linear(residual));
  e->rows_first = s.k == 1 || y.stride[1] != 1;
}

// One batch of images: the fields that depend on where it begins are set by the caller.
Status launch_gemm(const ConvShape& s, const ConvMethod& method, const Pixels& pixels, const Problem& problem,
                   const Epilogue& epilogue, void* partial, void* stream) {
  const TileSize tile = tile_size(method.tile);
  const bool small = method.copy == 8;
  Gemm g = {};
  g.x = pixels.x;
  g.x_stride_group = pixels.stride_group;
  g.weight = problem.packed;
  g.epilogue = epilogue;
  g.partial = method.splits > 1 ? partial : nullptr;
  g.moments = problem.moments;
  g.rows = to_int(s.n * s.p() * s.q());
  g.filters = to_int(s.k / s.groups);
  g.groups = to_int(s.groups);
  g.columns = to_int(problem.columns);
  g.padded_c = to_int(method.padded_c);
  g.h = to_int(s.h), g.w = to_int(s.w), g.p = to_int(s.p()), g.q = to_int(s.q()), g.s = to_int(s.s);
  g.stride_h = to_int(s.stride_h), g.stride_w = to_int(s.stride_w);
  g.pad_top = to_int(s.pad_top), g.pad_left = to_int(s.pad_left);
  g.dilation_h = to_int(s.dilation_h), g.dilation_w = to_int(s.dilation_w);
  g.end_h = to_int(s.r * s.dilation_h), g.end_w = to_int(s.s * s.dilation_w);
  g.x_stride_n = to_int(pixels.stride_n), g.x_stride_h = to_int(pixels.stride_h),
  g.x_stride_w = to_int(pixels.stride_w);
  g.next_w = to_int(s.dilation_w * pixels.stride_w - method.padded_c);
  g.next_h = to_int(s.dilation_h * pixels.stride_h - s.s * s.dilation_w * pixels.stride_w);
  const int64_t steps = steps_of(s, element_bytes(method.math), method.tile);
  g.steps = to_int(steps);
  g.splits = method.splits;
  g.split_steps = to_int(ceil_div(steps, g.splits));
  g.blocks_m = to_int(ceil_div(g.rows, small ? 128 : tile.m));
  g.blocks_n = to_int(ceil_div(g.filters, small ? 64 : tile.n));
  g.plain = s.r == 1 && s.s == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_top == 0 && s.pad_left == 0 &&
            s.pad_bottom == 0 && s.pad_right == 0 && (s.h == 1 || pixels.stride_h == s.w * pixels.stride_w) &&
            (s.n == 1 || pixels.stride_n == s.h * s.w * pixels.stride_w) && s.w > 1;
  if (static_cast<double>(g.blocks_m) * g.blocks_n * g.groups * g.splits >= 2147483648.0) {
    return {"the sizes are too large"};
  }
  if (is_wgmma(method.tile)) return run_gemm_sm90(g, method.math, method.tile, stream);
  switch (method.math) {
    case Math::f16:
      return run_gemm_f16(g, method.tile, method.copy, stream);
    case Math::bf16:
      return run_gemm_bf16(g, method.tile, method.copy, stream);
    case Math::f32:
      return run_gemm_f32(g, method.tile, method.copy, stream);
    case Math::tf32:
      return run_gemm_tf32(g, method.tile, method.copy, stream);
    case Math::i8:
      return run_gemm_i8(g, method.tile, method.copy, stream);
  }
  return {"dtype: no such arithmetic"};
}

Status launch_depthwise(const ConvShape& s, Math math, const Pixels& pixels, const Problem& problem,
                        const Epilogue& epilogue, void* stream) {
  Depthwise d = {};
  d.pixels = pixels;
  d.weight = problem.packed;
  d.epilogue = epilogue;
  d.n = to_int(s.n), d.k = to_int(s.k), d.multiplier = to_int(s.k / s.c);
  d.columns = to_int(problem.columns);
  d.h = to_int(s.h), d.w = to_int(s.w), d.p = to_int(s.p()), d.q = to_int(s.q()), d.r = to_int(s.r), d.s = to_int(s.s);
  d.stride_h = to_int(s.stride_h), d.stride_w = to_int(s.stride_w);
  d.pad_top = to_int(s.pad_top), d.pad_left = to_int(s.pad_left);
  d.dilation_h = to_int(s.dilation_h), d.dilation_w = to_int(s.dilation_w);
  return run_depthwise(d, math, stream);
}

// The images, in batches.
Status launch_all(const Problem& problem, const ConvMethod& method, void* workspace, void* stream) {
  const ConvShape& s = problem.shape;
  const int64_t bytes = element_bytes(method.math);
  char* const copied = static_cast<char*>(workspace);
  for (int64_t first = 0; first < s.n; first += method.images) {
    ConvShape batch = s;
    batch.n = std::min(method.images, s.n - first);
    ConvTensor x = problem.x;
    x.data = static_cast<const char*>(x.data) + first * x.stride[0] * bytes;
    Pixels pixels = {x.data, x.stride[0], x.stride[2], x.stride[3], method.depthwise ? 1 : s.c / s.groups};
    if (method.copies_x) {
      ConvShape seen = batch;  // as the copy sees it
      if (method.depthwise) seen.groups = 1;
      const int64_t row = seen.groups * method.padded_c;
      PK_TRY(run_pack_pixels(seen, bytes, method.padded_c, x, copied, stream));
      pixels = {copied, s.h * s.w * row, s.w * row, row, method.depthwise ? 1 : method.padded_c};
    }
    Epilogue e = problem.epilogue;
    e.y = static_cast<char*>(e.y) + first * e.y_stride[0] * static_cast<int64_t>(size_of(e.y_dtype));
    if (e.residual != nullptr) {
      e.residual = static_cast<const char*>(e.residual) +
                   first * e.residual_stride[0] * static_cast<int64_t>(size_of(e.residual_dtype));
    }
    PK_TRY(method.depthwise ? launch_depthwise(batch, method.math, pixels, problem, e, stream)
                            : launch_gemm(batch, method, pixels, problem, e, copied + method.copied_bytes, stream));
  }
  return kOk;
}

// What the two kinds of arguments mean to the matrix unit and to the epilogue.
Status read(const ConvArgs& args, Math* math) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16 && args.dtype != DType::f16) {
    return {"x: expected float32, bfloat16 or float16"};
  }
  *math = args.dtype == DType::f16    ? Math::f16
          : args.dtype == DType::bf16 ? Math::bf16
          : args.tf32                 ? Math::tf32
                                      : Math::f32;
  return kOk;
}

Status read(const Int8ConvArgs& args, Math* math) {
  if (args.residual_dtype == DType::i32) return {"residual: expected int8 or a float dtype"};
  const bool plain = args.scale == nullptr && args.shift == nullptr && args.residual.data == nullptr &&
                     args.activation == Activation::none && args.y_scale == 1.0f;
  if (args.y_dtype == DType::i32 && !plain) {
    return {"y: int32 is the plain sum; expected no scale, shift, residual, activation or y_scale beside it"};
  }
  *math = Math::i8;
  return kOk;
}

void set_dtypes(const ConvArgs& args, Epilogue* e) {
  e->residual_dtype = e->y_dtype = args.dtype;
  e->residual_scale = e->y_scale = 1.0f;
}

void set_dtypes(const Int8ConvArgs& args, Epilogue* e) {
  e->residual_dtype = args.residual_dtype, e->y_dtype = args.y_dtype;
  e->residual_scale = args.residual_scale, e->y_scale = args.y_scale;
}

template <class Args, class Plan>
Status plan_any(const Args& args, Plan* plan) {
  plan->args = args;
  const ConvShape& s = args.shape;
  Math math;
  PK_TRY(read(args, &math));
  PK_TRY(check_shape(s));
  const auto code = static_cast<int32_t>(args.activation);
  if (code < 0 || code >= kActivations) return {"activation: not a code of pykernels.ops.ACTIVATIONS"};
  plan->packing = packing_of(s, element_bytes(math));
  if (args.packed != nullptr || args.packed_bytes != 0) {
    if (args.packed_bytes != plan->packing.packed_bytes) {
      return {"packed: expected the tensor that pack makes of a weight of this shape and dtype"};
    }
    if (!aligned(args.packed, 16)) return {"packed: expected memory aligned to 16 bytes"};
  }
  plan->method = {};
  if (s.n > 0) {
    PK_TRY(make_method(s, args.x, math, &plan->method));
  }
  plan->workspace_bytes = plan->method.copied_bytes + plan->method.partial_bytes;
  return kOk;
}

template <class Plan>
Status run_any(const Plan& plan, float* moments, void* workspace, void* stream) {
  const auto& args = plan.args;
  const ConvShape& s = args.shape;
  if (s.n == 0) return kOk;
  Problem problem = {s,      without_idle_strides(args.x, s.n, s.c, s.h, s.w), args.packed, plan.packing.columns, {},
                     moments};
  Epilogue& e = problem.epilogue;
  e.scale = args.scale, e.shift = args.shift;
  e.activation = args.activation, e.negative_slope = args.negative_slope;
  set_dtypes(args, &e);
  ConvTensor y = {args.y, {}};
  std::copy(args.y_stride, args.y_stride + 4, y.stride);
  describe(s, without_idle_strides(y, s.n, s.k, s.p(), s.q()),
           without_idle_strides(args.residual, s.n, s.k, s.p(), s.q()), &e);
  return launch_all(problem, plan.method, workspace, stream);
}

}  // namespace

Status make_packing_plan(const ConvShape& shape, DType dtype, ConvPackingPlan* plan) {
  PK_TRY(check_shape(shape));
  if (dtype == DType::i32) return {"weight: expected float32, bfloat16, float16 or int8"};
  *plan = packing_of(shape, static_cast<int64_t>(size_of(dtype)));
  return kOk;
}

Status pack(const ConvPackingPlan& plan, const ConvTensor& weight, void* packed, void* stream) {
  return run_pack_weight(plan, weight, packed, stream);
}

Status make_plan(const ConvArgs& args, ConvPlan* plan) { return plan_any(args, plan); }
Status make_plan(const Int8ConvArgs& args, Int8ConvPlan* plan) { return plan_any(args, plan); }

Status run(const ConvPlan& plan, void* workspace, void* stream) { return run_any(plan, nullptr, workspace, stream); }
Status run(const Int8ConvPlan& plan, void* workspace, void* stream) {
  return run_any(plan, nullptr, workspace, stream);
}

Status make_plan(const ConvArgs& args, bool channels_last, ConvStatisticsPlan* plan) {
  if (args.scale || args.residual.data || args.activation != Activation::none) {
    return {"scale, residual, activation: expected none beside statistics"};
  }
  *plan = {};
  PK_TRY(plan_any(args, &plan->conv));
  const ConvShape& s = args.shape;
  const int64_t p = s.p(), q = s.q(), k = s.k;
  const int64_t last[4] = {p * q * k, 1, q * k, k}, planes[4] = {k * p * q, p * q, q, 1};
  std::copy(channels_last ? last : planes, (channels_last ? last : planes) + 4, plan->conv.args.y_stride);
  plan->conv_bytes = plan->conv.workspace_bytes;
  int64_t more_bytes = 0;
  if (const int64_t tile_rows = plan->conv.method.tile_rows; tile_rows > 0) {
    const int64_t rows = s.n * p * q;
    plan->parts = {ceil_div(rows, tile_rows), tile_rows, rows, k, nullptr};
    more_bytes = plan->parts.parts * 2 * k * static_cast<int64_t>(sizeof(float));
  } else {
    // A single channel or pixel lies the same either way, and NHWC's kernel is the better one.
    const BatchNormShape y = {s.n, k, p * q, channels_last || k == 1 || p * q == 1};
    PK_TRY(make_plan(y, args.dtype, &plan->separate));
    more_bytes = plan->separate.workspace_bytes;
  }
  plan->workspace_bytes = plan->conv_bytes + align_256(more_bytes);
  return kOk;
}

Status run(const ConvStatisticsPlan& plan, const BatchNormStatistics& statistics, void* workspace, void* stream) {
  char* const more = static_cast<char*>(workspace) + plan.conv_bytes;
  BatchNormParts parts = plan.parts;
  const bool fused = parts.rows_per_part > 0;
  if (fused) parts.moments = reinterpret_cast<float*>(more);
  PK_TRY(run_any(plan.conv, fused ? reinterpret_cast<float*>(more) : nullptr, workspace, stream));
  if (fused) return batch_norm_combine(parts, statistics, stream);
  return run(plan.separate, plan.conv.args.y, statistics, more, stream);
}

}  // namespace pk::cuda
