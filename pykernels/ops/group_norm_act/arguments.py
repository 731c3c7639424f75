"""The arguments of group_norm_act. This module checks them, names the wrong one, and makes a `GroupNormCall`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pykernels.ops._arguments import (
    check_at_least,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_shape,
    check_vector,
    fail,
)

OP = "group_norm_act"


class GroupNormCall(NamedTuple):
    """What the kernels take besides tensors; as float64 numbers it is what ``group_norm_act_out`` takes."""

    #: 0, which only the native op takes: one for each channel
    groups: int
    eps: float
    #: `activation_code`'s
    activation: int
    negative_slope: float


def check_call(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: GroupNormCall
) -> None:
    """Raises where the arguments do not go with the tensor ``x``."""
    check_int(OP, "groups", call.groups, 1)
    check_at_least(OP, "eps", call.eps, 0)
    check_number(OP, "negative_slope", call.negative_slope)
    check_floating(OP, "x", x)
    if x.dim() < 2:
        fail(ValueError, OP, "x", "(N, C, ...)", f"shape {tuple(x.shape)}")
    channels = x.shape[1]
    if channels % call.groups:
        fail(ValueError, OP, "groups", f"a divisor of the {channels} channels", call.groups)
    check_vector(OP, "weight", weight, channels, x)
    check_vector(OP, "bias", bias, channels, x)
    if residual is not None:
        check_like(OP, "residual", residual, x)
        check_shape(OP, "residual", residual, x.shape, "x's shape")
