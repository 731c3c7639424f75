// The entry points: check the problem, plan (which kernel, whether x is copied, workspace), launch.
//
// Images go in batches of less than 2^31 pixels and blocks, so that the kernels count in ints.
#include <algorithm>

#include "cuda/conv_bn_act/kernels.h"
#include "pykernels/cuda/conv_bn_act.h"

namespace pk::cuda {
namespace {

using namespace conv;  // NOLINT

constexpr int64_t kLargest = int64_t{1} << 28, kMostRows = int64_t{1} << 30;

// What both entries have in common.
struct Problem {
  ConvShape shape;
  Math math;
  ConvTensor x;
  const void* packed;
  int64_t packed_bytes;
  Epilogue epilogue;
  void* workspace;
  int64_t workspace_bytes;
  float* moments;  // of conv_statistics; or null
};

struct Plan {
  bool depthwise, copies_x;
  int copy;          // bytes of a copy of x
  int64_t padded_c;  // of a group
  Choice choice;
  int64_t images;                       // in one launch
  int64_t copied_bytes, partial_bytes;  // of workspace, in this order
  int tile_rows;                        // pixels of a tile that leaves moments; 0: none does

  int64_t bytes() const { return copied_bytes + partial_bytes; }
};

Status check_shape(const ConvShape& s) {
  for (int64_t size : {s.n, s.c, s.h, s.w, s.k, s.r, s.s, s.stride_h, s.stride_w, s.pad_top, s.pad_left, s.pad_bottom,
                       s.pad_right, s.dilation_h, s.dilation_w, s.groups}) {
    if (size < 0) return {"a size, stride, padding or dilation is negative"};
    if (size >= kLargest) return {"a size, stride, padding or dilation is 2^28 or more"};
  }
  if (s.k < 1) return {"weight: expected at least one output channel, got shape (0, ...)"};
  if (s.r < 1 || s.s < 1) return {"weight: expected a kernel of at least 1 x 1"};
  if (s.stride_h < 1 || s.stride_w < 1) return {"stride: expected at least 1"};
  if (s.dilation_h < 1 || s.dilation_w < 1) return {"dilation: expected at least 1"};
  if (s.groups < 1 || s.c % s.groups != 0 || s.k % s.groups != 0) {
    return {"groups: expected a divisor of x's channels and of weight's output channels"};
  }
  if (s.h + s.pad_top + s.pad_bottom < s.dilation_h * (s.r - 1) + 1 ||
      s.w + s.pad_left + s.pad_right < s.dilation_w * (s.s - 1) + 1) {
    return {"weight: the kernel (dilation included) is larger than the padded input"};
  }
  if (s.n > 0 && s.c > 0 && (s.h < 1 || s.w < 1)) return {"x: expected height and width of at least 1"};
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

// Of what check_shape and make_plan keep below 2^31.
int to_int(int64_t v) { return static_cast<int>(v); }

int64_t align_256(int64_t bytes) { return round_up(bytes, 256); }

Status make_plan(const Problem& problem, Plan* plan) {
  const ConvShape& s = problem.shape;
  const int64_t bytes = element_bytes(problem.math), c_group = s.c / s.groups;
  Device device;
  if (Status status = current_device(&device); !status) return status;
  plan->depthwise = is_depthwise(s);
  // Depthwise, all channels are one group to the copy; with several filters a channel they are read one by one.
  plan->padded_c = plan->depthwise ? round_up(s.c, 16 / bytes) : padded_channels(c_group, bytes);
  plan->copy = plan->depthwise ? 16 : copy_bytes(c_group, bytes);
  const int64_t unit = plan->depthwise && s.k != s.c ? bytes : plan->copy;
  plan->copies_x = plan->depthwise ? s.c * bytes % unit != 0 || !has_vectors(problem.x, bytes, s.c, s.c, unit)
                                   : plan->padded_c != c_group || !has_vectors(problem.x, bytes, s.c, c_group, unit);
  const int64_t row = plan->depthwise ? plan->padded_c : s.groups * plan->padded_c, pixels = s.p() * s.q();
  // The tensor-core kernel counts elements of x in ints; a view that is too wide for that becomes dense by the copy.
  const auto reach = [&](int64_t stride_h, int64_t stride_w) {
    return static_cast<double>(s.h + s.pad_top + s.pad_bottom + s.dilation_h) * static_cast<double>(stride_h) +
           static_cast<double>(s.w + s.pad_left + s.pad_right + s.dilation_w) * static_cast<double>(stride_w);
  };
  constexpr double kReach = kMostRows / 2;
  if (!plan->depthwise && reach(problem.x.stride[2], problem.x.stride[3]) >= kReach) plan->copies_x = true;
  if (!plan->depthwise && reach(s.w * row, row) >= kReach && plan->copies_x) return {"x: an image is too large"};
  const int64_t image = plan->copies_x ? s.h * s.w * row : problem.x.stride[0];
  plan->images =
      std::clamp(kMostRows / std::max({pixels, s.h * s.w, image, int64_t{1}}), int64_t{1}, std::max(s.n, int64_t{1}));
  ConvShape batch = s;
  batch.n = plan->images;
  const auto described = [&](int64_t size, int i) { return size == 1 || problem.x.stride[i] > 0; };
  const bool tma = plan->copies_x || (described(s.n, 0) && described(s.h, 2) && described(s.w, 3));
  plan->choice = plan->depthwise ? Choice{} : choose(batch, problem.math, device, tma);
  plan->copied_bytes = plan->copies_x ? align_256(plan->images * s.h * s.w * row * bytes) : 0;
  const int64_t width = round_up(s.k / s.groups, kChannelsAtOnce);
  const int splits = plan->choice.splits;
  plan->partial_bytes = splits > 1 ? align_256(4 * splits * s.groups * plan->images * pixels * width) : 0;
  const bool whole = !plan->depthwise && splits == 1 && plan->images == s.n;
  plan->tile_rows = !whole ? 0 : plan->copy == 8 ? 128 : tile_size(plan->choice.tile).m;
  return kOk;
}

Status check(const Problem& problem) {
  if (Status status = check_shape(problem.shape); !status) return status;
  const auto code = static_cast<int32_t>(problem.epilogue.activation);
  if (code < 0 || code >= kActivations) return {"activation: not one of the nine"};
  const PackedSize size = packed_size(problem.shape, element_bytes(problem.math));
  if (problem.packed_bytes != size.rows * size.columns * element_bytes(problem.math)) {
    return {"packed: expected the tensor that conv_pack makes of a weight of this shape and dtype"};
  }
  return kOk;
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
Status launch_gemm(const ConvShape& s, const Plan& plan, Math math, const Pixels& pixels, const Problem& problem,
                   const Epilogue& epilogue, void* partial, void* stream) {
  const int64_t bytes = element_bytes(math);
  const TileSize tile = tile_size(plan.choice.tile);
  const bool small = plan.copy == 8;
  Gemm g = {};
  g.x = pixels.x;
  g.x_stride_group = pixels.stride_group;
  g.weight = problem.packed;
  g.epilogue = epilogue;
  g.partial = plan.choice.splits > 1 ? partial : nullptr;
  g.moments = problem.moments;
  g.rows = to_int(s.n * s.p() * s.q());
  g.filters = to_int(s.k / s.groups);
  g.groups = to_int(s.groups);
  g.columns = to_int(packed_size(s, bytes).columns);
  g.padded_c = to_int(plan.padded_c);
  g.h = to_int(s.h), g.w = to_int(s.w), g.p = to_int(s.p()), g.q = to_int(s.q()), g.s = to_int(s.s);
  g.stride_h = to_int(s.stride_h), g.stride_w = to_int(s.stride_w);
  g.pad_top = to_int(s.pad_top), g.pad_left = to_int(s.pad_left);
  g.dilation_h = to_int(s.dilation_h), g.dilation_w = to_int(s.dilation_w);
  g.end_h = to_int(s.r * s.dilation_h), g.end_w = to_int(s.s * s.dilation_w);
  g.x_stride_n = to_int(pixels.stride_n), g.x_stride_h = to_int(pixels.stride_h),
  g.x_stride_w = to_int(pixels.stride_w);
  g.next_w = to_int(s.dilation_w * pixels.stride_w - plan.padded_c);
  g.next_h = to_int(s.dilation_h * pixels.stride_h - s.s * s.dilation_w * pixels.stride_w);
  const int64_t steps = steps_of(s, bytes, plan.choice.tile);
  g.steps = to_int(steps);
  g.splits = plan.choice.splits;
  g.split_steps = to_int(ceil_div(steps, g.splits));
  g.blocks_m = to_int(ceil_div(g.rows, small ? 128 : tile.m));
  g.blocks_n = to_int(ceil_div(g.filters, small ? 64 : tile.n));
  g.plain = s.r == 1 && s.s == 1 && s.stride_h == 1 && s.stride_w == 1 && s.pad_top == 0 && s.pad_left == 0 &&
            s.pad_bottom == 0 && s.pad_right == 0 && (s.h == 1 || pixels.stride_h == s.w * pixels.stride_w) &&
            (s.n == 1 || pixels.stride_n == s.h * s.w * pixels.stride_w) && s.w > 1;
  if (static_cast<double>(g.blocks_m) * g.blocks_n * g.groups * g.splits >= 2147483648.0) {
    return {"the sizes are too large"};
  }
  if (is_wgmma(plan.choice.tile)) return run_gemm_sm90(g, math, plan.choice.tile, stream);
  switch (math) {
    case Math::f16:
      return run_gemm_f16(g, plan.choice.tile, plan.copy, stream);
    case Math::bf16:
      return run_gemm_bf16(g, plan.choice.tile, plan.copy, stream);
    case Math::f32:
      return run_gemm_f32(g, plan.choice.tile, plan.copy, stream);
    case Math::tf32:
      return run_gemm_tf32(g, plan.choice.tile, plan.copy, stream);
    case Math::i8:
      return run_gemm_i8(g, plan.choice.tile, plan.copy, stream);
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
  d.columns = to_int(packed_size(s, element_bytes(math)).columns);
  d.h = to_int(s.h), d.w = to_int(s.w), d.p = to_int(s.p()), d.q = to_int(s.q()), d.r = to_int(s.r), d.s = to_int(s.s);
  d.stride_h = to_int(s.stride_h), d.stride_w = to_int(s.stride_w);
  d.pad_top = to_int(s.pad_top), d.pad_left = to_int(s.pad_left);
  d.dilation_h = to_int(s.dilation_h), d.dilation_w = to_int(s.dilation_w);
  return run_depthwise(d, math, stream);
}

Status run(Problem problem, void* stream) {
  if (Status status = check(problem); !status) return status;
  const ConvShape& s = problem.shape;
  if (s.n == 0) return kOk;
  Plan plan = {};
  if (Status status = make_plan(problem, &plan); !status) return status;
  if (problem.workspace_bytes < plan.bytes()) {
    return {"workspace: expected room of conv_workspace_bytes"};
  }
  if (!aligned(problem.packed, 16)) return {"packed: expected memory aligned to 16 bytes"};
  if (!aligned(problem.workspace, 256)) return {"workspace: expected memory aligned to 256 bytes"};
  const int64_t bytes = element_bytes(problem.math);
  char* copied = static_cast<char*>(problem.workspace);
  for (int64_t first = 0; first < s.n; first += plan.images) {
    ConvShape batch = s;
    batch.n = std::min(plan.images, s.n - first);
    ConvTensor x = problem.x;
    x.data = static_cast<const char*>(x.data) + first * x.stride[0] * bytes;
    Pixels pixels = {x.data, x.stride[0], x.stride[2], x.stride[3], plan.depthwise ? 1 : s.c / s.groups};
    if (plan.copies_x) {
      ConvShape seen = batch;  // as the copy sees it
      if (plan.depthwise) seen.groups = 1;
      const int64_t row = seen.groups * plan.padded_c;
      if (Status status = run_pack_pixels(seen, bytes, plan.padded_c, x, copied, stream); !status) return status;
      pixels = {copied, s.h * s.w * row, s.w * row, row, plan.depthwise ? 1 : plan.padded_c};
    }
    Epilogue e = problem.epilogue;
    e.y = static_cast<char*>(e.y) + first * e.y_stride[0] * static_cast<int64_t>(size_of(e.y_dtype));
    if (e.residual != nullptr) {
      e.residual = static_cast<const char*>(e.residual) +
                   first * e.residual_stride[0] * static_cast<int64_t>(size_of(e.residual_dtype));
    }
    const Status status =
        plan.depthwise ? launch_depthwise(batch, problem.math, pixels, problem, e, stream)
                       : launch_gemm(batch, plan, problem.math, pixels, problem, e, copied + plan.copied_bytes, stream);
    if (!status) return status;
  }
  return kOk;
}

Status workspace_bytes(const Problem& problem, int64_t* bytes) {
  if (Status status = check(problem); !status) return status;
  *bytes = 0;
  if (problem.shape.n == 0) return kOk;
  Plan plan = {};
  if (Status status = make_plan(problem, &plan); !status) return status;
  *bytes = plan.bytes();
  return kOk;
}

ConvTensor y_tensor(void* y, const int64_t (&stride)[4]) {
  ConvTensor t;
  t.data = y;
  for (int i = 0; i < 4; ++i) t.stride[i] = stride[i];
  return t;
}

// Fills in what `shape` says of the strides; the shape is checked later, and here only has to be harmless.
Problem make_problem(const ConvShape& s, Math math, const ConvTensor& x, const ConvTensor& residual,
                     const ConvTensor& y, Epilogue e) {
  Problem problem = {};
  problem.shape = s;
  problem.math = math;
  if (!check_shape(s)) return problem;
  problem.x = without_idle_strides(x, s.n, s.c, s.h, s.w);
  describe(s, without_idle_strides(y, s.n, s.k, s.p(), s.q()), without_idle_strides(residual, s.n, s.k, s.p(), s.q()),
           &e);
  problem.epilogue = e;
  return problem;
}

Status to_problem(const ConvArgs& args, Problem* problem) {
  if (args.dtype != DType::f32 && args.dtype != DType::bf16 && args.dtype != DType::f16) {
    return {"x: expected float32, bfloat16 or float16"};
  }
  const Math math = args.dtype == DType::f16    ? Math::f16
                    : args.dtype == DType::bf16 ? Math::bf16
                    : args.tf32                 ? Math::tf32
                                                : Math::f32;
  Epilogue e = {};
  e.scale = args.scale, e.shift = args.shift;
  e.residual_dtype = e.y_dtype = args.dtype;
  e.residual_scale = e.y_scale = 1.0f;
  e.activation = args.activation, e.negative_slope = args.negative_slope;
  *problem = make_problem(args.shape, math, args.x, args.residual, y_tensor(args.y, args.y_stride), e);
  problem->packed = args.packed, problem->packed_bytes = args.packed_bytes;
  problem->workspace = args.workspace, problem->workspace_bytes = args.workspace_bytes;
  return kOk;
}

Status to_problem(const Int8Conv& args, Problem* problem) {
  if (args.residual_dtype == DType::i32) return {"residual: expected int8 or a float dtype"};
  const bool plain = args.scale == nullptr && args.shift == nullptr && args.residual.data == nullptr &&
                     args.activation == Activation::none && args.y_scale == 1.0f;
  if (args.y_dtype == DType::i32 && !plain) {
    return {"y: int32 is the plain sum; expected no scale, shift, residual, activation or y_scale beside it"};
  }
  Epilogue e = {};
  e.scale = args.scale, e.shift = args.shift;
  e.residual_dtype = args.residual_dtype, e.y_dtype = args.y_dtype;
  e.residual_scale = args.residual_scale, e.y_scale = args.y_scale;
  e.activation = args.activation, e.negative_slope = args.negative_slope;
  *problem = make_problem(args.shape, Math::i8, args.x, args.residual, y_tensor(args.y, args.y_stride), e);
  problem->packed = args.packed, problem->packed_bytes = args.packed_bytes;
  problem->workspace = args.workspace, problem->workspace_bytes = args.workspace_bytes;
  return kOk;
}

// ---- The convolution with statistics ----

struct StatisticsPlan {
  Problem problem;
  int64_t conv_bytes;  // of workspace; then the moments, or what the separate pass needs
  int64_t more_bytes;
  BatchNormParts parts;  // of the epilogue; rows_per_part is 0 where it leaves none
  BatchNormShape y;      // for the separate pass
};

// Are y's elements adjacent in this order?
bool is_dense(const int64_t (&stride)[4], const int64_t (&size)[4], bool channels_last) {
  constexpr int kPlanes[] = {3, 2, 1, 0}, kLast[] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : channels_last ? kLast : kPlanes) {
    if (size[d] != 1 && stride[d] != expected) return false;
    expected *= size[d];
  }
  return true;
}

Status plan_statistics(const ConvArgs& args, StatisticsPlan* plan) {
  *plan = {};
  Problem& problem = plan->problem;
  if (Status status = to_problem(args, &problem); !status) return status;
  if (Status status = check(problem); !status) return status;
  if (args.scale || args.residual.data || args.activation != Activation::none) {
    return {"scale, residual, activation: expected none beside statistics"};
  }
  const ConvShape& s = args.shape;
  const int64_t size[4] = {s.n, s.k, s.p(), s.q()};
  plan->y = {s.n, s.k, s.p() * s.q(), is_dense(args.y_stride, size, true)};
  if (!plan->y.channels_last && s.n > 0 && !is_dense(args.y_stride, size, false)) {
    return {"y: expected a dense tensor, NCHW or NHWC"};
  }
  Plan conv = {};
  if (s.n > 0) {
    if (Status status = make_plan(problem, &conv); !status) return status;
  }
  plan->conv_bytes = conv.bytes();
  if (conv.tile_rows == 0) {
    const Status status = batch_norm_statistics_workspace(plan->y, args.dtype, &plan->more_bytes);
    plan->more_bytes = align_256(plan->more_bytes);
    return status;
  }
  const int64_t rows = s.n * s.p() * s.q();
  plan->parts = {ceil_div(rows, conv.tile_rows), conv.tile_rows, rows, s.k, nullptr};
  plan->more_bytes = align_256(plan->parts.parts * 2 * s.k * static_cast<int64_t>(sizeof(float)));
  return kOk;
}

Status check_weight(const ConvShape& s, DType dtype) {
  if (Status status = check_shape(s); !status) return status;
  if (dtype == DType::i32) return {"weight: expected float32, bfloat16, float16 or int8"};
  return kOk;
}

}  // namespace

Status conv_packed_size(const ConvShape& shape, DType dtype, int64_t (&size)[2]) {
  if (Status status = check_weight(shape, dtype); !status) return status;
  const PackedSize packed = packed_size(shape, static_cast<int64_t>(size_of(dtype)));
  size[0] = packed.rows, size[1] = packed.columns;
  return kOk;
}

Status conv_pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, void* packed, void* stream) {
  if (Status status = check_weight(shape, dtype); !status) return status;
  return run_pack_weight(shape, static_cast<int64_t>(size_of(dtype)), weight, packed, stream);
}

Status conv_workspace_bytes(const ConvArgs& args, int64_t* bytes) {
  Problem problem;
  if (Status status = to_problem(args, &problem); !status) return status;
  return workspace_bytes(problem, bytes);
}

Status conv_bn_act(const ConvArgs& args, void* stream) {
  Problem problem;
  if (Status status = to_problem(args, &problem); !status) return status;
  return run(problem, stream);
}

Status conv_statistics_workspace_bytes(const ConvArgs& args, int64_t* bytes) {
  StatisticsPlan plan;
  if (Status status = plan_statistics(args, &plan); !status) return status;
  *bytes = plan.conv_bytes + plan.more_bytes;
  return kOk;
}

Status conv_statistics(const ConvArgs& args, const BatchNormStatistics& statistics, void* stream) {
  StatisticsPlan plan;
  if (Status status = plan_statistics(args, &plan); !status) return status;
  if (args.workspace_bytes < plan.conv_bytes + plan.more_bytes) {
    return {"workspace: expected room of conv_statistics_workspace_bytes"};
  }
  char* const more = static_cast<char*>(args.workspace) + plan.conv_bytes;
  const bool fused = plan.parts.rows_per_part > 0;
  if (fused) plan.parts.moments = plan.problem.moments = reinterpret_cast<float*>(more);
  if (Status status = run(plan.problem, stream); !status) return status;
  if (fused) return batch_norm_combine(plan.parts, statistics, stream);
  return batch_norm_statistics(plan.y, args.dtype, args.y, statistics, more, plan.more_bytes, stream);
}

Status int8_conv_workspace_bytes(const Int8Conv& args, int64_t* bytes) {
  Problem problem;
  if (Status status = to_problem(args, &problem); !status) return status;
  return workspace_bytes(problem, bytes);
}

Status int8_conv(const Int8Conv& args, void* stream) {
  Problem problem;
  if (Status status = to_problem(args, &problem); !status) return status;
  return run(problem, stream);
}

}  // namespace pk::cuda
