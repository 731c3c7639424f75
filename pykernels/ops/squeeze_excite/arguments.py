"""The arguments of squeeze_excite. This module checks them, names the wrong one, and makes a `SqueezeCall`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._arguments import (
    check_choice,
    check_device,
    check_dtype,
    check_floating,
    check_image,
    check_like,
    check_scale,
    check_shape,
    check_tensor,
    check_zero_point,
    fail,
)

OP, INT8_OP = "squeeze_excite", "int8_squeeze_excite"
#: Of "leaky_relu", torch's own: the op has no argument for it (csrc/cpu/squeeze_excite).
NEGATIVE_SLOPE = 0.01


class Grids(NamedTuple):
    """The grids of int8 maps, as ``torch.ops.pykernels.int8_squeeze_excite`` takes them."""

    x_scale: float
    out_scale: float
    x_zero_point: int = 0
    out_zero_point: int = 0


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
    return _check(OP, x, x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate)


def check_int8_call(
    x: Any, weights: tuple[Any, Any, Any, Any], scales: tuple[Any, Any], zero_points: tuple[Any, Any], activation: str,
    gate: str,
) -> tuple[SqueezeCall, Grids]:  # fmt: skip
    """The same for int8 maps; the weights are of a floating dtype, all of the same."""
    x = check_image(INT8_OP, x, int8=True)
    check_dtype(INT8_OP, "x", x, torch.int8)
    like = check_tensor(INT8_OP, "reduce_weight", weights[0])
    check_floating(INT8_OP, "reduce_weight", like)
    check_device(INT8_OP, "reduce_weight", like, x.device)
    call = _check(INT8_OP, x, like, *weights, activation, gate)
    names = ("x", "out")
    x_scale, out_scale = (check_scale(INT8_OP, f"{n}_scale", s) for n, s in zip(names, scales, strict=True))
    x_zero, out_zero = (
        check_zero_point(INT8_OP, f"{n}_zero_point", z) for n, z in zip(names, zero_points, strict=True)
    )
    return call, Grids(x_scale, out_scale, x_zero, out_zero)


def _check(
    op: str, x: Tensor, like: Tensor, reduce_weight: Any, reduce_bias: Any, expand_weight: Any, expand_bias: Any,
    activation: str, gate: str,
) -> SqueezeCall:  # fmt: skip
    """``like`` has the dtype and the device of the weights."""
    channels = x.shape[-3]
    whose = "x's" if like is x else "reduce_weight's"
    weight = check_like(op, "reduce_weight", reduce_weight, like, whose=whose)
    if weight.dim() not in (2, 4):
        fail(ValueError, op, "reduce_weight", "(M, C) or (M, C, 1, 1)", f"shape {tuple(weight.shape)}")
    between = weight.shape[0]
    _check_matrix(op, "reduce_weight", weight, between, channels)
    _check_matrix(
        op, "expand_weight", check_like(op, "expand_weight", expand_weight, like, whose=whose), channels, between
    )
    for argument, bias, size in (("reduce_bias", reduce_bias, between), ("expand_bias", expand_bias, channels)):
        if bias is not None:
            check_shape(op, argument, check_like(op, argument, bias, like, whose=whose), (size,))
    check_choice(op, "activation", activation, ACTIVATIONS)
    check_choice(op, "gate", gate, ACTIVATIONS)
    codes = ACTIVATIONS.index(activation), ACTIVATIONS.index(gate)
    return SqueezeCall(weight, reduce_bias, expand_weight, expand_bias, *codes)


def _check_matrix(op: str, argument: str, weight: Tensor, rows: int, columns: int) -> None:
    check_shape(op, argument, weight, (rows, columns, 1, 1) if weight.dim() == 4 else (rows, columns))
