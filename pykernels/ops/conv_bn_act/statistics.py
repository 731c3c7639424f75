"""conv_statistics: a convolution and the statistics of its output, which training's batch norm needs.

    z = conv2d(x, weight) + bias,  mean, var = those of each channel of z as it is stored

In CUDA C++ the convolution's epilogue leaves the statistics, so that z is not read for them. The gradient of z is the
convolution's; mean and var have none of their own, because batch_norm_act's gradient takes them as functions of z.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.batch_norm_act.arguments import BatchNormCall
from pykernels.ops.batch_norm_act.arguments import check_call as check_batch_norm
from pykernels.ops.conv_bn_act.arguments import Geometry, conv_call, padded, with_channels
from pykernels.ops.conv_bn_act.autograd import convolution_backward, fake_output
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT


def conv_batch_norm_act(
    x: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    momentum: float,
    eps: float,
    residual: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """Training's ``act(batch_norm(conv2d(x)) + residual)`` by the kernels: a convolution that leaves the statistics,
    and one pass over its output. ``x`` is (N, C, H, W); the other arguments are `conv_bn_act`'s (``options`` those of
    `conv_call`) and `batch_norm_act`'s, the running statistics those to update.
    """
    call = conv_call(x, conv_weight, residual, **options)
    x, conv_weight, residual = cast(autocast_dtype(x), (x, conv_weight, residual))
    x, conv_weight = with_channels(x, conv_weight, call.geometry.groups)
    ops = kernels(choose(CONV_BN_ACT, x.device, x.dtype), CONV_BN_ACT)
    z, mean, var = ops.conv_statistics(x, conv_weight, _wide(conv_bias), *call.geometry, call.tf32)
    rest = BatchNormCall(True, eps, call.activation, call.negative_slope)
    check_batch_norm(z, residual, running_mean, running_var, weight, bias, momentum, rest)
    values = z.shape[0] * z.shape[2] * z.shape[3]
    if values > 0:
        with torch.no_grad():  # as F.batch_norm moves them
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_((var * (values / (values - 1))).to(running_var.dtype), momentum)
    y, _ = ops.batch_norm_act(z, mean, var, _wide(weight), _wide(bias), residual, *rest)
    return y


def _wide(vector: torch.Tensor | None) -> torch.Tensor | None:
    return None if vector is None else vector.float()


def _on_cpu(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, *flat: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g, wide = Geometry.of(*flat[:4]), torch.promote_types(x.dtype, torch.float32)
    whole, padding = padded(x.to(wide), g)
    z = F.conv2d(whole, weight.to(wide), bias, g.stride, padding, g.dilation, g.groups)
    z = z.to(x.dtype).contiguous(memory_format=suggest_memory_format(x))
    if z.numel() == 0:
        return z, z.new_zeros(z.shape[1], dtype=wide), z.new_zeros(z.shape[1], dtype=wide)
    var, mean = torch.var_mean(z.to(wide), (0, 2, 3), correction=0)
    return z, mean, var


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: Any, *flat: Any) -> tuple[torch.Tensor, ...]:
    z = fake_output(x, weight.shape, Geometry.of(*flat[:4]))
    wide = torch.promote_types(x.dtype, torch.float32)
    return z, *(z.new_empty(z.shape[1], dtype=wide) for _ in range(2))


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """Keeps x and weight."""
    x, weight, _, *flat = inputs
    ctx.geometry = Geometry.of(*flat[:4])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight)


def backward(ctx: Any, grad_z: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    """The convolution's gradient."""
    inputs = len(ctx.needs_input_grad)
    if grad_z is None:
        return (None,) * inputs
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = grad_bias = None
    if need_x or need_weight:
        grad_x, grad_weight = convolution_backward(grad_z, x, weight, ctx.geometry, need_x, need_weight)
    if need_bias:
        grad_bias = grad_z.sum((0, 2, 3), dtype=torch.promote_types(grad_z.dtype, torch.float32))
    return grad_x, grad_weight, grad_bias, *[None] * (inputs - 3)


def _register() -> None:
    torch.library.register_fake("pykernels::conv_statistics", _fake)
    torch.library.register_autograd("pykernels::conv_statistics", backward, setup_context=setup_context)
    _library.impl("conv_statistics", _on_cpu, "CPU")


if _native.error is None:
    _library = torch.library.Library("pykernels", "FRAGMENT")
    _register()
