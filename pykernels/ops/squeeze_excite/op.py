"""Where squeeze_excite runs."""

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "torch's own ops run: there is a kernel for CPUs alone"

SQUEEZE_EXCITE = Op(
    name="squeeze_excite",
    family="squeeze_excite",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes=FLOATS,
)
