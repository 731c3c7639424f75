"""int8_conv2d in plain PyTorch: the oracle of every test, and what runs where there is no kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import apply_activation
from pykernels.ops.conv_bn_act.arguments import geometry, with_channels
from pykernels.ops.int8_matmul.reference import to_int8


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
