"""The int8 ops in plain PyTorch. Every test compares with them, and they run where there is no kernel."""

from __future__ import annotations

from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.int8_matmul.arguments import Epilogue


def int8_matmul_reference(a: torch.Tensor, b: torch.Tensor, *, activation: str = "none", **given: Any) -> torch.Tensor:
    """`pykernels.ops.int8_matmul` on any device; ``given`` are the rest of `Epilogue`, and nothing is checked."""
    return reference(a, b, Epilogue(activation=ACTIVATIONS.index(activation), **given))


def reference(a: torch.Tensor, b: torch.Tensor, call: Epilogue) -> torch.Tensor:
    """The same, differentiable in the scales and the bias.

    The sums are taken in float64, which is exact up to 2^53; so it needs nothing of the device but a matmul.
    """
    left = a.double()
    if call.a_zero_point is not None:
        left = left - call.a_zero_point.reshape(-1, 1).double()
    return epilogue((left @ b.double()).to(torch.int32), call)


def epilogue(sums: torch.Tensor, call: Epilogue) -> torch.Tensor:
    """From the int32 sums to the output; in float32, or in float64 if a scale or the bias is."""
    if call.out_dtype == torch.int32:
        return sums
    wide = torch.float32
    for t in call.floats():
        wide = wide if t is None else torch.promote_types(wide, t.dtype)
    y = sums.to(wide)
    if call.a_scale is not None:
        y = y * call.a_scale.reshape(-1, 1).to(wide)
    if call.b_scale is not None:
        y = y * call.b_scale.reshape(1, -1).to(wide)
    if call.bias is not None:
        y = y + call.bias.to(wide)
    y = apply_activation(y, ACTIVATIONS[call.activation])
    return to_int8(y, -128) if call.out_dtype == torch.int8 else y.to(call.out_dtype)


def to_int8(x: torch.Tensor, lowest: int) -> torch.Tensor:
    """To nearest even, saturated to [``lowest``, 127]; NaN gives 0."""
    return torch.where(x.isnan(), 0, x).round().clamp(lowest, 127).to(torch.int8)


def quantize_int8_reference(
    x: torch.Tensor, *, axis: int | None = None, symmetric: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`pykernels.ops.quantize_int8` on any device and floating dtype."""
    x = x.detach()
    v = x if x.dtype == torch.float64 else x.float()
    slices = () if axis is None else (x.shape[axis],)
    if x.numel() == 0:
        return (
            torch.zeros_like(x, dtype=torch.int8, memory_format=torch.contiguous_format),
            v.new_ones(slices),
            v.new_zeros(slices, dtype=torch.int32),
        )
    rows = v.reshape(1, -1) if axis is None else v.movedim(axis, 0).reshape(x.shape[axis], -1)
    low, high = rows.amin(1), rows.amax(1)
    if symmetric:
        # Divided by a tensor: that is rounded once, whatever a backend makes of a division by a number.
        scale = torch.maximum(-low, high) / torch.full_like(high, 127)
        scale = torch.where(scale == 0, 1, scale)
        zero_point = torch.zeros_like(scale)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        steps = torch.full_like(high, 255)
        scale = high / steps - low / steps
        good = scale.isfinite() & (scale > 0)
        zero_point = torch.where(good, (-128 - low / scale).round().clamp(-128, 127), 0)
        scale = torch.where(scale == 0, 1, scale)
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    quotient = v / scale.reshape(shape)
    rounded = torch.where(quotient.isnan(), 0, quotient).round() + zero_point.reshape(shape)
    q = rounded.clamp(-127 if symmetric else -128, 127).to(torch.int8).contiguous()
    return q, scale.reshape(slices), zero_point.reshape(slices).to(torch.int32)
