// conv_bn_act, conv_pack, conv_bn_act_packed: see pykernels/ops/conv_bn_act for what they compute. conv_bind and
// conv_bn_act_bound: the same for callers who know all but x and the residual beforehand; conv_bn_act_bound_out: for
// those who have the memory too; conv_bn_act_chain_out: several of those in a row, squeezes between. linear_bound and
// linear_bound_out: the same for the rows of tensors of any rank.
#include "torch/conv_bn_act.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "common/rounding.h"
#include "torch/cpu/bound.h"
#include "torch/cpu/kept_weights.h"
#include "torch/cpu/squeeze_call.h"
#include "torch/huge_pages.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

Ints sizes_of(const Tensor& t) { return {t.size(0), t.size(1), t.size(2), t.size(3)}; }

ConvAlgorithm to_algorithm(int64_t code, const char* op) {
  check(code >= 0 && code < kConvAlgorithms, op, "algorithm",
        "expected 0 (direct), 1 (winograd4) or 2 (winograd2), got ", code);
  return static_cast<ConvAlgorithm>(code);
}

// x, and what follows from it: y's memory format is x's, as torch's conv2d gives; run makes the rest of its strides.
void set_x(const char* op, const Tensor& x, ConvArgs* args) {
  args->dtype = to_float_dtype(x.scalar_type(), op, "x");
  args->x = to_conv_tensor(x);
  args->y_stride[1] = is_channels_last(x) ? 1 : 0;
}

void check_x(const char* op, const Tensor& x) {
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
}

// What a plan reads of `out`.
void check_y(const char* op, const Tensor& x, const Tensor& out) {
  check_cpu(out, op, "out");
  check_dtype(out, x.scalar_type(), op, "out");
  check_dim(out, 4, op, "out");
}

// Everything but packed, residual and y, as far as a plan reads it. `keep` holds what scale and shift point to.
ConvArgs args_of(const char* op, const Tensor& x, const Ints& weight_shape, const MaybeTensor& scale,
                 const MaybeTensor& shift, const ConvCall& call, MaybeTensor (&keep)[2]) {
  check_x(op, x);
  ConvArgs args;
  args.shape = conv_shape_of(op, x, weight_shape, call.geometry);
  set_x(op, x, &args);
  args.scale = per_channel(scale, args.shape.k, op, "scale", &keep[0]);
  args.shift = per_channel(shift, args.shape.k, op, "shift", &keep[1]);
  call.fill(op, &args);
  return args;
}

Tensor pack(const ConvPlan& plan, const Tensor& weight, const Executor& executor) {
  Tensor packed = empty({plan.packed_bytes}, ScalarType::Byte);
  pk::pack(plan, to_conv_tensor(weight), packed.mutable_data_ptr(), executor);
  return packed;
}

// `plan` lacks residual and y.
void set_residual(const char* op, ConvPlan* plan, const Tensor& x, const MaybeTensor& residual) {
  if (!residual.has_value()) return;
  const ConvShape& shape = plan->args.shape;
  check_cpu(*residual, op, "residual");
  check_dtype(*residual, x.scalar_type(), op, "residual");
  check_shape(*residual, {shape.n, shape.k, shape.p(), shape.q()}, op, "residual");
  plan->args.residual = to_conv_tensor(*residual);
}

// The same.
Tensor run(const char* op, ConvPlan* plan, const Tensor& x, const MaybeTensor& residual, const Executor& executor) {
  set_residual(op, plan, x, residual);
  ConvArgs& args = plan->args;
  const ConvShape& shape = args.shape;
  const int64_t sizes[4] = {shape.n, shape.k, shape.p(), shape.q()};
  image_strides(sizes, args.y_stride[1] == 1, args.y_stride);
  const Tensor y = empty_strided(sizes, args.y_stride, 4, x.scalar_type());
  args.y = y.mutable_data_ptr();
  pk::run(*plan, Scratch(plan->workspace_bytes).data(), executor);
  return y;
}

ConvPlan packing_plan(const char* op, const Tensor& weight, int64_t groups, int64_t algorithm) {
  check_cpu(weight, op, "weight");
  check_dim(weight, 4, op, "weight");
  const DType dtype = to_dtype(weight.scalar_type(), op, "weight");
  const ConvShape shape = weight_shape_of(sizes_of(weight), groups, op, "weight");
  ConvPlan plan;
  check_status(make_packing_plan(shape, to_algorithm(algorithm, op), dtype, &plan), op);
  return plan;
}

