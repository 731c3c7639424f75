"""Where int8_conv2d runs."""

import torch

from pykernels.ops._op import FLOATS, Op

INT8_CONV2D = Op(
    name="int8_conv2d",
    family="int8_conv2d",
    backends={"cpu": None, "cuda": None, "triton": None},
    dtypes=FLOATS,
)

#: Of a weight that is packed with its scales: x's dtypes.
INT8_CONV2D_BOUND = Op(
    name="int8_conv2d_bound",
    family="int8_conv2d",
    backends={
        "cpu": None,
        "cuda": "on GPUs a weight is packed at every call",
        "triton": "on GPUs a weight is packed at every call",
    },
    dtypes={"cpu": (torch.int8,)},
)
