"""int8_conv2d in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.conv_bn_act.arguments import padded
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    call: Int8ConvCall,
) -> torch.Tensor:
    """`pykernels.ops.int8_conv2d` of arguments that have been checked, on any device.

    The sums are taken in float64, which is exact up to 2^53.
    """
    g, out_dtype = call.geometry, call.out_dtype
    layout = suggest_memory_format(x) if x.dim() == 4 else torch.contiguous_format
    x, padding = padded(x.double() - call.x_zero_point, g)
    y = F.conv2d(x, weight.double(), None, g.stride, padding, g.dilation, g.groups)
    y += 0.0  # a sum of integers has no negative zero
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
            y = y + call.residual_scale * (residual.to(wide) - call.residual_zero_point)
        y = apply_activation(y, ACTIVATIONS[call.activation], call.negative_slope) * call.out_scale
    y = _quantized(y, call.out_zero_point) if out_dtype == torch.int8 else y.to(out_dtype)
    return y.contiguous(memory_format=layout)


def _quantized(y: torch.Tensor, zero_point: int) -> torch.Tensor:
    """To nearest even, then by the zero point, then saturated; NaN as 0."""
    return (torch.where(y.isnan(), 0, y).round() + zero_point).clamp(-128, 127).to(torch.int8)
