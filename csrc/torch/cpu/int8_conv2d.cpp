// int8_conv2d: pykernels/ops/int8_conv2d says what it computes; csrc/torch/cuda has the CUDA implementation.
// int8_conv_bind: all of a convolution but x and the residual in one tensor, the weight packed; int8_conv2d_bound runs
// it, int8_conv2d_bound_out for callers who have the memory too, and int8_conv2d_chain_out several in a row.
// int8_linear_bound and int8_linear_bound_out: the same for the rows of tensors of any rank.
#include <algorithm>
#include <memory>

#include "torch/cpu/bound.h"
// bound.h first: it names torch's headers.
#include "torch/huge_pages.h"

namespace pk::binding {
namespace {

Tensor pack(const char* op, const Tensor& weight, const MaybeTensor& scale, const MaybeTensor& shift,
            const MaybeTensor& table, const Int8ConvCall& call, bool once, const Executor& executor) {
  check_cpu(weight, op, "weight");
  check_dtype(weight, ScalarType::Char, op, "weight");
  check_dim(weight, 4, op, "weight");
  Int8ConvPacking args;
  args.once = once;
  args.shape = weight_shape_of({weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, call.geometry.groups,
                               op, "weight");
  call.geometry.fill(op, &args.shape);
  call.fill(op, &args.options);
  args.weight = to_conv_tensor(weight);
  MaybeTensor keep[3];
  args.scale = per_channel(scale, args.shape.k, op, "scale", &keep[0]);
  args.bias = per_channel(shift, args.shape.k, op, "shift", &keep[1]);
  if (table.has_value()) {
    check_cpu(*table, op, "table");
    check_dtype(*table, ScalarType::Char, op, "table");
    check_shape(*table, {256}, op, "table");
    keep[2] = dense(*table);
    args.table = static_cast<const int8_t*>(data_of(*keep[2]));
  }
  Int8ConvPackingPlan plan;
  check_status(make_packing_plan(args, &plan), op);
  const Tensor packed = empty_on_huge_pages(plan.packed_bytes);
  pk::pack(plan, packed.mutable_data_ptr(), executor);
  return packed;
}

// A call of what int8_conv_bind made, but for y.
Int8ConvPlan open(const char* op, const Tensor& x, const Tensor& packed, const MaybeTensor& residual, int threads) {
  check_cpu(x, op, "x");
  check_dtype(x, ScalarType::Char, op, "x");
  check_dim(x, 4, op, "x");
  Int8ConvArgs args;
  args.n = x.size(0), args.h = x.size(2), args.w = x.size(3);
  args.x = to_conv_tensor(x);
  args.packed = packed_data(packed);
  args.packed_bytes = packed.numel();
  if (residual.has_value()) {
    check_cpu(*residual, op, "residual");
    check_dim(*residual, 4, op, "residual");
    args.residual = to_conv_tensor(*residual);
    args.residual_dtype = to_dtype(residual->scalar_type(), op, "residual");
    // Of an empty one: there is a residual all the same.
    if (args.residual.data == nullptr) args.residual.data = packed_data(*residual);
  }
  Int8ConvPlan plan;
  check_bound_status(make_plan(args, threads, &plan), op);
  const ConvShape& s = plan.shape;
  check(x.size(1) == s.c, op, "x", "expected ", s.c, " channels, got shape ", shape_of(x));
  if (residual.has_value()) check_shape(*residual, {s.n, s.k, s.p(), s.q()}, op, "residual");
  return plan;
}

void check_bound_dtype(const char* op, const char* argument, const Int8ConvPlan& plan, ScalarType dtype) {
  check(plan.options.out_dtype == to_dtype(dtype, op, argument), op, argument,
        "expected the dtype that was bound, got ", dtype_name(dtype));
}

Tensor run(const char* op, const Tensor& x, const Tensor& packed, const MaybeTensor& residual, ScalarType out_dtype) {
  const Executor executor = torch_executor();
  Int8ConvPlan plan = open(op, x, packed, residual, executor.threads);
  check_bound_dtype(op, "out_dtype", plan, out_dtype);
  const ConvShape& s = plan.shape;
  const int64_t sizes[4] = {s.n, s.k, s.p(), s.q()};
  // In x's memory format, as torch's conv2d gives.
  image_strides(sizes, is_channels_last(x), plan.args.y_stride);
  const Tensor y = empty_strided(sizes, plan.args.y_stride, 4, out_dtype);
  plan.args.y = y.mutable_data_ptr();
  pk::run(plan, Scratch(plan.workspace_bytes).data(), executor);
  return y;
}

Tensor int8_conv2d_op(Tensor x, Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor residual,
                      Int8ConvCall call) {
  const char* op = "int8_conv2d";
  const Tensor packed = pack(op, weight, scale, shift, std::nullopt, call, true, torch_executor());
  return run(op, x, packed, residual, call.out_dtype);
}

Tensor int8_conv_bind_op(Tensor weight, MaybeTensor scale, MaybeTensor shift, MaybeTensor table, Int8ConvCall call) {
  return pack("int8_conv_bind", weight, scale, shift, table, call, false, torch_executor());
}

void check_bound(const char* op, const Tensor& bound_conv) {
  check_blob(op, "bound_conv", "int8_conv_bind", bound_conv);
}

Tensor int8_conv2d_bound_op(Tensor x, Tensor bound_conv, MaybeTensor residual, ScalarType out_dtype) {
  const char* op = "int8_conv2d_bound";
  check_bound(op, bound_conv);
  return run(op, x, bound_conv, residual, out_dtype);
}

// Bytes of workspace of that call, with y in any memory format.
int64_t bound_workspace(const char* op, const Tensor& x, const Tensor& bound_conv, const Tensor& out) {
  check_bound(op, bound_conv);
  const Int8ConvPlan plan = open(op, x, bound_conv, std::nullopt, torch_executor().threads);
  check_bound_dtype(op, "out", plan, out.scalar_type());
  return plan.workspace_bytes;
}

// A call that writes to `out`.
Int8ConvPlan open_out(const char* op, const Tensor& x, const Tensor& bound_conv, const MaybeTensor& residual,
                      const Tensor& out, int threads) {
  check_bound(op, bound_conv);
  Int8ConvPlan plan = open(op, x, bound_conv, residual, threads);
  check_bound_dtype(op, "out", plan, out.scalar_type());
  const ConvShape& s = plan.shape;
  check_out(out, out.scalar_type(), {s.n, s.k, s.p(), s.q()}, op);
  for (int64_t d = 0; d < 4; ++d) plan.args.y_stride[d] = out.stride(d);
  plan.args.y = out.mutable_data_ptr();
  return plan;
}

void bound_out(const char* op, const Tensor& x, const Tensor& bound_conv, const MaybeTensor& residual,
               const Tensor& out, const Tensor& workspace) {
  check_blob(op, "workspace", "bytes", workspace);
  const Executor executor = torch_executor();
  run_in(open_out(op, x, bound_conv, residual, out, executor.threads), workspace, executor);
}

int64_t int8_conv2d_bound_workspace_op(Tensor x, Tensor bound_conv, Tensor out) {
  return bound_workspace("int8_conv2d_bound_workspace", x, bound_conv, out);
}

void int8_conv2d_bound_out_op(Tensor x, Tensor bound_conv, MaybeTensor residual, Tensor out, Tensor workspace) {
  bound_out("int8_conv2d_bound_out", x, bound_conv, residual, out, workspace);
}

// Convolutions one after the other.
void int8_conv2d_chain_out_op(std::vector<Tensor> x, std::vector<Tensor> bound_convs, std::vector<MaybeTensor> residual,
                              std::vector<Tensor> out, Tensor workspace) {
  const char* op = "int8_conv2d_chain_out";
  const size_t count = bound_convs.size();
  check(count > 0, op, "bound_convs", "expected at least one, got none");
  check(x.size() == count, op, "x", "expected ", count, " tensors, got ", x.size());
  check(residual.size() == count, op, "residual", "expected ", count, " of them, got ", residual.size());
  check(out.size() == count, op, "out", "expected ", count, " tensors, got ", out.size());
  check_blob(op, "workspace", "bytes", workspace);
  const Executor executor = torch_executor();
  const auto plans = std::make_unique<Int8ConvPlan[]>(count);
  int64_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    plans[i] = open_out(op, x[i], bound_convs[i], residual[i], out[i], executor.threads);
    bytes = std::max(bytes, plans[i].workspace_bytes);
  }
  Scratch scratch(workspace.numel() >= bytes ? 0 : bytes);
  void* const room = workspace.numel() >= bytes ? workspace.mutable_data_ptr() : scratch.data();
  for (size_t i = 0; i < count; ++i) pk::run(plans[i], room, executor);
}

Tensor int8_linear_bound_op(Tensor x, Tensor bound_conv, MaybeTensor residual, ScalarType out_dtype) {
  const char* op = "int8_linear_bound";
  check_bound(op, bound_conv);
  const MaybeTensor added = residual_rows(op, x, residual);
  return of_rows(run(op, rows_of(op, "x", x), bound_conv, added, out_dtype), x);
}

int64_t int8_linear_bound_workspace_op(Tensor x, Tensor bound_conv, Tensor out) {
  const char* op = "int8_linear_bound_workspace";
  return bound_workspace(op, rows_of(op, "x", x), bound_conv, out_rows(op, x, out));
}

void int8_linear_bound_out_op(Tensor x, Tensor bound_conv, MaybeTensor residual, Tensor out, Tensor workspace) {
  const char* op = "int8_linear_bound_out";
  const Tensor rows = out_rows(op, x, out);
  bound_out(op, rows_of(op, "x", x), bound_conv, residual_rows(op, x, residual), rows, workspace);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  define<Int8ConvCall>(
      m, "int8_conv2d(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, {}) -> Tensor");
  define<Int8ConvCall>(m, "int8_conv_bind(Tensor weight, Tensor? scale, Tensor? shift, Tensor? table, {}) -> Tensor");
  m.def("int8_conv2d_bound(Tensor x, Tensor bound_conv, Tensor? residual, ScalarType out_dtype) -> Tensor");
  m.def("int8_conv2d_bound_workspace(Tensor x, Tensor bound_conv, Tensor out) -> int");
  m.def(
      "int8_conv2d_bound_out(Tensor x, Tensor bound_conv, Tensor? residual, Tensor(a!) out, Tensor(b!) workspace) -> "
      "()");
  m.def(
      "int8_conv2d_chain_out(Tensor[] x, Tensor[] bound_convs, Tensor?[] residual, Tensor(a!)[] out, "
      "Tensor(b!) workspace) -> ()");
  m.def("int8_linear_bound(Tensor x, Tensor bound_conv, Tensor? residual, ScalarType out_dtype) -> Tensor");
  m.def("int8_linear_bound_workspace(Tensor x, Tensor bound_conv, Tensor out) -> int");
  m.def(
      "int8_linear_bound_out(Tensor x, Tensor bound_conv, Tensor? residual, Tensor(a!) out, Tensor(b!) workspace) -> "
      "()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("int8_conv2d", &boxed<&int8_conv2d_op>);
  m.impl("int8_conv_bind", &boxed<&int8_conv_bind_op>);
  m.impl("int8_conv2d_bound", TORCH_BOX(&int8_conv2d_bound_op));
  m.impl("int8_conv2d_bound_workspace", TORCH_BOX(&int8_conv2d_bound_workspace_op));
  m.impl("int8_conv2d_bound_out", TORCH_BOX(&int8_conv2d_bound_out_op));
  m.impl("int8_conv2d_chain_out", TORCH_BOX(&int8_conv2d_chain_out_op));
  m.impl("int8_linear_bound", TORCH_BOX(&int8_linear_bound_op));
  m.impl("int8_linear_bound_workspace", TORCH_BOX(&int8_linear_bound_workspace_op));
  m.impl("int8_linear_bound_out", TORCH_BOX(&int8_linear_bound_out_op));
}

}  // namespace pk::binding
