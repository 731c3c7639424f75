"""Where squeeze_excite runs."""

from dataclasses import replace

import torch

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "torch's own ops run: the op has a kernel for CPUs only"

SQUEEZE_EXCITE = Op(
    name="squeeze_excite",
    family="squeeze_excite",
    backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU},
    dtypes=FLOATS,
)

#: Of int8 maps; its dtypes are those of the weights.
INT8_SQUEEZE_EXCITE = replace(
    SQUEEZE_EXCITE, name="int8_squeeze_excite", dtypes=dict.fromkeys(FLOATS, (torch.float32,))
)
