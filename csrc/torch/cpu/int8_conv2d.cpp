// The schema of int8_conv2d: pykernels/ops/int8_conv2d says what it computes. The CUDA kernels are bound in
// csrc/torch/cuda; on a CPU it is plain PyTorch, in autograd.py there.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "int8_conv2d(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, float residual_scale, "
      "int[] stride, int[] padding, int[] dilation, int groups, int activation, float negative_slope, float y_scale, "
      "ScalarType out_dtype) -> Tensor");
}
