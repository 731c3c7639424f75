"""Where the ops of the conv_bn_act family run."""

from dataclasses import replace

from pykernels.ops._op import FLOATS, Op

CONV_BN_ACT = Op(
    name="conv_bn_act",
    family="conv_bn_act",
    backends={"cpu": None, "cuda": None, "triton": None},
    dtypes=FLOATS,
)
#: It runs on the kernels of `CONV_BN_ACT`.
CONV_TRANSPOSE_BN_ACT = replace(CONV_BN_ACT, name="conv_transpose_bn_act")