Tensor conv_pack_op(Tensor weight, int64_t groups, int64_t algorithm) {
  return pack(packing_plan("conv_pack", weight, groups, algorithm), weight, torch_executor());
}

Tensor conv_bn_act_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual,
                      ConvCall call) {
  const char* op = "conv_bn_act";
  check_cpu(weight, op, "weight");
  check_dtype(weight, x.scalar_type(), op, "weight");
  check_dim(weight, 4, op, "weight");
  MaybeTensor keep[2];
  ConvArgs args = args_of(op, x, sizes_of(weight), scale, shift, call, keep);
  const Executor executor = torch_executor();
  ConvPlan plan;
  check_status(make_packing_plan(args, executor.threads, &plan), op);
  const PackedFor what = {'c', plan.layout, plan.lanes, args.shape.groups};
  const auto now = [&] { return pack(plan, weight, executor); };
  const Tensor packed = kept_or_packed(weight, what, plan.packed_bytes, executor, now);
  plan.args.packed = data_of(packed);
  return run(op, &plan, x, residual, executor);
}

Tensor conv_bn_act_packed_op(Tensor x, Tensor packed, Ints weight_shape, MaybeTensor scale, MaybeTensor shift,
                             MaybeTensor residual, ConvCall call) {
  const char* op = "conv_bn_act_packed";
  check_blob(op, "packed", "conv_pack", packed);
  MaybeTensor keep[2];
  ConvArgs args = args_of(op, x, weight_shape, scale, shift, call, keep);
  args.packed = data_of(packed);
  args.packed_bytes = packed.numel();
  const Executor executor = torch_executor();
  ConvPlan plan;
  check_status(make_plan(args, executor.threads, &plan), op);
  return run(op, &plan, x, residual, executor);
}

// What conv_bind makes: a convolution but for x and the residual. Behind the header come scale and shift, each (k,) or
// nothing, the activation's own constants, and the packed weight, all aligned to kAlign.
struct BoundConv {
  static constexpr uint32_t kMagic = 0x624b4350;  // "PCKb"
  static constexpr uint32_t kVersion = 3;
  static constexpr int64_t kAlign = 64;

  uint32_t magic, version;
  ConvShape shape;  // n, h and w are x's
  ConvOptions options;
  int32_t has_scale, has_shift, parameters;  // the last: rows of k

  static int64_t room(int64_t bytes) { return round_up(bytes, kAlign); }
  int64_t vector_bytes() const { return room(4 * shape.k); }
  int64_t scale_at() const { return room(sizeof(BoundConv)); }
  int64_t shift_at() const { return scale_at() + (has_scale ? vector_bytes() : 0); }
  int64_t parameters_at() const { return shift_at() + (has_shift ? vector_bytes() : 0); }
  int64_t packed_at() const { return parameters_at() + room(4 * shape.k * parameters); }
};

// A bound convolution with room for `packed_bytes` at the end, and where that begins.
struct Unfilled {
  Tensor result;
  char* packed;
};

// parameters: (rows, k), what the activation has for each channel in the place of its usual constants.
Unfilled bind_unfilled(const char* op, Ints weight_shape, MaybeTensor scale, MaybeTensor shift, const ConvCall& call,
                       MaybeTensor parameters, int64_t packed_bytes) {
  BoundConv bound = {};  // no byte is left to chance
  bound.magic = BoundConv::kMagic;
  bound.version = BoundConv::kVersion;
  bound.shape = weight_shape_of(weight_shape, call.geometry.groups, op, "weight_shape");
  call.geometry.fill(op, &bound.shape);
  bound.shape.h = bound.shape.w = 0;
  call.fill(op, &bound.options);
  bound.has_scale = scale.has_value();
  bound.has_shift = shift.has_value();
  MaybeTensor keep[2];
  const float* const vectors[2] = {per_channel(scale, bound.shape.k, op, "scale", &keep[0]),
                                   per_channel(shift, bound.shape.k, op, "shift", &keep[1])};
  if (parameters.has_value()) {
    bound.parameters = parameters_of(bound.options.activation);
    check(bound.parameters > 0, op, "parameters", "expected none, because the activation has no constants");
    check_cpu(*parameters, op, "parameters");
    check_dtype(*parameters, ScalarType::Float, op, "parameters");
    check_shape(*parameters, {bound.parameters, bound.shape.k}, op, "parameters");
    parameters = torch::stable::contiguous(*parameters);
  }
  const Tensor result = empty_on_huge_pages(bound.packed_at() + packed_bytes);
  auto* const to = static_cast<char*>(result.mutable_data_ptr());
  std::memset(to, 0, static_cast<size_t>(bound.packed_at()));
  std::memcpy(to, &bound, sizeof bound);
  const auto bytes = static_cast<size_t>(4 * bound.shape.k);
  if (bound.has_scale) std::memcpy(to + bound.scale_at(), vectors[0], bytes);
  if (bound.has_shift) std::memcpy(to + bound.shift_at(), vectors[1], bytes);
  if (bound.parameters) {
    std::memcpy(to + bound.parameters_at(), data_of(*parameters), bytes * static_cast<size_t>(bound.parameters));
  }
  return {result, to + bound.packed_at()};
}

