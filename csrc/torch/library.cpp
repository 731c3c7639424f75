// The pykernels op library. Each family adds its schemas and kernels as a fragment, in its own file.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pykernels, m) { (void)m; }
