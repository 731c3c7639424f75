"""The spec of group_norm_act: samples that cover the contract, and layers of real networks to time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.group_norm_act import group_norm_act
from pykernels.ops.group_norm_act.op import GROUP_NORM_ACT


def _norm(
    name: str,
    shape: tuple[int, ...],
    groups: int,
    *,
    affine: bool = True,
    residual: bool = False,
    layout: str = "channels_last",
    activation: str = "relu",
    bench: bool = False,
) -> Sample:
    """A sample of group_norm_act."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def vector() -> torch.Tensor:
            return normal(shape[1]).to(torch.promote_types(dtype, torch.float32))

        x = lay_out((2 * normal(*shape) + 0.5).to(dtype), layout)
        options: dict[str, Any] = {"activation": activation, "negative_slope": 0.2}
        if affine:
            options |= {"weight": 1 + 0.25 * vector(), "bias": vector()}
        if residual:
            options["residual"] = lay_out(normal(*shape).to(dtype), layout)
        return (x, groups), options

    elements = math.prod(shape)
    reduction = elements // max(shape[0] * groups, 1) + 4
    size = 4 * elements * (2 + residual)
    return Sample(name, make, reduction=reduction, flops=8 * elements, bytes=size, bench=bench)


GROUP_NORM_ACT_SPEC = OpSpec(
    op=GROUP_NORM_ACT,
    function=group_norm_act,
    reference=partial(group_norm_act, backend="reference"),
    samples=(
        _norm("channels-last", (3, 24, 7, 5), 4),
        _norm("channels-last-residual", (3, 16, 9, 9), 2, residual=True),
        _norm("channels-last-odd", (2, 39, 7, 9), 3, residual=True),
        _norm("contiguous", (3, 6, 8, 8), 2, layout="contiguous"),
        _norm("contiguous-residual", (3, 6, 7, 7), 3, layout="contiguous", residual=True),
        _norm("instance", (2, 19, 20, 21), 19),
        _norm("instance-contiguous", (2, 19, 20, 21), 19, layout="contiguous"),
        _norm("one-group", (2, 12, 9, 9), 1),
        _norm("sliced", (2, 8, 6, 6), 4, layout="sliced", residual=True),
        _norm("sliced-channels", (2, 8, 6, 6), 4, layout="sliced_channels_last"),
        _norm("transposed", (2, 8, 6, 5), 2, layout="transposed"),
        _norm("matrix", (17, 9), 3, layout="contiguous"),
        _norm("sequence", (4, 9, 11), 3, layout="contiguous", residual=True),
        _norm("volume", (2, 6, 3, 4, 6), 2, layout="contiguous"),
        _norm("one-channel", (4, 1, 5, 5), 1, residual=True),
        _norm("no-weight", (3, 16, 5, 5), 4, affine=False),
        _norm("batch-0", (0, 16, 5, 5), 4, residual=True),
        *(_norm(f"{a}-residual", (3, 16, 6, 6), 4, residual=True, activation=a) for a in ACTIVATIONS),
        *(_norm(a, (3, 12, 6, 6), 2, activation=a, layout="contiguous") for a in ACTIVATIONS),
        _norm("resnet50-64-112", (1, 64, 112, 112), 32, bench=True),
        _norm("resnet50-256-56", (1, 256, 56, 56), 32, residual=True, bench=True),
        _norm("resnet50-1024-14", (1, 1024, 14, 14), 32, residual=True, bench=True),
        _norm("style-32-256", (1, 32, 256, 256), 32, bench=True),
        _norm("style-128-64-contiguous", (1, 128, 64, 64), 128, layout="contiguous", bench=True),
    ),
)

SPECS: tuple[OpSpec, ...] = (GROUP_NORM_ACT_SPEC,)