Tensor conv_bind_op(Tensor packed, Ints weight_shape, MaybeTensor scale, MaybeTensor shift, ConvCall call,
                    MaybeTensor parameters) {
  const char* op = "conv_bind";
  check_blob(op, "packed", "conv_pack", packed);
  const auto bytes = packed.numel();
  const Unfilled bound = bind_unfilled(op, weight_shape, scale, shift, call, parameters, bytes);
  if (bytes) std::memcpy(bound.packed, data_of(packed), static_cast<size_t>(bytes));
  return bound.result;
}

// The same of a plain weight, packed in its place: memory for a second copy would stay with the process.
Tensor conv_pack_bound_op(Tensor weight, int64_t algorithm, MaybeTensor scale, MaybeTensor shift, ConvCall call,
                          MaybeTensor parameters) {
  const char* op = "conv_pack_bound";
  const ConvPlan plan = packing_plan(op, weight, call.geometry.groups, algorithm);
  const Unfilled bound = bind_unfilled(op, sizes_of(weight), scale, shift, call, parameters, plan.packed_bytes);
  pk::pack(plan, to_conv_tensor(weight), bound.packed, torch_executor());
  return bound.result;
}

// A call of what conv_bind made, but for the residual and y's data. Without `y` its memory format is x's.
ConvPlan open(const char* op, const Tensor& x, const Tensor& bound_conv, const Tensor* y, int threads) {
  check_x(op, x);
  check_blob(op, "bound_conv", "conv_bind", bound_conv);
  const auto* const blob = static_cast<const char*>(data_of(bound_conv));
  const int64_t bytes = bound_conv.numel();
  BoundConv bound;
  check(bytes >= static_cast<int64_t>(sizeof bound), op, "bound_conv", "expected what conv_bind makes, got ", bytes,
        " bytes");
  std::memcpy(&bound, blob, sizeof bound);
  check(bound.magic == BoundConv::kMagic && bound.version == BoundConv::kVersion, op, "bound_conv",
        "expected what conv_bind of this version of pykernels makes, got other bytes");
  check(bound.shape.k >= 1 && bound.shape.k <= bytes && (bound.parameters & ~3) == 0 && bound.packed_at() <= bytes, op,
        "bound_conv", "expected what conv_bind makes, got a part of it");
  check(x.size(1) == bound.shape.c, op, "x", "expected ", bound.shape.c, " channels, got shape ", shape_of(x));
  ConvArgs args;
  args.shape = bound.shape;
  args.shape.n = x.size(0);
  args.shape.h = x.size(2);
  args.shape.w = x.size(3);
  set_x(op, x, &args);
  if (y != nullptr) args.y_stride[1] = y->stride(1);
  if (bound.has_scale) args.scale = reinterpret_cast<const float*>(blob + bound.scale_at());
  if (bound.has_shift) args.shift = reinterpret_cast<const float*>(blob + bound.shift_at());
  args.packed = blob + bound.packed_at();
  args.packed_bytes = bytes - bound.packed_at();
  static_cast<ConvOptions&>(args) = bound.options;  // the plan checks them
  if (bound.parameters) {
    args.parameters = reinterpret_cast<const float*>(blob + bound.parameters_at());
    check(bound.parameters >= parameters_of(args.activation), op, "bound_conv",
          "expected what conv_bind makes, got other bytes");
  }
  ConvPlan plan;
  check_bound_status(make_plan(args, threads, &plan), op);
  return plan;
}

Tensor conv_bn_act_bound_op(Tensor x, Tensor bound_conv, MaybeTensor residual) {
  const char* op = "conv_bn_act_bound";
  const Executor executor = torch_executor();
  ConvPlan plan = open(op, x, bound_conv, nullptr, executor.threads);
  return run(op, &plan, x, residual, executor);
}

