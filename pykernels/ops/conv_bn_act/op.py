"""Where conv_bn_act runs."""

from pykernels.ops._op import FLOATS, Op

CONV_BN_ACT = Op(
    name="conv_bn_act",
    family="conv_bn_act",
    backends={"cpu": None, "cuda": None, "triton": None},
    dtypes=FLOATS,
)
