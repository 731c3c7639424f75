"""The arguments of layer_norm. This module checks them, names the wrong one, and makes a `LayerNormCall`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pykernels.ops._arguments import check_at_least, check_floating, check_like, check_shape, fail

OP = "layer_norm"


class LayerNormCall(NamedTuple):
    """What the kernels take besides tensors; as float64 numbers it is what ``layer_norm_out`` takes."""

    #: How many dimensions are normalised over, the last ones; 0: the channels of (N, C, ...)
    dims: int
    eps: float


def check_call(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    channels_first: bool,
) -> LayerNormCall:
    """The call, where the arguments go with the tensor ``x``; raises where they do not."""
    check_at_least(OP, "eps", eps, 0)
    check_floating(OP, "x", x)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not all(isinstance(n, int) for n in shape):
        fail(TypeError, OP, "normalized_shape", "an int or ints", repr(normalized_shape))
    shape = tuple(shape)
    if channels_first:
        if x.dim() < 2:
            fail(ValueError, OP, "x", "(N, C, ...), because of channels_first", f"shape {tuple(x.shape)}")
        if shape != (x.shape[1],):
            fail(ValueError, OP, "normalized_shape", f"the {x.shape[1]} channels", shape)
    elif not shape or len(shape) > x.dim() or shape != tuple(x.shape[x.dim() - len(shape) :]):
        fail(ValueError, OP, "normalized_shape", f"the last sizes of x's shape {tuple(x.shape)}", shape)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            check_like(OP, name, value, x, any_float=True)
            check_shape(OP, name, value, shape)
    return LayerNormCall(0 if channels_first else len(shape), eps)