// Bytes of workspace of that call, with y in any memory format.
int64_t conv_bn_act_bound_workspace_op(Tensor x, Tensor bound_conv, Tensor out) {
  const char* op = "conv_bn_act_bound_workspace";
  check_y(op, x, out);
  return open(op, x, bound_conv, &out, torch_executor().threads).workspace_bytes;
}

void conv_bn_act_bound_out_op(Tensor x, Tensor bound_conv, MaybeTensor residual, Tensor out, Tensor workspace) {
  const char* op = "conv_bn_act_bound_out";
  check_y(op, x, out);
  check_blob(op, "workspace", "bytes", workspace);
  const Executor executor = torch_executor();
  ConvPlan plan = open(op, x, bound_conv, &out, executor.threads);
  set_residual(op, &plan, x, residual);
  const ConvShape& shape = plan.args.shape;
  check_out(out, x.scalar_type(), {shape.n, shape.k, shape.p(), shape.q()}, op);
  for (int64_t i = 0; i < 4; ++i) plan.args.y_stride[i] = out.stride(i);
  plan.args.y = out.mutable_data_ptr();
  run_in(plan, workspace, executor);
}

// Convolutions and squeeze-and-excitations one after the other. Where there is no bound_conv, the next four of
// `squeezes` are the weights, and the next two of `activations` their codes; `out` may be x then. Of what convolutions
// write those are wanted that are `kept`, and what the one before a squeeze or the end writes.
void conv_bn_act_chain_out_op(std::vector<Tensor> x, std::vector<MaybeTensor> bound_convs,
                              std::vector<MaybeTensor> residual, std::vector<Tensor> out, Ints kept,
                              std::vector<MaybeTensor> squeezes, Ints activations, Tensor workspace) {
  const char* op = "conv_bn_act_chain_out";
  const size_t count = bound_convs.size();
  check(count > 0, op, "bound_convs", "expected at least one, got none");
  check(residual.size() == count && kept.size() == count, op, "residual", "expected ", count,
        " of them and of kept, got ", residual.size(), " and ", kept.size());
  check(out.size() == count, op, "out", "expected ", count, " tensors, got ", out.size());
  check(x.size() == count, op, "x", "expected ", count, " tensors, got ", x.size());
  const auto gates = static_cast<size_t>(std::count(bound_convs.begin(), bound_convs.end(), std::nullopt));
  check(squeezes.size() == 4 * gates && activations.size() == 2 * gates, op, "squeezes",
        "expected 4 and 2 for each of ", gates, " without a bound_conv, got ", squeezes.size(), " and ",
        activations.size());
  check_blob(op, "workspace", "bytes", workspace);
  const Executor executor = torch_executor();
  const auto plans = std::make_unique<ConvPlan[]>(count);  // of the convolutions
  std::vector<SqueezeCall> calls;
  calls.reserve(gates);
  int64_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    check_y(op, x[i], out[i]);
    if (!bound_convs[i].has_value()) {
      const MaybeTensor* const w = &squeezes[4 * calls.size()];
      const int64_t* const codes = &activations[2 * calls.size()];
      check(w[0].has_value() && w[2].has_value(), op, "squeezes", "expected weights, got None");
      calls.emplace_back(op, false, x[i], *w[0], w[1], *w[2], w[3], codes[0], codes[1]);
      SqueezeCall& call = calls.back();
      check_out(out[i], x[i].scalar_type(), {call.args.n, call.args.c, call.args.h, call.args.w}, op);
      call.set_y(out[i]);
      bytes = std::max(bytes, call.plan.workspace_bytes);
      continue;
    }
    ConvPlan& plan = plans[i];
    plan = open(op, x[i], *bound_convs[i], &out[i], executor.threads);
    set_residual(op, &plan, x[i], residual[i]);
    const ConvShape& shape = plan.args.shape;
    check_out(out[i], x[i].scalar_type(), {shape.n, shape.k, shape.p(), shape.q()}, op);
    for (int64_t d = 0; d < 4; ++d) plan.args.y_stride[d] = out[i].stride(d);
    plan.args.y = out[i].mutable_data_ptr();
    bytes = std::max(bytes, plan.workspace_bytes);
  }
  Scratch scratch(workspace.numel() >= bytes ? 0 : bytes);
  void* const room = workspace.numel() >= bytes ? workspace.mutable_data_ptr() : scratch.data();
  size_t gate = 0;
  for (size_t i = 0; i < count;) {
    if (!bound_convs[i].has_value()) {
      calls[gate++].run(room);
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < count && bound_convs[end].has_value()) ++end;
    run_chain(plans.get() + i, kept.data() + i, static_cast<int64_t>(end - i), room, executor);
    i = end;
  }
}

