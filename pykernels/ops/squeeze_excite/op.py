"""Where squeeze_excite runs."""

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "torch's own ops run: the op has a kernel for CPUs only"

SQUEEZE_EXCITE = Op(
    name="squeeze_excite",
    family="squeeze_excite",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes=FLOATS,
)
