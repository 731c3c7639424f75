"""The spec of squeeze_excite: samples that cover the contract, and the layers of networks to time."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._spec import OpSpec, Sample, in_dtype, lay_out
from pykernels.ops.squeeze_excite import int8_squeeze_excite, squeeze_excite
from pykernels.ops.squeeze_excite.op import INT8_SQUEEZE_EXCITE, SQUEEZE_EXCITE


def _sample(
    name: str, shape: tuple[int, ...], between: int, activation: str = "relu", gate: str = "sigmoid", *,
    layout: str = "channels_last", bias: bool = True, filters: bool = True, bench: bool = False,
    grids: tuple[float, float, int, int] | None = None,
) -> Sample:  # fmt: skip
    """With ``grids``, of int8 maps."""
    channels = shape[-3]

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        def matrix(rows: int, columns: int) -> Tensor:
            weight = (normal(rows, columns) / math.sqrt(max(columns, 1))).to(dtype)
            return weight[:, :, None, None] if filters else weight

        x = normal(*shape) + normal(channels)[:, None, None]
        x = lay_out(in_dtype(x / 2, torch.int8) if grids else x.to(dtype), layout)
        biases = [normal(n).to(dtype) if bias else None for n in (between, channels)]
        weights = matrix(between, channels), matrix(channels, between)
        tensors = (x, weights[0], biases[0], weights[1], biases[1])
        return (*tensors, *(grids or ())), {"activation": activation, "gate": gate}

    elements = math.prod(shape)
    images = shape[0] if len(shape) == 4 else 1
    return Sample(
        name,
        make,
        reduction=max(channels, between, math.prod(shape[-2:])),
        flops=2 * elements + 4 * images * channels * between,
        bytes=(2 if grids else 8) * elements + 8 * channels * between,
        bench=bench,
    )


SPEC = OpSpec(
    op=SQUEEZE_EXCITE,
    function=squeeze_excite,
    reference=partial(squeeze_excite, backend="reference"),
    samples=(
        _sample("efficientnet", (2, 96, 9, 7), 4, "silu"),
        _sample("mobilenet", (1, 120, 5, 5), 32, "relu", "hardsigmoid"),
        _sample("contiguous", (2, 70, 7, 9), 19, layout="contiguous"),
        _sample("odd", (3, 21, 3, 5), 9, "hardswish", "hardsigmoid"),
        _sample("odd-contiguous", (3, 21, 3, 5), 9, "gelu", "tanh", layout="contiguous"),
        _sample("linear-without-bias", (2, 24, 6, 6), 6, bias=False, filters=False),
        _sample("one-channel", (2, 1, 6, 6), 1),
        _sample("one-pixel", (3, 40, 1, 1), 8),
        _sample("wide", (1, 600, 2, 2), 300),
        _sample("sliced", (2, 8, 6, 6), 4, layout="sliced"),
        _sample("sliced-channels", (2, 8, 6, 6), 4, layout="sliced_channels_last"),
        _sample("transposed", (2, 8, 6, 5), 4, layout="transposed"),
        _sample("one-image", (8, 6, 5), 4, layout="contiguous"),
        _sample("batch-0", (0, 8, 6, 5), 4),
        _sample("efficientnet-96-56", (1, 96, 56, 56), 4, "silu", bench=True),
        _sample("mobilenet-672-14", (1, 672, 14, 14), 168, "relu", "hardsigmoid", bench=True),
        _sample("regnet-768-7-contiguous", (1, 768, 7, 7), 80, layout="contiguous", bench=True),
    ),
    growth=2.0,
)

_GRID = (0.04, 0.03, 5, -9)
INT8_SPEC = OpSpec(
    op=INT8_SQUEEZE_EXCITE,
    function=int8_squeeze_excite,
    reference=partial(int8_squeeze_excite, backend="reference"),
    samples=(
        _sample("efficientnet", (2, 96, 9, 7), 4, "silu", grids=_GRID),
        _sample("mobilenet", (1, 120, 5, 5), 32, "relu", "hardsigmoid", grids=(0.05, 0.04, 0, 0)),
        _sample("contiguous", (2, 70, 7, 9), 19, layout="contiguous", grids=_GRID),
        _sample("odd", (3, 21, 3, 5), 9, "hardswish", "hardsigmoid", grids=_GRID),
        _sample("odd-contiguous", (3, 21, 3, 5), 9, "gelu", "tanh", layout="contiguous", grids=_GRID),
        _sample("linear-without-bias", (2, 24, 6, 6), 6, bias=False, filters=False, grids=_GRID),
        _sample("one-channel", (2, 1, 6, 6), 1, grids=_GRID),
        _sample("strips", (1, 120, 40, 9), 8, grids=_GRID),
        _sample("sliced", (2, 8, 6, 6), 4, layout="sliced", grids=_GRID),
        _sample("sliced-channels", (2, 8, 6, 6), 4, layout="sliced_channels_last", grids=_GRID),
        _sample("transposed", (2, 8, 6, 5), 4, layout="transposed", grids=_GRID),
        _sample("one-image", (8, 6, 5), 4, layout="contiguous", grids=_GRID),
        _sample("batch-0", (0, 8, 6, 5), 4, grids=_GRID),
        _sample("efficientnet-96-56", (1, 96, 56, 56), 4, "silu", grids=_GRID, bench=True),
        _sample("mobilenet-672-14", (1, 672, 14, 14), 168, "relu", "hardsigmoid", grids=_GRID, bench=True),
    ),
    off_by_one=0.005,
    has_int8=True,
)

SPECS: tuple[OpSpec, ...] = (SPEC, INT8_SPEC)
