// Schemas of batch norm + residual + activation, and of the convolution before it: see pykernels/ops/batch_norm_act and
// pykernels/ops/conv_bn_act/statistics.py for what they compute. The CUDA kernels are in csrc/torch/cuda; on a CPU they
// are plain PyTorch, in those files.
//
// And the CPU's kernel, which pykernels.optimize runs: batch_norm_act_bind puts all of act(x * scale + shift +
// residual) but x and the residual into one tensor, as conv_bind does, batch_norm_act_bound computes it of tensors
// joined along their channels, and batch_norm_act_bound_out into memory that is there.
#include "torch/batch_norm_act.h"

#include <cstring>

#include "common/rounding.h"
#include "pykernels/batch_norm_act.h"
#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

// What batch_norm_act_bind makes. Behind the header come scale and shift, each (channels,) or nothing, and the
// activation's own constants.
struct BoundNorm {
  static constexpr uint32_t kMagic = 0x6e4b4350;  // "PCKn"
  static constexpr uint32_t kVersion = 1;

  uint32_t magic, version;
  int64_t channels;
  Activation activation;
  float negative_slope;
  int32_t has_scale, has_shift, parameters;  // the last: rows of channels
  int32_t reserved;

  int64_t rows() const { return has_scale + has_shift + parameters; }
  int64_t bytes() const { return static_cast<int64_t>(sizeof(BoundNorm)) + 4 * channels * rows(); }
};

Tensor batch_norm_act_bind_op(int64_t channels, MaybeTensor scale, MaybeTensor shift, MaybeTensor parameters,
                              int64_t activation, double negative_slope) {
  const char* op = "batch_norm_act_bind";
  check(channels >= 0 && channels <= int64_t{1} << 31, op, "channels", "expected 0 to 2^31, got ", channels);
  BoundNorm bound = {};
  bound.magic = BoundNorm::kMagic;
  bound.version = BoundNorm::kVersion;
  bound.channels = channels;
  bound.activation = to_activation(activation, op);
  bound.negative_slope = static_cast<float>(negative_slope);
  bound.has_scale = scale.has_value();
  bound.has_shift = shift.has_value();
  const int rows = parameters_of(bound.activation);
  bound.parameters = parameters.has_value() ? rows : 0;
  check(!parameters.has_value() || rows > 0, op, "parameters",
        "expected none, because the activation has no constants");
  const Tensor result = empty({bound.bytes()}, ScalarType::Byte);
  auto* to = static_cast<char*>(result.mutable_data_ptr());
  std::memcpy(to, &bound, sizeof bound);
  to += sizeof bound;
  const auto put = [&](const MaybeTensor& t, const std::vector<int64_t>& shape, const char* argument) {
    if (!t.has_value()) return;
    check_cpu(*t, op, argument);
    check_dtype(*t, ScalarType::Float, op, argument);
    check_shape(*t, shape, op, argument);
    if (t->numel() == 0) return;
    const Tensor whole = torch::stable::contiguous(*t);
    std::memcpy(to, data_of(whole), static_cast<size_t>(4 * whole.numel()));
    to += 4 * whole.numel();
  };
  put(scale, {channels}, "scale");
  put(shift, {channels}, "shift");
  put(parameters, {rows, channels}, "parameters");
  return result;
}

// `t` of two to four dimensions as one of four.
BatchNormTensor to_four(const Tensor& t) {
  BatchNormTensor result = {data_of(t), t.size(1), {t.stride(0), t.stride(1), 0, 0}};
  for (int64_t d = t.dim(), to = 4; d-- > 2;) result.stride[--to] = t.stride(d);
  return result;
}

// A call but for y.
struct NormCall {
  std::vector<BatchNormTensor> pieces;
  std::vector<int64_t> sizes;  // y's
  BatchNormActArgs args;

  NormCall(const char* op, const std::vector<Tensor>& xs, const Tensor& bound_norm, const MaybeTensor& residual) {
    check(!xs.empty(), op, "x", "expected at least one tensor");
    const Tensor& first = xs[0];
    check(first.dim() >= 2 && first.dim() <= 4, op, "x", "expected (N, C), (N, C, L) or (N, C, H, W), got shape ",
          shape_of(first));
    sizes.assign(first.sizes().begin(), first.sizes().end());
    sizes[1] = 0;
    for (const Tensor& x : xs) {
      check_cpu(x, op, "x");
      check_dtype(x, first.scalar_type(), op, "x");
      bool alike = x.dim() == first.dim();
      for (int64_t d = 0; alike && d < x.dim(); ++d) alike = d == 1 || x.size(d) == first.size(d);
      check(alike, op, "x", "expected tensors that differ only in their channels, got shapes ", shape_of(first),
            " and ", shape_of(x));
      sizes[1] += x.size(1);
      pieces.push_back(to_four(x));
    }
    args.dtype = to_float_dtype(first.scalar_type(), op, "x");
    args.n = sizes[0];
    args.c = sizes[1];
    args.h = sizes.size() == 4 ? sizes[2] : 1;
    args.w = sizes.size() > 2 ? sizes.back() : 1;
    args.x = pieces.data();
    args.pieces = static_cast<int64_t>(pieces.size());
    bind(op, bound_norm);
    if (!residual.has_value()) return;
    check_cpu(*residual, op, "residual");
    check_dtype(*residual, first.scalar_type(), op, "residual");
    check_shape(*residual, sizes, op, "residual");
    args.residual = to_four(*residual);
  }
  NormCall(const NormCall&) = delete;  // args point into it

