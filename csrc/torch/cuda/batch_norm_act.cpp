// batch_norm_statistics, batch_norm_act and batch_norm_act_backward on CUDA.
#include "torch/batch_norm_act.h"

#include <tuple>

#include "torch/cuda/checks.h"

namespace pk::binding {
namespace {

using MaybeTensor = std::optional<Tensor>;

// Are t's elements in this order, without gaps? Strides of sizes 1 say nothing.
bool is_dense(const Tensor& t, bool channels_last) {
  constexpr int kPlanes[] = {3, 2, 1, 0}, kLast[] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : channels_last ? kLast : kPlanes) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// One call's x, its layout, and the other tensors made to match.
class Call {
 public:
  Call(const char* op, const Tensor& x)
      : on(op, x, "x"), dtype(on.float_dtype(x.scalar_type(), "x")), op_(op), scalar_(x.scalar_type()) {
    check(x.dim() == 4, op, "x", "expected (N, C, H, W), got shape ", shape_of(x));
    sizes_ = {x.size(0), x.size(1), x.size(2), x.size(3)};
    shape = {sizes_[0], sizes_[1], sizes_[2] * sizes_[3], is_channels_last(x)};
  }

  // `t`, of x's shape and dtype, in x's layout: itself or a copy.
  Tensor like_x(const Tensor& t, const char* argument) const {
    on.check(t, argument);
    check_dtype(t, scalar_, op_, argument);
    check_shape(t, sizes_, op_, argument);
    return is_dense(t, shape.channels_last) ? t : torch::stable::contiguous(t, format());
  }
  MaybeTensor like_x(const MaybeTensor& t, const char* argument) const {
    return t ? MaybeTensor(like_x(*t, argument)) : std::nullopt;
  }
  Tensor vector(const Tensor& t, const char* argument) const {
    on.check(t, argument);
    check_dtype(t, ScalarType::Float, op_, argument);
    check_shape(t, {shape.c}, op_, argument);
    return torch::stable::contiguous(t);
  }
  MaybeTensor vector(const MaybeTensor& t, const char* argument) const {
    return t ? MaybeTensor(vector(*t, argument)) : std::nullopt;
  }
  // A vector that is written: no copy will do.
  float* running(const MaybeTensor& t, const char* argument) const {
    if (!t) return nullptr;
    on.check(*t, argument);
    check_dtype(*t, ScalarType::Float, op_, argument);
    check_shape(*t, {shape.c}, op_, argument);
    check(t->is_contiguous(), op_, argument, "expected a contiguous tensor");
    return static_cast<float*>(t->mutable_data_ptr());
  }

  Tensor empty_like_x() const { return on.empty(sizes_, scalar_, format()); }
  Tensor empty_vector() const { return on.empty({shape.c}, ScalarType::Float); }

  const OnDevice on;
  const DType dtype;
  cuda::BatchNormShape shape;

 private:
  MemoryFormat format() const { return shape.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous; }

  const char* op_;
  ScalarType scalar_;
  std::vector<int64_t> sizes_;
};

const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }
const float* floats(const MaybeTensor& t) { return static_cast<const float*>(data(t)); }
float* written(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

std::tuple<Tensor, Tensor> batch_norm_statistics_op(Tensor x, MaybeTensor running_mean, MaybeTensor running_var,
                                                    double momentum) {
  const char* op = "batch_norm_statistics";
  const Call call(op, x);
  const Tensor kept = call.like_x(x, "x");
  const Tensor mean = call.empty_vector(), var = call.empty_vector();
  const cuda::BatchNormStatistics to = {written(mean), written(var), call.running(running_mean, "running_mean"),
                                        call.running(running_var, "running_var"), static_cast<float>(momentum)};
  cuda::BatchNormStatisticsPlan plan;
  call.on.plan(call.shape, call.dtype, &plan);
  call.on.run_by(plan, kept.const_data_ptr(), to);
  return {mean, var};
}

// The arguments that forward and backward share, and the tensors behind them.
struct Shared {
  Tensor x, mean, var;
  MaybeTensor weight, bias, residual;
  cuda::BatchNormActArgs args;

  Shared(const char* op, const Call& call, const Tensor& x_, const Tensor& mean_, const Tensor& var_,
         const MaybeTensor& weight_, const MaybeTensor& bias_, const MaybeTensor& residual_,
         const BatchNormCall& options)
      : x(call.like_x(x_, "x")),
        mean(call.vector(mean_, "mean")),
        var(call.vector(var_, "var")),
        weight(call.vector(weight_, "weight")),
        bias(call.vector(bias_, "bias")),
        residual(call.like_x(residual_, "residual")) {
    args.shape = call.shape;
    args.dtype = call.dtype;
    args.x = x.const_data_ptr();
    args.residual = data(residual);
    args.mean = floats(mean);
    args.var = floats(var);
    args.weight = floats(weight);
    args.bias = floats(bias);
    options.fill(op, &args);
  }
};

std::tuple<Tensor, Tensor> batch_norm_act_op(Tensor x, Tensor mean, Tensor var, MaybeTensor weight, MaybeTensor bias,
                                             MaybeTensor residual, BatchNormCall options) {
  const char* op = "batch_norm_act";
  const Call call(op, x);
  const Shared shared(op, call, x, mean, var, weight, bias, residual, options);
  cuda::BatchNormActPlan plan;
  call.on.plan(shared.args, &plan);
  const Tensor y = call.empty_like_x(), mask = call.on.empty({plan.mask_bytes}, ScalarType::Byte);
  plan.args.y = y.mutable_data_ptr();
  if (plan.mask_bytes) plan.args.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());
  call.on.run_by(plan);
  return {y, mask};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward_op(Tensor grad_y, Tensor x, Tensor mean, Tensor var,
                                                                      MaybeTensor weight, MaybeTensor bias,
                                                                      MaybeTensor residual, Tensor mask,
                                                                      BatchNormCall options, bool need_residual) {
  const char* op = "batch_norm_act_backward";
  const Call call(op, x);
  const Shared shared(op, call, x, mean, var, weight, bias, residual, options);
  const Tensor kept = call.like_x(grad_y, "grad_y");
  cuda::BatchNormActBackwardArgs args;
  args.forward = shared.args;
  call.on.check(mask, "mask");
  check_dtype(mask, ScalarType::Byte, op, "mask");
  if (mask.numel() > 0) args.forward.mask = static_cast<uint8_t*>(mask.mutable_data_ptr());  // read only
  const Tensor grad_x = call.empty_like_x(), grad_weight = call.empty_vector(), grad_bias = call.empty_vector();
  const Tensor grad_residual = need_residual ? call.empty_like_x() : call.on.empty({0}, x.scalar_type());
  args.grad_y = kept.const_data_ptr();
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_residual = need_residual ? grad_residual.mutable_data_ptr() : nullptr;
  args.grad_weight = written(grad_weight);
  args.grad_bias = written(grad_bias);
  args.batch_statistics = options.training;
  cuda::BatchNormActBackwardPlan plan;
  call.on.plan(args, &plan);
  check(mask.numel() == 0 || (mask.dim() == 1 && mask.numel() == plan.mask_bytes && mask.is_contiguous()), op, "mask",
        "expected the ", plan.mask_bytes, " contiguous bytes of batch_norm_act, got shape ", shape_of(mask));
  call.on.run_by(plan);
  return {grad_x, grad_residual, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) {
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics_op));
  m.impl("batch_norm_act", &boxed<&batch_norm_act_op>);
  m.impl("batch_norm_act_backward", &boxed<&batch_norm_act_backward_op>);
}

}  // namespace pk::binding
