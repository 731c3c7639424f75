"""conv_bn_act in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.conv_bn_act.arguments import BatchNorm, ConvCall, padded


def reference(
    x: torch.Tensor, weight: torch.Tensor, norm: BatchNorm, residual: torch.Tensor | None, call: ConvCall
) -> torch.Tensor:
    """`pykernels.ops.conv_bn_act` of arguments that have been checked, and have channels.

    On any device and of any floating dtype; differentiable any number of times.

    Computed in float32 at least behind the convolution, and written out rather than by `F.batch_norm`, so that
    gradients reach the running statistics too.
    """
    g = call.geometry
    x, padding = padded(x, g)
    z = F.conv2d(x, weight, None, g.stride, padding, g.dilation, g.groups)
    return finish(z, norm, residual, call.activation, call.negative_slope)


def finish(
    z: torch.Tensor, norm: BatchNorm, residual: torch.Tensor | None, activation: int, negative_slope: float
) -> torch.Tensor:
    """What follows the convolution, in ``z``'s dtype."""
    dtype = z.dtype
    accumulate = torch.promote_types(z.dtype, torch.float32)
    z = z.to(accumulate)

    def per_channel(t: torch.Tensor) -> torch.Tensor:
        return t.to(accumulate)[:, None, None]

    if norm.bias is not None:
        z = z + per_channel(norm.bias)
    if norm.running_mean is not None and norm.running_var is not None:
        z = (z - per_channel(norm.running_mean)) * per_channel(torch.rsqrt(norm.running_var.to(accumulate) + norm.eps))
        if norm.weight is not None:
            z = z * per_channel(norm.weight)
        if norm.shift is not None:
            z = z + per_channel(norm.shift)
    if residual is not None:
        z = z + residual.to(accumulate)
    return apply_activation(z, ACTIVATIONS[activation], negative_slope).to(dtype)
