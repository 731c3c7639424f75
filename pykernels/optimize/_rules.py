"""Which convolutions our CPU kernels win, and which stay torch's: one table, measured by ``bench/layers.py``.

A layer is of a kind (`kind_of`). The first row of `_TABLE` that is for its kind, its memory format and its activation,
and whose bounds it is within, has the answer. The figures are of float32, AVX2 and one thread, against torch's
convolution (oneDNN) with the batch norm folded in and the activation in place. Other ISAs and numbers of threads go by
the same rows until somebody measures them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: What the kernels finish in registers; other activations cost them a second pass over part of the result.
_CHEAP = ("none", "relu")


class Row(NamedTuple):
    """Bounds, and who runs what is within them.

    Pixels are those of the result, channels those of a group, ``most_work`` is in multiplications. ``cheap``: is the
    activation one of `_CHEAP`? ``widens``: are there more channels behind than before? None for either.
    """

    kind: str
    ours: bool
    why: str = ""
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    cheap: bool | None = None
    most_work: float = math.inf
    most_pixels: float = math.inf
    least_in: int = 0
    least_out: int = 0
    widens: bool | None = None


_CONTIGUOUS, _CHANNELS_LAST = ("contiguous",), ("channels_last",)
#: A call of torch's takes 10 to 20 us, of its depthwise convolution 100 to 150: what is small is ours.
_TABLE = (
    Row("depthwise", True, most_work=150_000),
    Row("depthwise", False, "torch's depthwise convolution is faster"),
    Row("stem", True, most_work=400_000),
    Row("stem", True, most_work=1_500_000, layouts=_CHANNELS_LAST),
    Row("stem", True, least_out=64, layouts=_CHANNELS_LAST, cheap=True),
    Row("stem", False, "torch's convolution of few channels is faster"),
    Row("grouped", True, least_in=16, most_pixels=1000),
    Row("grouped", True, most_pixels=1000, layouts=_CONTIGUOUS),
    Row("grouped", False, "torch's convolution of narrow groups is faster"),
    Row("pointwise", True, most_work=60_000),
    Row("pointwise", True, most_pixels=100),
    Row("pointwise", True, layouts=_CHANNELS_LAST, cheap=True, least_out=24),
    Row("pointwise", True, layouts=_CHANNELS_LAST, widens=False, least_out=24),
    Row("pointwise", False, "torch's 1x1 convolution is faster"),
    Row("wide", True, most_pixels=2000),
    Row("wide", False, "torch's convolution with wide filters is faster"),
    Row("dilated", True, layouts=_CHANNELS_LAST),
    Row("dilated", False, "torch's dilated convolution is faster"),
    Row("dense", True),
    Row("strided", True),
)


def kind_of(weight: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> str:
    """What the layers of the table are told apart by; ``weight``: (K, C / groups, R, S)."""
    _, c, r, s = weight
    if groups > 1:
        return "depthwise" if c == 1 else "grouped"
    if c <= 4:
        return "stem"
    if r == s == 1 and tuple(stride) == (1, 1):
        return "pointwise"
    if max(dilation) > 1:
        return "dilated"
    if max(stride) > 1 and max(r, s) <= 3:
        return "strided"
    return "dense" if r == s == 3 else "wide"


def torchs_because(
    shape: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    layout: str,
    threads: int = 1,
    isa: str = "avx2",
) -> str:
    """Why a float32 convolution of an image of ``shape`` (N, C, H, W) stays torch's on the CPU; "" where ours wins.

    ``padding``: top, left, bottom, right; ``layout``: "contiguous" or "channels_last", of the image.
    """
    n, _, height, width = shape
    k, c, r, s = weight
    p = (height + padding[0] + padding[2] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (width + padding[1] + padding[3] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    pixels = p * q
    work = n * pixels * k * c * r * s
    kind = kind_of(weight, stride, dilation, groups)
    for row in _TABLE:
        if (
            row.kind == kind
            and layout in row.layouts
            and row.cheap in (None, activation in _CHEAP)
            and work <= row.most_work
            and pixels <= row.most_pixels
            and c >= row.least_in
            and k // groups >= row.least_out
            and row.widens in (None, k > c)
        ):
            return "" if row.ours else row.why
    return ""


def wins(*args: object, **kwargs: object) -> bool:
    """Does our kernel win? The arguments are `torchs_because`'s."""
    return not torchs_because(*args, **kwargs)  # type: ignore[arg-type]
