"""What PyTorch needs to know of the native group norm: shapes without data, and gradients.

With x^ = (x - mean) / sqrt(var + eps), z = x^ * weight + bias + residual, dz = grad_y act'(z) and means over a group:

    grad_residual = dz,  grad_bias = sum(dz),  grad_weight = sum(dz x^),  d = dz weight
    grad_x = (d - mean(d) - x^ mean(d x^)) / sqrt(var + eps)

in aten ops, so that it can be differentiated again. Nothing but the inputs is kept for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops._activation import ACTIVATIONS, activation_backward
from pykernels.ops.group_norm_act.arguments import GroupNormCall


def _fake(x: Tensor, weight: Any, bias: Any, residual: Any, *call: Any) -> Tensor:
    return x.new_empty(x.shape).to(memory_format=suggest_memory_format(x))


def _fake_out(x: Tensor, weight: Any, bias: Any, residual: Any, call: Tensor, out: Tensor) -> None:
    """Only writes."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, groups, eps, activation, slope = inputs
    ctx.call = GroupNormCall(groups, eps, activation, slope)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    x, weight, bias, residual = ctx.saved_tensors
    call: GroupNormCall = ctx.call
    n, c, h, w = x.shape
    groups = call.groups or c
    wide = x.to(torch.promote_types(x.dtype, torch.float32))

    def grouped(t: Tensor) -> Tensor:
        return t.reshape(n, groups, c // groups * h * w)

    def channels(t: Tensor) -> Tensor:
        return t[:, None, None]

    var, mean = torch.var_mean(grouped(wide), 2, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + call.eps)
    xhat = ((grouped(wide) - mean) * inverse).reshape(x.shape)

    def z() -> Tensor:
        made = xhat if weight is None else xhat * channels(weight)
        made = made if bias is None else made + channels(bias)
        return made if residual is None else made + residual

    name = ACTIVATIONS[call.activation]
    dz = activation_backward(grad_y.to(wide.dtype), name, call.negative_slope, None, z)
    d, normal = grouped(dz if weight is None else dz * channels(weight)), grouped(xhat)
    grad_x = (d - d.mean(2, keepdim=True) - normal * (d * normal).mean(2, keepdim=True)) * inverse
    dims = (0, 2, 3)
    need = ctx.needs_input_grad
    return (
        grad_x.reshape(x.shape).to(x.dtype) if need[0] else None,
        (dz * xhat).sum(dims) if need[1] else None,
        dz.sum(dims) if need[2] else None,
        dz.to(x.dtype) if need[3] else None,
        *[None] * len(call),
    )


def _register() -> None:
    torch.library.register_fake("pykernels::group_norm_act", _fake)
    torch.library.register_autograd("pykernels::group_norm_act", _backward, setup_context=_keep)
    torch.library.register_fake("pykernels::group_norm_act_bound", _fake)
    torch.library.register_fake("pykernels::group_norm_act_out", _fake_out)


if _native.error is None:
    _register()