  void run_into(const char* op, const Tensor& y) {
    const BatchNormTensor to = to_four(y);
    std::memcpy(args.y_stride, to.stride, sizeof args.y_stride);
    args.y = y.mutable_data_ptr();
    BatchNormActPlan plan;
    check_status(make_plan(args, &plan), op);
    pk::run(plan, torch_executor());
  }

 private:
  void bind(const char* op, const Tensor& t) {
    check_cpu(t, op, "bound_norm");
    check(t.dim() == 1 && t.scalar_type() == ScalarType::Byte && t.is_contiguous(), op, "bound_norm",
          "expected the contiguous 1-D torch.uint8 tensor of batch_norm_act_bind, got ", dtype_name(t.scalar_type()),
          " of shape ", shape_of(t));
    const auto* const blob = static_cast<const char*>(data_of(t));
    BoundNorm bound;
    check(t.numel() >= static_cast<int64_t>(sizeof bound), op, "bound_norm",
          "expected what batch_norm_act_bind makes, got ", t.numel(), " bytes");
    std::memcpy(&bound, blob, sizeof bound);
    check(bound.magic == BoundNorm::kMagic && bound.version == BoundNorm::kVersion, op, "bound_norm",
          "expected what batch_norm_act_bind of this version of pykernels makes, got other bytes");
    check(bound.channels == args.c, op, "x", "expected ", bound.channels, " channels, got ", args.c);
    const auto flag = [](int32_t x) { return x == 0 || x == 1; };
    const bool whole = flag(bound.has_scale) && flag(bound.has_shift) &&
                       (bound.parameters == 0 || bound.parameters == parameters_of(bound.activation));
    check(whole && bound.bytes() == t.numel(), op, "bound_norm", "expected what batch_norm_act_bind makes, got a part");
    const auto* row = reinterpret_cast<const float*>(blob + sizeof bound);
    if (bound.has_scale) args.scale = row, row += args.c;
    if (bound.has_shift) args.shift = row, row += args.c;
    if (bound.parameters) args.parameters = row;
    args.activation = bound.activation;  // the plan checks it
    args.negative_slope = bound.negative_slope;
  }
};

// y's memory format is that of the first x, as torch's batch_norm gives.
Tensor batch_norm_act_bound_op(std::vector<Tensor> x, Tensor bound_norm, MaybeTensor residual) {
  const char* op = "batch_norm_act_bound";
  NormCall call(op, x, bound_norm, residual);
  const std::vector<int64_t>& sizes = call.sizes;
  // From the innermost dimension on.
  const int64_t orders[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  int64_t strides[4] = {}, step = 1;
  for (const int64_t d : orders[sizes.size() == 4 && is_channels_last(x[0])]) {
    if (d >= static_cast<int64_t>(sizes.size())) continue;
    strides[d] = step;
    step *= sizes[static_cast<size_t>(d)] > 1 ? sizes[static_cast<size_t>(d)] : 1;
  }
  const Tensor y = empty_strided(sizes.data(), strides, sizes.size(), x[0].scalar_type());
  call.run_into(op, y);
  return y;
}

void batch_norm_act_bound_out_op(std::vector<Tensor> x, Tensor bound_norm, MaybeTensor residual, Tensor out) {
  const char* op = "batch_norm_act_bound_out";
  NormCall call(op, x, bound_norm, residual);
  check_out(out, x[0].scalar_type(), call.sizes, op);
  call.run_into(op, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  // Apart from batch_norm_act, for only an op that changes no argument may have a gradient.
  m.def(
      "batch_norm_statistics(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum) -> "
      "(Tensor mean, Tensor var)");
  define<Geometry>(m,
                   "conv_statistics(Tensor x, Tensor weight, Tensor? bias, {}, bool tf32=False) -> "
                   "(Tensor z, Tensor mean, Tensor var)");
  define<BatchNormCall>(m,
                        "batch_norm_act(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
                        "Tensor? residual, {}) -> (Tensor y, Tensor mask)");
  define<BatchNormCall>(
      m,
      "batch_norm_act_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor mask, {}, bool need_residual) -> "
      "(Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "batch_norm_act_bind(int channels, Tensor? scale, Tensor? shift, Tensor? parameters, int activation, "
      "float negative_slope) -> Tensor");
  m.def("batch_norm_act_bound(Tensor[] x, Tensor bound_norm, Tensor? residual) -> Tensor");
  m.def("batch_norm_act_bound_out(Tensor[] x, Tensor bound_norm, Tensor? residual, Tensor(a!) out) -> ()");
}

// It may be called without a tensor.
STABLE_TORCH_LIBRARY_IMPL(pykernels, CompositeExplicitAutograd, m) {
  m.impl("batch_norm_act_bind", TORCH_BOX(&batch_norm_act_bind_op));
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("batch_norm_act_bound", TORCH_BOX(&batch_norm_act_bound_op));
  m.impl("batch_norm_act_bound_out", TORCH_BOX(&batch_norm_act_bound_out_op));
}

}  // namespace pk::binding
