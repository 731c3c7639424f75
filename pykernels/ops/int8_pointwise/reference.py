"""The ops on each element of int8 tensors in plain PyTorch. Every test compares with them, and they run where there is
no kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


def in_format_of(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in ``x``'s memory format, which only images have."""
    return y.contiguous(memory_format=suggest_memory_format(x) if x.dim() == 4 else torch.contiguous_format)


def rounded(t: Tensor, zero_point: int) -> Tensor:
    """int8 of ``t``, in units of the grid: to nearest even, then by the zero point, then saturated; NaN as 0."""
    return (torch.where(t.isnan(), 0, t).round() + zero_point).clamp(-128, 127).to(torch.int8)


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """`pykernels.ops.int8_quantize` of arguments that have been checked."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return in_format_of(rounded(wide * (1.0 / scale), zero_point), x)


def dequantize(q: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """`pykernels.ops.int8_dequantize` of arguments that have been checked."""
    wide = q.to(torch.promote_types(dtype, torch.float32))
    return in_format_of(((wide - zero_point) * scale).to(dtype), q)
