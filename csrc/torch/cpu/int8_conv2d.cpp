// The schema of int8_conv2d: pykernels/ops/int8_conv2d says what it computes. The CUDA kernels are bound in
// csrc/torch/cuda; on a CPU it is plain PyTorch, in autograd.py there.
#include "torch/conv_bn_act.h"

namespace pk::binding {

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  define<Int8ConvCall>(
      m, "int8_conv2d(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, {}) -> Tensor");
}

}  // namespace pk::binding
