"""Where batch_norm_act runs."""

from pykernels.ops._op import FLOATS, Op

BATCH_NORM_ACT = Op(
    name="batch_norm_act",
    family="batch_norm_act",
    backends={
        "cpu": "on a CPU torch's own batch norm runs; the kernel there is for inference in pykernels.optimize alone",
        "cuda": None,
        "triton": None,
    },
    dtypes=FLOATS,
)
