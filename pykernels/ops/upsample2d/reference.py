"""upsample2d in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.ops.upsample2d.arguments import CORNERS, UpsampleCall

aten = torch.ops.aten


def reference(x: Tensor, call: UpsampleCall) -> Tensor:
    """`pykernels.ops.upsample2d` of an image (N, C, H, W), on any device, of any floating dtype."""
    scales = [scale or None for scale in call.scales]
    if call.mode == 0:
        return aten.upsample_nearest2d.default(x, call.size, *scales)
    if call.mode == 1:
        return aten._upsample_nearest_exact2d.default(x, call.size, *scales)
    return aten.upsample_bilinear2d.default(x, call.size, call.mode == CORNERS, *scales)


def backward(grad_y: Tensor, shape: torch.Size, call: UpsampleCall) -> Tensor:
    """The gradient of an image of ``shape``."""
    scales = [scale or None for scale in call.scales]
    if call.mode == 0:
        return aten.upsample_nearest2d_backward.default(grad_y, call.size, shape, *scales)
    if call.mode == 1:
        return aten._upsample_nearest_exact2d_backward.default(grad_y, call.size, shape, *scales)
    if not all(isinstance(n, int) for n in (*shape, *call.size)):
        return _symbolic_backward(grad_y, shape, call)
    return aten.upsample_bilinear2d_backward.default(grad_y, call.size, shape, call.mode == CORNERS, *scales)


def _symbolic_backward(grad_y: Tensor, shape: torch.Size, call: UpsampleCall) -> Tensor:
    """The gradient for sizes of a trace, which torch's op does not take: a product with the weights on either side."""
    wide = grad_y.to(torch.promote_types(grad_y.dtype, torch.float32))

    def weights(n: int, grown: int, scale: float) -> Tensor:
        eye = torch.eye(n, dtype=wide.dtype, device=wide.device)[None, None]
        return reference(eye, UpsampleCall((grown, n), (scale, 0.0), call.mode))

    (rows, columns), (p, q) = shape[2:], call.size
    scale_h, scale_w = call.scales
    return (weights(rows, p, scale_h).mT @ wide @ weights(columns, q, scale_w)).to(grad_y.dtype)
