// conv_statistics on CUDA; the schema is in csrc/torch/batch_norm.cpp.
#include "torch/cuda/checks.h"
// checks.h first: it names torch's headers.
#include <tuple>

#include "pykernels/cuda/conv_bn_act.h"
#include "torch/conv_bn_act.h"

namespace pk::binding {
namespace {

std::tuple<Tensor, Tensor, Tensor> conv_statistics_op(Tensor x, Tensor weight, MaybeTensor bias, Ints stride,
                                                      Ints padding, Ints dilation, int64_t groups, bool tf32) {
  const char* op = "conv_statistics";
  const OnDevice on(op, x, "x");
  check_dim(x, 4, op, "x");
  check_dim(weight, 4, op, "weight");
  on.check(weight, "weight");
  check_dtype(weight, x.scalar_type(), op, "weight");
  const Ints weight_shape = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  ConvArgs args;
  args.dtype = to_cuda_float(x.scalar_type(), op, "x");
  args.shape = conv_shape_of(op, x, weight_shape, stride, padding, dilation, groups);
  args.tf32 = tf32;
  const ConvShape& shape = args.shape;
  int64_t size[2];
  check_status(cuda::conv_packed_size(shape, args.dtype, size), op);
  MaybeTensor kept_bias;
  args.shift = on.vector(bias, shape.k, "bias", &kept_bias);
  const Tensor packed = on.empty({size[0], size[1]}, x.scalar_type());
  check_status(cuda::conv_pack(shape, args.dtype, to_conv_tensor(weight), packed.mutable_data_ptr(), on.stream()), op);
  args.packed = data_of(packed);
  args.packed_bytes = packed.numel() * static_cast<int64_t>(size_of(args.dtype));
  args.x = to_conv_tensor(x);
  // x's memory format, as torch's conv2d gives.
  const Tensor z = on.empty({shape.n, shape.k, shape.p(), shape.q()}, x.scalar_type(),
                            is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  args.y = z.mutable_data_ptr();
  for (int64_t i = 0; i < 4; ++i) args.y_stride[i] = z.stride(i);
  const Tensor mean = on.empty({shape.k}, ScalarType::Float), var = on.empty({shape.k}, ScalarType::Float);
  cuda::BatchNormStatistics statistics;
  statistics.mean = static_cast<float*>(mean.mutable_data_ptr());
  statistics.var = static_cast<float*>(var.mutable_data_ptr());
  int64_t bytes = 0;
  check_status(cuda::conv_statistics_workspace_bytes(args, &bytes), op);
  const Tensor workspace = on.workspace(static_cast<size_t>(bytes));
  args.workspace = workspace.mutable_data_ptr();
  args.workspace_bytes = bytes;
  check_status(cuda::conv_statistics(args, statistics, on.stream()), op);
  return {z, mean, var};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pykernels, CUDA, m) { m.impl("conv_statistics", TORCH_BOX(&conv_statistics_op)); }

}  // namespace pk::binding
