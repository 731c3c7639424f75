"""conv_bn_act in plain PyTorch: the oracle of every test, and what runs where there is no kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pykernels.ops._activation import apply_activation
from pykernels.ops.conv_bn_act.arguments import geometry, with_channels


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
