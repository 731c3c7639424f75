"""Where the pools run."""

from pykernels.ops._op import FLOATS_AND_INT8, Op

_NO_GPU = "torch's own pool runs: the op has kernels for CPUs only"


def _op(name: str) -> Op:
    return Op(
        name=name, family="pool2d", backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU}, dtypes=FLOATS_AND_INT8
    )


MAX_POOL2D = _op("max_pool2d")
AVG_POOL2D = _op("avg_pool2d")
GLOBAL_AVG_POOL2D = _op("global_avg_pool2d")
