"""Where what is done to each element of int8 tensors runs."""

from dataclasses import replace

import torch

from pykernels.ops._op import FLOATS, Op

_NO_GPU = "torch's own ops run: the op has kernels for CPUs only"


def _op(name: str) -> Op:
    return Op(
        name=name, family="int8_pointwise", backends={"cpu": None, "cuda": _NO_GPU, "triton": _NO_GPU}, dtypes=FLOATS
    )


#: Their dtypes are those of what is not int8.
INT8_QUANTIZE = _op("int8_quantize")
INT8_DEQUANTIZE = _op("int8_dequantize")

_INT8: dict[str, tuple[torch.dtype, ...]] = {"cpu": (torch.int8,)}
INT8_ADD = replace(_op("int8_add"), dtypes=_INT8)
INT8_LOOKUP = replace(_op("int8_lookup"), dtypes=_INT8)
INT8_AFFINE = replace(_op("int8_affine"), dtypes=_INT8)
