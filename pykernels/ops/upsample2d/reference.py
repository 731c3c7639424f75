"""upsample2d in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels.ops.upsample2d.arguments import CORNERS, UpsampleCall

aten = torch.ops.aten


def reference(x: Tensor, call: UpsampleCall) -> Tensor:
    """`pykernels.ops.upsample2d` of an image (N, C, H, W), on any device, of any floating dtype or int8."""
    if x.dtype == torch.int8:
        y = _bilinear_of_int8(x, call) if call.mode > 1 else reference(x.float(), call).to(torch.int8)
        return y.contiguous(memory_format=suggest_memory_format(x))
    scales = [scale or None for scale in call.scales]
    if call.mode == 0:
        return aten.upsample_nearest2d.default(x, call.size, *scales)
    if call.mode == 1:
        return aten._upsample_nearest_exact2d.default(x, call.size, *scales)
    return aten.upsample_bilinear2d.default(x, call.size, call.mode == CORNERS, *scales)


def _taps(call: UpsampleCall, axis: int, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each pixel along an axis of ``n``: the two around it, and their weights, from float64 rounded once."""
    out, scale = call.size[axis], call.scales[axis]
    i = torch.arange(out, device=device, dtype=torch.float64)
    if out == n:
        at = i
    elif call.mode == CORNERS:
        at = (n - 1) * i / (out - 1) if out > 1 else i
    elif scale:
        at = (i + 0.5) / scale - 0.5
    else:
        at = ((2 * i + 1) * n - out) / (2 * out)
    at = at.clamp(min=0)
    first = at.floor().clamp(max=n - 1)
    share = (at - first).clamp(max=1)
    second = first if out == n else (first + 1).clamp(max=n - 1)
    return first.long(), second.long(), (1 - share).float(), share.float()


def _bilinear_of_int8(x: Tensor, call: UpsampleCall) -> Tensor:
    """Along the columns first, each operation rounded to float32."""
    above, below, of_above, of_below = _taps(call, 0, x.shape[2], x.device)
    left, right, of_left, of_right = _taps(call, 1, x.shape[3], x.device)
    x = x.float()
    x = x[..., left] * of_left + x[..., right] * of_right
    y = x[:, :, above] * of_above[:, None] + x[:, :, below] * of_below[:, None]
    return y.round().to(torch.int8)


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
