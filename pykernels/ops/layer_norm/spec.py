"""The spec of layer_norm: samples that cover the contract, and layers of real networks to time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.layer_norm import layer_norm
from pykernels.ops.layer_norm.op import LAYER_NORM


def _norm(
    name: str,
    shape: tuple[int, ...],
    dims: int = 1,
    *,
    affine: bool = True,
    layout: str = "contiguous",
    bench: bool = False,
) -> Sample:
    """A sample of layer_norm over the last ``dims`` dimensions; over the channels if 0."""
    over = shape[len(shape) - dims :] if dims else shape[1:2]

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = lay_out((2 * normal(*shape) + 0.5).to(dtype), layout)
        options: dict[str, Any] = {"channels_first": not dims}
        if affine:
            options |= {"weight": (1 + 0.25 * normal(*over)).to(dtype), "bias": normal(*over).to(dtype)}
        return (x, over), options

    elements = math.prod(shape)
    return Sample(name, make, reduction=math.prod(over) + 4, flops=8 * elements, bytes=8 * elements, bench=bench)


LAYER_NORM_SPEC = OpSpec(
    op=LAYER_NORM,
    function=layer_norm,
    reference=partial(layer_norm, backend="reference"),
    samples=(
        *(_norm(f"rows-{c}", (5, c)) for c in (1, 3, 8, 16, 31, 64, 96, 100, 2000)),
        _norm("sequence", (2, 7, 48)),
        _norm("vector", (40,)),
        _norm("image", (2, 6, 5, 24)),
        _norm("two-dimensions", (3, 4, 6, 10), 2),
        _norm("all-dimensions", (3, 4, 5), 3),
        _norm("no-weight", (4, 33), affine=False),
        _norm("transposed", (9, 20), layout="transposed"),
        _norm("sliced", (2, 8, 6, 6), layout="sliced"),
        _norm("batch-0", (0, 7, 16)),
        _norm("channels-last", (2, 24, 7, 5), 0, layout="channels_last"),
        _norm("channels-last-odd", (2, 39, 3, 9), 0, layout="channels_last", affine=False),
        _norm("channels-contiguous", (2, 24, 11, 13), 0),
        _norm("channels-contiguous-odd", (3, 100, 5, 3), 0, affine=False),
        _norm("channels-sliced", (2, 8, 6, 6), 0, layout="sliced"),
        _norm("channels-sliced-last", (2, 8, 6, 6), 0, layout="sliced_channels_last"),
        _norm("channels-transposed", (2, 8, 6, 5), 0, layout="transposed"),
        _norm("channels-of-a-sequence", (3, 12, 17), 0),
        _norm("channels-of-a-volume", (2, 6, 3, 4, 6), 0),
        _norm("channels-of-a-matrix", (5, 18), 0),
        _norm("channels-batch-0", (0, 16, 5, 5), 0),
        _norm("convnext-96-56", (1, 96, 56, 56), 0, layout="channels_last", bench=True),
        _norm("convnext-768-7", (1, 768, 7, 7), 0, layout="channels_last", bench=True),
        _norm("convnext-96-56-contiguous", (1, 96, 56, 56), 0, bench=True),
        _norm("vit-197-192", (1, 197, 192), bench=True),
        _norm("vit-197-768", (1, 197, 768), bench=True),
    ),
)

SPECS: tuple[OpSpec, ...] = (LAYER_NORM_SPEC,)
