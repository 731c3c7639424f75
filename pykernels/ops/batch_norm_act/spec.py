"""The spec of batch_norm_act: samples that cover the contract, and the layers of ResNet-50 to time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.batch_norm_act import batch_norm_act
from pykernels.ops.batch_norm_act.op import BATCH_NORM_ACT


def _norm(
    name: str,
    shape: tuple[int, ...],
    *,
    training: bool = True,
    running: bool = True,
    affine: bool = True,
    residual: bool = False,
    layout: str = "channels_last",
    activation: str = "relu",
    mean: float = 0.5,
    bench: bool = False,
) -> Sample:
    """A sample of batch_norm_act."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def vector() -> torch.Tensor:
            return normal(shape[1]).to(torch.promote_types(dtype, torch.float32))

        x = lay_out((2 * normal(*shape) + mean).to(dtype), layout)
        vectors: list[torch.Tensor | None] = [vector(), vector().square() + 0.5] if running else [None, None]
        vectors += [1 + 0.25 * vector(), vector()] if affine else [None, None]
        options: dict[str, Any] = {"training": training, "activation": activation, "negative_slope": 0.2}
        if residual:
            options["residual"] = lay_out(normal(*shape).to(dtype), layout)
        return (x, *vectors), options

    elements = math.prod(shape)
    return Sample(
        name,
        make,
        reduction=elements // max(shape[1], 1) + 4,
        flops=10 * elements,
        bytes=4 * elements * (2 + training + residual),
        bench=bench,
    )


_NORM = (
    _norm("channels-last", (3, 24, 7, 5)),
    _norm("channels-last-residual", (3, 16, 9, 9), residual=True),
    _norm("channels-last-odd", (2, 13, 7, 9), residual=True),
    _norm("contiguous", (3, 6, 8, 8), layout="contiguous"),
    _norm("contiguous-residual", (3, 6, 7, 7), layout="contiguous", residual=True),
    _norm("sliced", (2, 8, 6, 6), layout="sliced", residual=True),
    _norm("transposed", (2, 8, 6, 5), layout="transposed"),
    _norm("matrix", (17, 9), layout="contiguous"),
    _norm("sequence", (4, 9, 11), layout="contiguous", residual=True),
    _norm("volume", (2, 5, 3, 4, 6), layout="contiguous"),
    _norm("one-channel", (4, 1, 5, 5), residual=True),
    _norm("two-values", (2, 8, 1, 1), layout="contiguous", activation="none"),
    _norm("no-running-statistics", (3, 16, 5, 5), running=False),
    _norm("no-weight", (3, 16, 5, 5), affine=False),
    _norm("fixed-statistics", (3, 16, 5, 5), training=False, residual=True),
    _norm("batch-0", (0, 16, 5, 5), residual=True),
    *(_norm(f"{a}-residual", (3, 16, 6, 6), residual=True, activation=a) for a in ACTIVATIONS),
    *(_norm(a, (3, 11, 6, 6), activation=a, layout="contiguous") for a in ACTIVATIONS),
    _norm("resnet50-64-56-n64", (64, 64, 56, 56), bench=True),
    _norm("resnet50-256-56-n64", (64, 256, 56, 56), residual=True, bench=True),
    _norm("resnet50-1024-14-n64", (64, 1024, 14, 14), residual=True, bench=True),
    _norm("resnet50-2048-7-n64", (64, 2048, 7, 7), residual=True, bench=True),
)

batch_norm_act_reference = partial(batch_norm_act, backend="reference")

BATCH_NORM_ACT_SPEC = OpSpec(
    op=BATCH_NORM_ACT,
    function=batch_norm_act,
    reference=batch_norm_act_reference,
    samples=_NORM,
)

SPECS: tuple[OpSpec, ...] = (BATCH_NORM_ACT_SPEC,)
