"""Where group_norm_act runs."""

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "torch's own group norm runs: the op has kernels for CPUs only"

GROUP_NORM_ACT = Op(
    name="group_norm_act",
    family="group_norm_act",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes=FLOATS,
)
