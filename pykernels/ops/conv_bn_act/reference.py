"""The family's ops in plain PyTorch: the oracle of every test, and what runs where there is no kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import apply_activation
from pykernels.ops.conv_bn_act.arguments import geometry, with_channels
from pykernels.ops.int8_matmul.reference import to_int8


def conv_bn_act_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """`pykernels.ops.conv_bn_act` on any device and floating dtype, differentiable any number of times.

    The geometry, but for "same", is left to `F.conv2d`. The rest is computed in float32 at least, and written out
    rather than by `F.batch_norm`, so that gradients reach the running statistics too.
    """
    x, weight = with_channels(x, weight, groups)
    if padding == "same":  # F.conv2d warns where the padding is asymmetric
        top, left, bottom, right = geometry(weight.shape[2:], stride, padding, dilation, groups).padding
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    accumulate = torch.promote_types(z.dtype, torch.float32)
    z = z.to(accumulate)

    def per_channel(t: torch.Tensor) -> torch.Tensor:
        return t.to(accumulate)[:, None, None]

    if bias is not None:
        z = z + per_channel(bias)
    if running_mean is not None and running_var is not None:
        z = (z - per_channel(running_mean)) * per_channel(torch.rsqrt(running_var.to(accumulate) + eps))
        if bn_weight is not None:
            z = z * per_channel(bn_weight)
        if bn_bias is not None:
            z = z + per_channel(bn_bias)
    if residual is not None:
        z = z + residual.to(accumulate)
    return apply_activation(z, activation, negative_slope).to(x.dtype)


def batch_norm_act_reference(
    x: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """`pykernels.ops.batch_norm_act` on any device and floating dtype, differentiable any number of times.

    Computed in float32 at least; the running statistics are updated in place whatever their dtype.
    """
    accumulate = torch.promote_types(x.dtype, torch.float32)

    def wide(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.to(accumulate)

    mean, var = wide(running_mean), wide(running_var)
    z = F.batch_norm(x.to(accumulate), mean, var, wide(weight), wide(bias), training, momentum, eps)
    if training:
        with torch.no_grad():
            for given, updated in ((running_mean, mean), (running_var, var)):
                if given is not None and updated is not None and given is not updated:
                    given.copy_(updated)
    if residual is not None:
        z = z + residual.to(accumulate)
    return apply_activation(z, activation, negative_slope).to(x.dtype)


def int8_conv2d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
    out_scale: float = 1.0,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`pykernels.ops.int8_conv2d` on any device. The sums are taken in float64, which is exact up to 2^53."""
    x, weight = with_channels(x, weight, groups)
    g = geometry(weight.shape[2:], stride, padding, dilation, groups)
    top, left, bottom, right = g.padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    y = F.conv2d(padded, weight.double(), None, g.stride, 0, g.dilation, groups)
    if out_dtype != torch.int32:
        wide = torch.float32
        for t in (scale, bias, residual):
            wide = torch.promote_types(wide, t.dtype) if t is not None and t.is_floating_point() else wide
        y = y.to(wide)
        if scale is not None:
            y = y * scale.to(wide).reshape(-1, 1, 1)
        if bias is not None:
            y = y + bias.to(wide)[:, None, None]
        if residual is not None:
            y = y + residual_scale * residual.to(wide)
        y = apply_activation(y, activation, negative_slope) * out_scale
    y = to_int8(y, -128) if out_dtype == torch.int8 else y.to(out_dtype)
    return y if y.dim() == 3 else y.contiguous(memory_format=suggest_memory_format(x))
