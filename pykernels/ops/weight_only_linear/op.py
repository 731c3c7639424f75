"""Where weight_only_linear runs."""

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "plain PyTorch runs there: the op has kernels for CPUs only"

WEIGHT_ONLY_LINEAR = Op(
    name="weight_only_linear",
    family="weight_only_linear",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes={"cpu": FLOATS["cpu"]},
)
