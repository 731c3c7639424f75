"""Where layer_norm runs."""

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "torch's own layer norm runs: the op has kernels for CPUs only"

LAYER_NORM = Op(
    name="layer_norm",
    family="layer_norm",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes=FLOATS,
)
