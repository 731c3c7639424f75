"""What the tests, the benches, ``check``, the docs and the roofline know about an op: one `OpSpec` each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pykernels.ops._op import FAMILIES, Op

#: Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Sample:
    """One call of an op: a name for the report and what makes its arguments.

    ``make(dtype, generator)`` returns ``(args, kwargs)``; floating tensors are of ``dtype``, on the CPU, reproducible.
    """

    name: str
    make: Callable[[torch.dtype, torch.Generator], tuple[tuple[Any, ...], dict[str, Any]]]
    #: Length of the longest sum that an output element goes through: what the tolerance grows with.
    reduction: int
    #: For benches and the roofline; a sample marked ``bench`` is large enough to time.
    flops: int = 0
    bytes: int = 0
    bench: bool = False


@dataclass(frozen=True)
class OpSpec:
    """An op as the tests know it: its public function, its oracle, its samples, and how exact it is."""

    op: Op
    function: Callable[..., Any]
    reference: Callable[..., Any]
    samples: tuple[Sample, ...]
    #: Whether results are equal to the bit, without tolerance.
    exact: bool = False
    #: The share of an integer result's elements that may be off by one, where a float decides how they are rounded.
    off_by_one: float = 0.0
    #: Factor on the rounding bound for what comes on top of one sum (a recurrence, an activation's slope).
    growth: float = 1.0
    #: The same for the reference, run as a backend in the samples' own dtype.
    reference_growth: float = 1.0
    #: Whether the samples have int8 tensors, floating ones, or both.
    has_int8: bool = False
    has_floats: bool = True

    def sample_dtypes(self, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
        """The dtypes in the samples that are made for ``dtype``."""
        return (torch.int8,) * self.has_int8 + (dtype,) * self.has_floats

    @property
    def name(self) -> str:
        """The op's name."""
        return self.op.name

    def tolerance(self, dtype: torch.dtype, sample: Sample) -> float:
        """The largest relative L2 error against the float64 reference on the same (rounded) inputs."""
        return self.bound(dtype, sample.reduction)

    def bound(self, dtype: torch.dtype, reduction: int) -> float:
        """`tolerance` for a call that is not a sample, of sums up to ``reduction`` long.

        A sum of n rounded products errs by about sqrt(n) u when errors are independent (Higham, Accuracy and Stability
        of Numerical Algorithms, 2.8); inputs narrower than float32 are accumulated in float32 and rounded once.
        """
        if self.exact or not dtype.is_floating_point:
            return 0.0
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        summed = self.growth * max(reduction, 4) ** 0.5 * ROUNDOFF[accumulate]
        stored = 0.0 if dtype == accumulate else 2.0 * self.growth * ROUNDOFF[dtype]
        return summed + stored


def in_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x``, numbers of about 1, in ``dtype``: int8 is of a grid on which 1 is 50."""
    return x.to(dtype) if dtype.is_floating_point else (x * 50).round().clamp(-128, 127).to(dtype)


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """``x`` (..., C, H, W), or for some layouts a matrix, laid out otherwise; NaN (99 for integers) fills gaps."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    gap = torch.nan if x.is_floating_point() else 99
    if layout == "sliced":  # every second column of a wider tensor
        return torch.stack((x, torch.full_like(x, gap)), -1).flatten(-2)[..., ::2]
    if layout == "sliced_channels_last":  # the first channels of more
        wide = torch.cat((x, torch.full_like(x, gap)), -3)
        return wide.to(memory_format=torch.channels_last)[:, : x.shape[1]]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":  # one row of a matrix for all
        return x[:1].expand_as(x)
    return x


def all_specs() -> tuple[OpSpec, ...]:
    """Every op's spec, in the order of `pykernels.ops._op.FAMILIES`."""
    found: list[OpSpec] = []
    for family in FAMILIES:
        found.extend(importlib.import_module(f"pykernels.ops.{family}.spec").SPECS)
    return tuple(found)
