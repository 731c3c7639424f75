"""The spec of weight_only_linear."""

from __future__ import annotations

from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.weight_only_linear import reference, weight_only_linear
from pykernels.ops.weight_only_linear.op import WEIGHT_ONLY_LINEAR

#: Terms of the sum beside its products: the scale, the bias, and a few roundings of the activation.
ROUNDINGS = 8


def _linear(
    name: str, m: int | tuple[int, ...], n: int, k: int, *, bias: bool = True, activation: str = "none",
    scale: str = "rows", x: str = "", weight: str = "", bench: bool = False,
) -> Sample:  # fmt: skip
    """``x`` and ``weight`` are layouts."""
    rows = torch.Size((m,) if isinstance(m, int) else m)

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = lay_out(torch.randn(*rows, k, generator=generator).to(dtype), x)
        q = lay_out(torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8), weight)
        shape = {"rows": (n,), "one": (), "(n, 1)": (n, 1)}[scale]
        # The result has about unit variance.
        steps = ((0.5 + torch.rand(shape, generator=generator)) / (74 * max(k, 1) ** 0.5)).to(dtype)
        shift = torch.randn(n, generator=generator).to(dtype) if bias else None
        return (given, q, steps, shift, activation), {}

    count = rows.numel()
    moved = n * k + 4 * count * (n + k)
    return Sample(name, make, reduction=k + ROUNDINGS, flops=2 * count * n * k, bytes=moved, bench=bench)


SPEC = OpSpec(
    op=WEIGHT_ONLY_LINEAR,
    function=weight_only_linear,
    reference=reference.weight_only_linear,
    has_int8=True,
    samples=(
        _linear("one", 1, 1, 1),
        _linear("row", 1, 300, 130),
        _linear("row-of-panels", 1, 512, 256),
        _linear("vector", (), 70, 50),
        _linear("few-rows", 3, 137, 171, activation="relu"),
        _linear("rows", 7, 150, 90),
        _linear("more-rows", 13, 70, 200, scale="one"),
        _linear("many-rows", 67, 300, 140, scale="(n, 1)"),
        _linear("deep", 50, 40, 2100),
        _linear("sequences", (2, 3, 5), 33, 40),
        _linear("no-bias", 5, 65, 40, bias=False),
        _linear("sliced", 6, 70, 31, x="sliced", weight="sliced"),
        _linear("transposed", 20, 30, 40, x="transposed", weight="transposed"),
        _linear("expanded", 20, 30, 40, x="expanded"),
        _linear("no-rows", 0, 5, 7),
        _linear("no-columns", 5, 0, 7),
        _linear("no-terms", 5, 7, 0),
        *(_linear(activation, 3, 70, 50, activation=activation) for activation in ACTIVATIONS),
        _linear("1x4096x4096", 1, 4096, 4096, bench=True),
        _linear("16x4096x4096", 16, 4096, 4096, bench=True),
        _linear("256x1024x1024", 256, 1024, 1024, bench=True),
    ),
    # x and the bias are rounded once, the scale is, and the activation's slope is at most 1.5 (hardswish).
    growth=1.5,
)

SPECS: tuple[OpSpec, ...] = (SPEC,)
