"""Where batch_norm_act runs."""

from pykernels.ops._op import FLOATS, Op

BATCH_NORM_ACT = Op(
    name="batch_norm_act",
    family="batch_norm_act",
    backends={
        "cpu": "its kernels are for GPUs alone: on a CPU torch's own batch norm runs, but within pykernels.optimize",
        "cuda": None,
        "triton": None,
    },
    dtypes=FLOATS,
)
