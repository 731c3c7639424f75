"""Where the shuffles run."""

from pykernels.ops._op import FLOATS_AND_INT8, Op

_NO_GPU = "torch's own op runs: the op has kernels for CPUs only"

CHANNEL_SHUFFLE, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE = (
    Op(name=name, family="shuffle", backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU}, dtypes=FLOATS_AND_INT8)
    for name in ("channel_shuffle", "pixel_shuffle", "pixel_unshuffle")
)
