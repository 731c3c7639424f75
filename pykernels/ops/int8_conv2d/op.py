"""Where int8_conv2d runs."""

from pykernels.ops._op import FLOATS, Op

INT8_CONV2D = Op(
    name="int8_conv2d",
    family="int8_conv2d",
    backends={"cpu": None, "cuda": None, "triton": None},
    dtypes=FLOATS,
)
