"""Where upsample2d runs."""

from pykernels.ops._op import FLOATS_AND_INT8, Op

_NO_GPU = "torch's own interpolate runs: the op has kernels for CPUs only"

UPSAMPLE2D = Op(
    name="upsample2d",
    family="upsample2d",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes=FLOATS_AND_INT8,
)
