"""The specs of the shuffles: samples that cover the contract, and layers of real networks to time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pykernels.ops import shuffle
from pykernels.ops._op import Op
from pykernels.ops._spec import OpSpec, Sample, in_dtype, lay_out
from pykernels.ops.shuffle.op import CHANNEL_SHUFFLE, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE

_LAYOUTS = ("contiguous", "channels_last", "sliced", "sliced_channels_last", "transposed")


def _sample(shape: tuple[int, ...], k: int, layout: str = "channels_last", *, bench: bool = False) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (lay_out(in_dtype(x, dtype), layout), k), {}

    name = f"{'x'.join(map(str, shape))}-{k}-{layout}"
    return Sample(name, make, reduction=1, bytes=8 * math.prod(shape), bench=bench)


def _spec(op: Op, function: Callable[..., Any], *samples: Sample) -> OpSpec:
    return OpSpec(
        op=op, function=function, reference=partial(function, backend="reference"), samples=samples, exact=True
    )


CHANNEL_SHUFFLE_SPEC = _spec(
    CHANNEL_SHUFFLE,
    shuffle.channel_shuffle,
    *(_sample((2, 12, 5, 7), 3, layout) for layout in _LAYOUTS),
    *(_sample((2, 148, 3, 5), k, layout) for k in (1, 2, 4, 37) for layout in _LAYOUTS[:2]),
    *(_sample((1, 256, 2, 3), k) for k in (8, 64, 128, 256)),
    *(_sample(shape, 2) for shape in ((2, 2, 1, 1), (1, 6, 1, 9), (1, 6, 9, 1))),
    _sample((0, 4, 3, 3), 2, "contiguous"),
    *(_sample((1, 116, 28, 28), 2, layout, bench=True) for layout in _LAYOUTS[:2]),
)
PIXEL_SHUFFLE_SPEC = _spec(
    PIXEL_SHUFFLE,
    shuffle.pixel_shuffle,
    *(_sample((2, 12, 5, 7), 2, layout) for layout in _LAYOUTS),
    *(_sample((2, 5 * k * k, 3, 37), k, layout) for k in (1, 2, 3, 4, 8, 9) for layout in _LAYOUTS[:2]),
    *(_sample(shape, 2) for shape in ((2, 4, 1, 1), (1, 144, 1, 9), (1, 8, 9, 1))),
    _sample((0, 4, 3, 3), 2, "contiguous"),
    *(_sample((1, 256, 64, 64), 2, layout, bench=True) for layout in _LAYOUTS[:2]),
    *(_sample((1, 48, 64, 64), 4, layout, bench=True) for layout in _LAYOUTS[:2]),
)
PIXEL_UNSHUFFLE_SPEC = _spec(
    PIXEL_UNSHUFFLE,
    shuffle.pixel_unshuffle,
    *(_sample((2, 3, 6, 8), 2, layout) for layout in _LAYOUTS),
    *(_sample((2, 5, 2 * k, 37 * k), k, layout) for k in (1, 2, 3, 4, 8, 9) for layout in _LAYOUTS[:2]),
    *(_sample(shape, 2) for shape in ((2, 1, 2, 2), (1, 36, 2, 18))),
    _sample((0, 4, 4, 4), 2, "contiguous"),
    *(_sample((1, 64, 128, 128), 2, layout, bench=True) for layout in _LAYOUTS[:2]),
)

SPECS: tuple[OpSpec, ...] = (CHANNEL_SHUFFLE_SPEC, PIXEL_SHUFFLE_SPEC, PIXEL_UNSHUFFLE_SPEC)
