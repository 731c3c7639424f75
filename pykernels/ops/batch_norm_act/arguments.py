"""The arguments of batch_norm_act. This module checks them, names the wrong one, and makes a `BatchNormCall`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pykernels.ops._arguments import (
    check_at_least,
    check_floating,
    check_given,
    check_like,
    check_number,
    check_shape,
    check_vector,
    fail,
)

OP = "batch_norm_act"


class BatchNormCall(NamedTuple):
    """What the kernels take besides tensors: the last arguments of ``torch.ops.pykernels.batch_norm_act``, in order."""

    training: bool
    eps: float
    #: `activation_code`'s
    activation: int
    negative_slope: float


def check_call(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    momentum: float,
    call: BatchNormCall,
) -> None:
    """Raises where the arguments do not go with the tensor ``x``, or not with each other."""
    eps = call.eps
    check_number(OP, "negative_slope", call.negative_slope)
    check_number(OP, "momentum", momentum)
    check_floating(OP, "x", x)
    if x.dim() < 2:
        fail(ValueError, OP, "x", "(N, C, ...)", f"shape {tuple(x.shape)}")
    if residual is not None:
        check_like(OP, "residual", residual, x)
        check_shape(OP, "residual", residual, x.shape, "x's shape")
    channels = x.shape[1]
    check_vector(OP, "running_mean", running_mean, channels, x)
    check_vector(OP, "running_var", running_var, channels, x)
    check_vector(OP, "weight", weight, channels, x)
    check_vector(OP, "bias", bias, channels, x)
    check_given(OP, "running_mean", running_mean, "running_var", running_var)
    check_given(OP, "running_var", running_var, "running_mean", running_mean)
    if not call.training:
        if running_mean is None:
            fail(ValueError, OP, "running_mean", "a tensor where training is False", None)
        check_at_least(OP, "eps", eps, 0)
        return
    check_number(OP, "eps", eps)
    if not eps > 0:
        fail(ValueError, OP, "eps", "a number > 0 in training", eps)
    if x.shape[0] * math.prod(x.shape[2:]) == 1:
        fail(ValueError, OP, "x", "more than 1 value per channel in training", f"shape {tuple(x.shape)}")
