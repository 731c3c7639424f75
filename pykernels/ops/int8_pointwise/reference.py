"""The ops on each element of int8 tensors in plain PyTorch. Every test compares with them, and they run where there is
no kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.int8_pointwise.arguments import AddCall, AffineCall


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


def add(a: Tensor, b: Tensor, call: AddCall) -> Tensor:
    """`pykernels.ops.int8_add` of arguments that have been checked."""
    t = dequantize(a, call.a_scale, call.a_zero_point, torch.float32)
    t = t + dequantize(b, call.b_scale, call.b_zero_point, torch.float32)
    t = apply_activation(t, ACTIVATIONS[call.activation], call.negative_slope)
    return in_format_of(quantize(t, call.out_scale, call.out_zero_point), a)


def lookup(q: Tensor, table: Tensor) -> Tensor:
    """`pykernels.ops.int8_lookup` of arguments that have been checked."""
    return in_format_of(table[q.long() + 128], q)


def affine(x: Sequence[Tensor], scale: Tensor, shift: Tensor, call: AffineCall) -> Tensor:
    """`pykernels.ops.int8_affine` of arguments that have been checked."""
    whole = torch.cat(list(x), 1)
    of_channels = (-1, *(1,) * (whole.dim() - 2))
    t = whole.float() * scale.float().view(of_channels) + shift.float().view(of_channels)
    t = apply_activation(t, ACTIVATIONS[call.activation], call.negative_slope)
    return in_format_of(quantize(t, call.out_scale, call.out_zero_point), x[0])
