"""Where batch_norm_act runs."""

from pykernels.ops._op import FLOATS, Op

BATCH_NORM_ACT = Op(
    name="batch_norm_act",
    family="batch_norm_act",
    backends={
        "cpu": "it has kernels for GPUs only: on a CPU torch's own batch norm runs, except within pykernels.optimize",
        "cuda": None,
        "triton": None,
    },
    dtypes=FLOATS,
)
