// conv_statistics on CUDA; the schema is in csrc/torch/cpu/batch_norm_act.cpp.
#include "torch/cuda/conv.h"
// conv.h first: it names torch's headers.
#include <tuple>

namespace pk::binding {
namespace {

std::tuple<Tensor, Tensor, Tensor> conv_statistics_op(Tensor x, Tensor weight, MaybeTensor bias, Geometry geometry,
                                                      bool tf32) {
  const char* op = "conv_statistics";
  const OnDevice on(op, x, "x");
  check_dim(x, 4, op, "x");
  on.check(weight, "weight");
  check_dtype(weight, x.scalar_type(), op, "weight");
  ConvArgs args;
  args.dtype = on.float_dtype(x.scalar_type(), "x");
  args.shape = conv_shape_of(op, x, sizes_of(weight, op), geometry);
  args.x = to_conv_tensor(x);
  args.tf32 = tf32;
  MaybeTensor kept_bias;
  args.shift = on.vector(bias, args.shape.k, "bias", &kept_bias);
  cuda::ConvStatisticsPlan plan;
  on.plan(args, is_channels_last(x), &plan);
  const Tensor packed = conv_packed(on, plan.conv.packing, weight);
  plan.conv.args.packed = data_of(packed);
  const Tensor z = conv_output(on, x, x.scalar_type(), &plan.conv.args);
  const Tensor mean = on.empty({args.shape.k}, ScalarType::Float), var = on.empty({args.shape.k}, ScalarType::Float);
  cuda::BatchNormStatistics statistics;
  statistics.mean = static_cast<float*>(mean.mutable_data_ptr());
  statistics.var = static_cast<float*>(var.mutable_data_ptr());
  on.run_by(plan, statistics);
  return {z, mean, var};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("conv_statistics", &boxed<&conv_statistics_op>); }

}  // namespace pk::binding
