"""Samples and costs of upsample2d."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from pykernels.ops._spec import OpSpec, Sample, in_dtype, lay_out
from pykernels.ops.upsample2d import upsample2d
from pykernels.ops.upsample2d.op import UPSAMPLE2D


def _up(
    name: str, shape: tuple[int, ...], *, layout: str = "channels_last", bench: bool = False, **call: Any
) -> Sample:
    """A sample; ``call`` is what follows the image, by name."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5
        return (lay_out(in_dtype(x, dtype), layout),), call

    elements = math.prod(shape)
    scale = call.get("scale_factor") or 2
    grown = int(elements * (math.prod(scale) if isinstance(scale, tuple) else scale * scale))
    flops = 8 * grown if call.get("mode") == "bilinear" else 0
    return Sample(name, make, reduction=4, flops=flops, bytes=4 * (elements + grown), bench=bench)


_CALLS: tuple[dict[str, Any], ...] = ({"scale_factor": 2}, {"scale_factor": (3, 1.7)}, {"size": (11, 5)})
_BILINEAR: tuple[dict[str, Any], ...] = (
    *_CALLS, {"size": (13, 30), "align_corners": True},
)  # fmt: skip

UPSAMPLE2D_SPEC = OpSpec(
    op=UPSAMPLE2D,
    function=upsample2d,
    reference=partial(upsample2d, backend="reference"),
    # torch takes a weight from a position, of up to 9 in these samples, that it has rounded to float32.
    reference_growth=9.0,
    samples=(
        *(
            _up(f"bilinear-{i}-{layout}", (2, 19, 7, 9), mode="bilinear", layout=layout, **call)
            for i, call in enumerate(_BILINEAR)
            for layout in ("channels_last", "contiguous", "sliced", "sliced_channels_last", "transposed")
        ),
        *(
            _up(f"{mode}-{i}-{layout}", (2, 19, 7, 9), mode=mode, layout=layout, **call)
            for mode in ("nearest", "nearest-exact")
            for i, call in enumerate(_CALLS)
            for layout in ("channels_last", "contiguous", "sliced", "sliced_channels_last")
        ),
        _up("same", (1, 5, 6, 7), size=(6, 7), mode="bilinear"),
        _up("to-a-pixel", (1, 5, 6, 7), size=1, mode="bilinear", align_corners=True),
        _up("of-a-pixel", (1, 5, 1, 1), size=(6, 7), mode="bilinear", align_corners=True),
        _up("one-image", (8, 6, 5), scale_factor=2, layout="contiguous"),
        _up("one-channel", (3, 1, 6, 5), scale_factor=2, mode="bilinear"),
        _up("wide", (1, 2, 3, 700), scale_factor=2, mode="bilinear", layout="contiguous"),
        _up("batch-0", (0, 8, 6, 5), scale_factor=2),
        _up("yolov8n-p4", (1, 128, 40, 40), scale_factor=2, bench=True),
        _up("yolov8n-p4-contiguous", (1, 128, 40, 40), scale_factor=2, layout="contiguous", bench=True),
        _up("unet-64", (1, 128, 64, 64), scale_factor=2, mode="bilinear", align_corners=True, bench=True),
        _up("deeplab-contiguous", (1, 256, 32, 32), scale_factor=4, mode="bilinear", layout="contiguous", bench=True),
    ),
)

SPECS: tuple[OpSpec, ...] = (UPSAMPLE2D_SPEC,)
