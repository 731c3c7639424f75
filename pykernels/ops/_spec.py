"""What the tests, the benches, ``check``, the docs and the roofline know of an op: one `OpSpec` each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

#: What the kernels of a backend take, where an op has no reason for less. The CPU ones have no float16.
FLOATS: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}

#: The op families, in the order of every table.
FAMILIES = ("conv_bn_act", "lstm", "int8_matmul")


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
    """One op: its name, its public function, its oracle, where it runs, and how exact it is."""

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    samples: tuple[Sample, ...]
    #: Backend -> None where it is built, or the reason why it is not.
    backends: dict[str, str | None]
    #: Backend -> the dtypes of its kernels. Use `takes`, which knows the reference too.
    dtypes: dict[str, tuple[torch.dtype, ...]]
    #: True: equal to the bit, no tolerance.
    exact: bool = False
    #: Factor on the rounding bound for what comes on top of one sum (a recurrence, an activation's slope).
    growth: float = 1.0

    def takes(self, backend: str) -> tuple[torch.dtype, ...]:
        """The dtypes to run on a backend: those of its kernels; the reference, which takes any, has all of them."""
        if backend == "reference":
            return tuple(dict.fromkeys(dtype for dtypes in self.dtypes.values() for dtype in dtypes))
        return self.dtypes.get(backend, ())

    def tolerance(self, dtype: torch.dtype, sample: Sample) -> float:
        """The largest relative L2 error against the float64 reference on the same (rounded) inputs.

        A sum of n rounded products errs by about sqrt(n) u when errors are independent (Higham, Accuracy and Stability
        of Numerical Algorithms, 2.8); inputs narrower than float32 are accumulated in float32 and rounded once.
        """
        if self.exact:
            return 0.0
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        summed = self.growth * max(sample.reduction, 4) ** 0.5 * ROUNDOFF[accumulate]
        stored = 0.0 if dtype == accumulate else 2.0 * self.growth * ROUNDOFF[dtype]
        return summed + stored


def all_specs() -> tuple[OpSpec, ...]:
    """Every op's spec, in the order of `FAMILIES`."""
    found: list[OpSpec] = []
    for family in FAMILIES:
        found.extend(importlib.import_module(f"pykernels.ops.{family}.spec").SPECS)
    return tuple(found)