Tensor linear_bound_op(Tensor x, Tensor bound_conv, MaybeTensor residual) {
  const char* op = "linear_bound";
  const MaybeTensor added = residual_rows(op, x, residual);
  const Executor executor = torch_executor();
  const Tensor rows = rows_of(op, "x", x);
  ConvPlan plan = open(op, rows, bound_conv, nullptr, executor.threads);
  const Tensor y = run(op, &plan, rows, added, executor);
  return of_rows(y, x);
}

int64_t linear_bound_workspace_op(Tensor x, Tensor bound_conv, Tensor out) {
  const char* op = "linear_bound_workspace";
  check_rows(op, "out", out, x);
  return conv_bn_act_bound_workspace_op(rows_of(op, "x", x), bound_conv, rows_of(op, "out", out));
}

void linear_bound_out_op(Tensor x, Tensor bound_conv, MaybeTensor residual, Tensor out, Tensor workspace) {
  const char* op = "linear_bound_out";
  conv_bn_act_bound_out_op(rows_of(op, "x", x), bound_conv, residual_rows(op, x, residual), out_rows(op, x, out),
                           workspace);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  define<ConvCall>(
      m, "conv_bn_act(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, {}) -> Tensor");
  m.def("conv_pack(Tensor weight, int groups, int algorithm) -> Tensor");
  define<ConvCall>(m,
                   "conv_bn_act_packed(Tensor x, Tensor packed, int[] weight_shape, Tensor? scale, Tensor? shift, "
                   "Tensor? residual, {}) -> Tensor");
  define<ConvCall>(m,
                   "conv_bind(Tensor packed, int[] weight_shape, Tensor? scale, Tensor? shift, {}, "
                   "Tensor? parameters=None) -> Tensor");
  define<ConvCall>(m,
                   "conv_pack_bound(Tensor weight, int algorithm, Tensor? scale, Tensor? shift, {}, "
                   "Tensor? parameters=None) -> Tensor");
  m.def("conv_bn_act_bound(Tensor x, Tensor bound_conv, Tensor? residual) -> Tensor");
  m.def("conv_bn_act_bound_workspace(Tensor x, Tensor bound_conv, Tensor out) -> int");
  m.def(
      "conv_bn_act_bound_out(Tensor x, Tensor bound_conv, Tensor? residual, Tensor(a!) out, Tensor(b!) workspace) -> "
      "()");
  m.def(
      "conv_bn_act_chain_out(Tensor[] x, Tensor?[] bound_convs, Tensor?[] residual, Tensor(a!)[] out, int[] kept, "
      "Tensor?[] squeezes, int[] activations, Tensor(b!) workspace) -> ()");
  m.def("linear_bound(Tensor x, Tensor bound_conv, Tensor? residual) -> Tensor");
  m.def("linear_bound_workspace(Tensor x, Tensor bound_conv, Tensor out) -> int");
  m.def("linear_bound_out(Tensor x, Tensor bound_conv, Tensor? residual, Tensor(a!) out, Tensor(b!) workspace) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("conv_bn_act", &boxed<&conv_bn_act_op>);
  m.impl("conv_pack", TORCH_BOX(&conv_pack_op));
  m.impl("conv_bn_act_packed", &boxed<&conv_bn_act_packed_op>);
  m.impl("conv_bind", &boxed<&conv_bind_op>);
  m.impl("conv_pack_bound", &boxed<&conv_pack_bound_op>);
  m.impl("conv_bn_act_bound", TORCH_BOX(&conv_bn_act_bound_op));
  m.impl("conv_bn_act_bound_workspace", TORCH_BOX(&conv_bn_act_bound_workspace_op));
  m.impl("conv_bn_act_bound_out", TORCH_BOX(&conv_bn_act_bound_out_op));
  m.impl("conv_bn_act_chain_out", TORCH_BOX(&conv_bn_act_chain_out_op));
  m.impl("linear_bound", TORCH_BOX(&linear_bound_op));
  m.impl("linear_bound_workspace", TORCH_BOX(&linear_bound_workspace_op));
  m.impl("linear_bound_out", TORCH_BOX(&linear_bound_out_op));
}

}  // namespace pk::binding
