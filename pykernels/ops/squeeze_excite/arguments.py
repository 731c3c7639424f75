"""The arguments of squeeze_excite. This module checks them, names the wrong one, and makes a `SqueezeCall`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._arguments import check_choice, check_image, check_like, check_shape, fail

OP = "squeeze_excite"
#: Of "leaky_relu", torch's own: the op has no argument for it (csrc/cpu/squeeze_excite).
NEGATIVE_SLOPE = 0.01


class SqueezeCall(NamedTuple):
    """What it takes besides x: the rest of ``torch.ops.pykernels.squeeze_excite``'s arguments, in order."""

    #: (M, C) or (M, C, 1, 1)
    reduce_weight: Tensor
    reduce_bias: Tensor | None
    #: (C, M) or (C, M, 1, 1)
    expand_weight: Tensor
    expand_bias: Tensor | None
    #: codes, by their places in `ACTIVATIONS`
    activation: int
    gate: int


def check_call(
    x: Any, reduce_weight: Any, reduce_bias: Any, expand_weight: Any, expand_bias: Any, activation: str, gate: str
) -> SqueezeCall:
    """The call, checked against itself and the image (N, C, H, W) or (C, H, W)."""
    x = check_image(OP, x)
    channels = x.shape[-3]
    weight = check_like(OP, "reduce_weight", reduce_weight, x)
    if weight.dim() not in (2, 4):
        fail(ValueError, OP, "reduce_weight", "(M, C) or (M, C, 1, 1)", f"shape {tuple(weight.shape)}")
    between = weight.shape[0]
    _check_matrix("reduce_weight", weight, between, channels)
    _check_matrix("expand_weight", check_like(OP, "expand_weight", expand_weight, x), channels, between)
    for argument, bias, size in (("reduce_bias", reduce_bias, between), ("expand_bias", expand_bias, channels)):
        if bias is not None:
            check_shape(OP, argument, check_like(OP, argument, bias, x), (size,))
    check_choice(OP, "activation", activation, ACTIVATIONS)
    check_choice(OP, "gate", gate, ACTIVATIONS)
    codes = ACTIVATIONS.index(activation), ACTIVATIONS.index(gate)
    return SqueezeCall(weight, reduce_bias, expand_weight, expand_bias, *codes)


def _check_matrix(argument: str, weight: Tensor, rows: int, columns: int) -> None:
    check_shape(OP, argument, weight, (rows, columns, 1, 1) if weight.dim() == 4 else (rows, columns))
