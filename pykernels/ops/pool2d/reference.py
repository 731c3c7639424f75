"""The pools in plain PyTorch. Every test compares with them, and they run where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels.ops.int8_pointwise.reference import rounded
from pykernels.ops.pool2d.arguments import PoolCall


def reference(x: Tensor, call: PoolCall) -> Tensor:
    """A pool of arguments that have been checked, on any device, of any floating dtype or int8."""
    if x.dtype == torch.int8:
        return _of_int8(x, call)
    if call.kernel_size == (0, 0):
        return F.adaptive_avg_pool2d(x, 1)
    if call.average:
        divisor = call.divisor or None
        return F.avg_pool2d(
            x, call.kernel_size, call.stride, call.padding, call.ceil_mode, call.count_include_pad, divisor
        )
    return F.max_pool2d(x, call.kernel_size, call.stride, call.padding, call.dilation, call.ceil_mode)


def _of_int8(x: Tensor, call: PoolCall) -> Tensor:
    if call.average:
        y = rounded(_means(x, call), call.zero_point)
    else:
        y = reference(x.float(), call).clamp(min=-128).to(torch.int8)
    return y if x.dim() == 3 else y.contiguous(memory_format=suggest_memory_format(x))


def dequantized_mean(x: Tensor, scale: float, call: PoolCall) -> Tensor:
    """The means of int8 maps in float32."""
    y = _means(x, call) * scale
    return y if x.dim() == 3 else y.contiguous(memory_format=suggest_memory_format(x))


def _means(x: Tensor, call: PoolCall) -> Tensor:
    """Averages of ``x - zero_point``: of sums that are exact in float64, by one division in float32."""
    wide = x.double() - call.zero_point
    if call.kernel_size == (0, 0):
        sums, counts = wide.sum((-2, -1), keepdim=True), torch.tensor(float(x.shape[-2] * x.shape[-1]))
        return sums.float() / counts
    size, stride, padding = call.kernel_size, call.stride, call.padding
    sums = F.avg_pool2d(wide, size, stride, padding, call.ceil_mode, divisor_override=1)
    if call.divisor:
        return sums.float() / call.divisor
    # What torch divides by: the quotient of a window's sum of ones and its mean of ones.
    ones = torch.ones_like(wide[..., :1, :, :] if x.dim() == 3 else wide[:1, :1])
    inside = F.avg_pool2d(ones, size, stride, padding, call.ceil_mode, divisor_override=1)
    mean = F.avg_pool2d(ones, size, stride, padding, call.ceil_mode, call.count_include_pad)
    counts = torch.where(mean == 0, 1, inside / mean).round()
    return sums.float() / counts.float()
