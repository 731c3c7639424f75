"""Linear layers with one of torchao's int8 tensors as a weight, as steps of plain tensors.

That is what ``torchao.quantization.quantize_(model, config)`` makes: a scale for each row of the weight, and with
``Int8DynamicActivationInt8WeightConfig()`` activations of which each row is rounded by its own largest magnitude as it
comes, with ``Int8WeightOnlyConfig()`` float ones. We know such a tensor by its class's name and its attributes, so that
torchao need not be there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RoundRows:
    """What a step calls that rounds each row by its largest magnitude, and gives float numbers."""

    __name__ = "fake_quantize"

    def __eq__(self, other: object) -> bool:
        return type(other) is RoundRows

    def __hash__(self) -> int:
        return hash(RoundRows)

    def __call__(self, x: Tensor) -> Tensor:
        """`rounded_rows`."""
        return rounded_rows(x)


def rounded_rows(x: Tensor) -> Tensor:
    """Rows (..., C), each on the int8 grid of its own largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x / scale).round() * scale


class KeepRows:
    """What a step calls before a layer with an int8 weight whose rows stay float."""

    __name__ = "fake_quantize"

    def __eq__(self, other: object) -> bool:
        return type(other) is KeepRows

    def __hash__(self) -> int:
        return hash(KeepRows)

    def __call__(self, x: Tensor) -> Tensor:
        """The same numbers, in a tensor of their own."""
        return x.clone()


def dequantize_rows(q: Tensor, scale: Tensor) -> Tensor:
    """The float numbers that ``q`` (K, C), int8, stands for, with scales (K, 1)."""
    return q.float() * scale


def parts_of(t: Any) -> tuple[Tensor, Tensor] | None:
    """The int8 numbers (K, C) and the scales (K, 1) of such a tensor; None if ``t`` is none, or of another kind."""
    kind = type(t)
    if kind.__name__ != "Int8Tensor" or not kind.__module__.startswith("torchao."):
        return None
    q, scale, how = (getattr(t, name, None) for name in ("qdata", "scale", "act_quant_kwargs"))
    if not isinstance(q, Tensor) or not isinstance(scale, Tensor) or not (how is None or _rounds_rows(how)):
        return None
    if any(getattr(t, name, None) is not None for name in ("act_quant_scale", "act_quant_zero_point", "act_pre_scale")):
        return None
    zeros = getattr(t, "zero_point", None)
    if zeros is not None and bool(zeros.any()):
        return None
    fits = q.dim() == 2 and q.dtype is torch.int8 and scale.shape == (q.shape[0], 1) and t.dtype is torch.float32
    return (q, scale) if fits else None


def _rounds_rows(how: Any) -> bool:
    """Are rows rounded by their largest magnitude, to all of int8?"""
    rows = type(getattr(how, "granularity", None)).__name__ == "PerRow" and how.granularity.dim in (-1, None)
    symmetric = getattr(getattr(how, "mapping_type", None), "name", "") == "SYMMETRIC"
    return rows and symmetric and not getattr(how, "reduce_range", False)


def rows_of(t: Any) -> RoundRows | KeepRows:
    """What happens to the rows that a layer with such a tensor reads."""
    return KeepRows() if t.act_quant_kwargs is None else RoundRows()


def parts_of_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Those of the weight, if it is a call of a linear layer of float32 with such a one."""
    if function is not F.linear or kwargs or len(args) not in (2, 3) or not isinstance(args[0], Tensor):
        return None
    return parts_of(args[1]) if args[0].dtype is torch.float32 else None
