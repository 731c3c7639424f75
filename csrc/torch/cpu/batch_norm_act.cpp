// Schemas of batch norm + residual + activation, and of the convolution before it: see pykernels/ops/batch_norm_act and
// pykernels/ops/conv_bn_act/statistics.py for what they compute. The CUDA kernels are in csrc/torch/cuda; on a CPU they
// are plain PyTorch, in those files.
#include "torch/batch_norm_act.h"

#include "torch/conv_bn_act.h"

namespace pk::binding {

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
}

}  // namespace pk::binding
