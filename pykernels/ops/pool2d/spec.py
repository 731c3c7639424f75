"""Samples and costs of the pools."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._spec import OpSpec, Sample, in_dtype, lay_out
from pykernels.ops.pool2d import avg_pool2d, global_avg_pool2d, max_pool2d
from pykernels.ops.pool2d.op import AVG_POOL2D, GLOBAL_AVG_POOL2D, MAX_POOL2D


def _pool(
    name: str,
    shape: tuple[int, ...],
    *args: Any,
    layout: str = "channels_last",
    bench: bool = False,
    zero_point: int = 0,
    dequantized: bool = False,
    **options: Any,
) -> Sample:
    """A sample of any of them: what follows the image, in order and by name.

    ``zero_point`` is int8's; ``dequantized``: a mean of int8 is in float32.
    """

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5
        of_int8: dict[str, Any] = {}
        if not dtype.is_floating_point and zero_point:
            of_int8["zero_point"] = zero_point
        if not dtype.is_floating_point and dequantized:
            of_int8["scale"] = 0.03
        return (lay_out(in_dtype(x, dtype), layout), *args), options | of_int8

    size = args[0] if args else shape[-2:]
    window = math.prod(size) if isinstance(size, tuple) else size * size
    elements = math.prod(shape)
    return Sample(name, make, reduction=window, flops=elements, bytes=4 * elements, bench=bench)


def _windows() -> tuple[Sample, ...]:
    return (
        _pool("3x3-stride-2", (2, 19, 9, 11), 3, 2, 1),
        _pool("3x3-stride-2-contiguous", (2, 19, 9, 11), 3, 2, 1, layout="contiguous"),
        _pool("3x3-stride-1-contiguous", (1, 5, 7, 40), 3, 1, 1, layout="contiguous"),
        _pool("2x2", (1, 72, 8, 8), 2),
        _pool("2x2-contiguous", (2, 3, 9, 33), 2, layout="contiguous"),
        _pool("2x3-stride-3x2", (1, 8, 7, 9), (2, 3), (3, 2), (1, 0)),
        _pool("2x3-stride-3x2-contiguous", (1, 8, 7, 9), (2, 3), (3, 2), (1, 0), layout="contiguous"),
        _pool("ceil", (1, 9, 8, 8), 3, 2, ceil_mode=True),
        _pool("ceil-contiguous", (1, 9, 8, 8), 3, 2, 1, ceil_mode=True, layout="contiguous"),
        _pool("sliced", (2, 8, 6, 6), 2, layout="sliced"),
        _pool("sliced-channels", (2, 8, 6, 6), 2, layout="sliced_channels_last"),
        _pool("transposed", (2, 8, 6, 5), 3, 1, 1, layout="transposed"),
        _pool("one-image", (8, 6, 5), 2, layout="contiguous"),
        _pool("one-channel", (3, 1, 6, 5), 2),
        _pool("batch-0", (0, 8, 6, 5), 2),
        _pool("resnet-stem", (1, 64, 112, 112), 3, 2, 1, bench=True),
        _pool("resnet-stem-contiguous", (1, 64, 112, 112), 3, 2, 1, layout="contiguous", bench=True),
        _pool("vgg-contiguous", (1, 64, 224, 224), 2, layout="contiguous", bench=True),
    )


def _spec(op: Any, function: Callable[..., Tensor], samples: tuple[Sample, ...], exact: bool = False) -> OpSpec:
    return OpSpec(
        op=op, function=function, reference=partial(function, backend="reference"), samples=samples, exact=exact
    )


MAX_POOL2D_SPEC = _spec(
    MAX_POOL2D,
    max_pool2d,
    (
        *_windows(),
        _pool("dilated", (1, 6, 9, 9), 3, 2, 1, 2),
        _pool("dilated-contiguous", (1, 6, 9, 30), (3, 2), 1, 0, (1, 3), layout="contiguous"),
    ),
    exact=True,
)
AVG_POOL2D_SPEC = _spec(
    AVG_POOL2D,
    avg_pool2d,
    (
        *_windows(),
        _pool("without-the-padding", (2, 19, 9, 11), 3, 2, 1, count_include_pad=False),
        _pool("without-the-padding-contiguous", (2, 5, 9, 11), 3, 2, 1, True, False, layout="contiguous"),
        _pool("divisor", (2, 19, 9, 11), 3, 2, 1, divisor_override=-4),
        _pool("divisor-contiguous", (2, 5, 9, 11), 3, 1, 1, divisor_override=5, layout="contiguous"),
        _pool("whole", (2, 70, 7, 7), 7),
        *(
            _pool(f"zero-point-{layout}", (2, 70, 9, 11), 3, 2, 1, layout=layout, zero_point=-9)
            for layout in ("channels_last", "contiguous", "transposed")
        ),
        _pool("zero-point-divisor", (2, 70, 9, 11), 3, 2, 1, divisor_override=2, zero_point=100),
        _pool("large-window", (1, 70, 19, 31), (18, 30), zero_point=-20),
        _pool("whole-contiguous", (2, 70, 7, 7), 7, layout="contiguous"),
    ),
)
GLOBAL_AVG_POOL2D_SPEC = _spec(
    GLOBAL_AVG_POOL2D,
    global_avg_pool2d,
    (
        _pool("7x7", (2, 70, 7, 7)),
        *(
            _pool(f"{kind}-{layout}", (2, 70, 7, 9), layout=layout, zero_point=-9, dequantized=kind == "dequantized")
            for kind in ("zero-point", "dequantized")
            for layout in ("channels_last", "contiguous", "sliced", "transposed")
        ),
        _pool("large-map", (1, 37, 40, 30), zero_point=100, dequantized=True),
        _pool("7x7-contiguous", (2, 70, 7, 7), layout="contiguous"),
        _pool("odd", (3, 5, 13, 11)),
        _pool("sliced", (2, 8, 6, 6), layout="sliced"),
        _pool("sliced-channels", (2, 8, 6, 6), layout="sliced_channels_last"),
        _pool("transposed", (2, 8, 6, 5), layout="transposed"),
        _pool("one-image", (8, 6, 5), layout="contiguous"),
        _pool("batch-0", (0, 8, 6, 5)),
        _pool("mobilenet-1280-7", (1, 1280, 7, 7), bench=True),
        _pool("efficientnet-96-112", (1, 96, 112, 112), bench=True),
    ),
)

SPECS: tuple[OpSpec, ...] = (MAX_POOL2D_SPEC, AVG_POOL2D_SPEC, GLOBAL_AVG_POOL2D_SPEC)
