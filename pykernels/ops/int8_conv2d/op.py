"""Where int8_conv2d runs."""

from pykernels.ops._op import FLOATS, Op

INT8_CONV2D = Op(
    name="int8_conv2d",
    family="int8_conv2d",
    backends={
        "cpu": "it has kernels for GPUs only: on a CPU it runs as plain PyTorch",
        "cuda": None,
        "triton": None,
    },
    dtypes=FLOATS,
)
