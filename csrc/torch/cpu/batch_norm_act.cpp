// Schemas of batch norm + residual + activation, and of the convolution before it: see pykernels/ops/batch_norm_act and
// pykernels/ops/conv_bn_act/statistics.py for what they compute. The CUDA kernels are in csrc/torch/cuda; on a CPU they
// are plain PyTorch, in those files.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  // Apart from batch_norm_act, for only an op that changes no argument may have a gradient.
  m.def(
      "batch_norm_statistics(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum) -> "
      "(Tensor mean, Tensor var)");
  m.def(
      "conv_statistics(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool tf32=False) -> (Tensor z, Tensor mean, Tensor var)");
  m.def(
      "batch_norm_act(Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, "
      "bool training, float eps, int activation, float negative_slope) -> (Tensor y, Tensor mask)");
  m.def(
      "batch_norm_act_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor mask, bool training, float eps, int activation, float negative_slope, "
      "bool need_residual) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
}
