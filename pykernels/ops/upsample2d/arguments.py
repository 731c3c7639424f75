"""The arguments of upsample2d. This module checks them, names the wrong one, and makes an `UpsampleCall`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels.ops._arguments import check_choice, check_number, fail, pair

OP = "upsample2d"
MODES = ("nearest", "nearest-exact", "bilinear")
#: The code of "bilinear" with ``align_corners``; those of `MODES` are their places.
CORNERS = len(MODES)


class UpsampleCall(NamedTuple):
    """What the op takes besides the image."""

    size: tuple[int, int]
    #: Between pixels of the image and of the result; 0 where the sizes tell.
    scales: tuple[float, float]
    mode: int

    @property
    def given(self) -> tuple[int, ...]:
        """The size, where the scales do not tell it."""
        return () if self.scales[0] else self.size


def upsample_call(
    x: Tensor, size: int | Sequence[int] | None, scale_factor: float | Sequence[float] | None, mode: str,
    align_corners: bool | None,
) -> UpsampleCall:  # fmt: skip
    """The call, checked against itself and the image."""
    check_choice(OP, "mode", mode, MODES)
    if align_corners is not None and type(align_corners) is not bool:
        fail(TypeError, OP, "align_corners", "a bool or None", type(align_corners).__name__)
    if align_corners is not None and mode != "bilinear":
        fail(ValueError, OP, "align_corners", f'None, because mode is "{mode}"', align_corners)
    code = CORNERS if align_corners else MODES.index(mode)
    if (size is None) == (scale_factor is None):
        fail(ValueError, OP, "size", "either size or scale_factor", "neither" if size is None else "both")
    if size is not None:
        return UpsampleCall(pair(OP, "size", size, 1), (0.0, 0.0), code)
    scales = check_scales(scale_factor)
    return UpsampleCall(scaled(x.shape, scales), scales, code)


def check_scales(scale_factor: Any) -> tuple[float, float]:
    """``scale_factor``, one number or (vertical, horizontal), as two that are above 0."""
    both = tuple(scale_factor) if isinstance(scale_factor, list | tuple) else (scale_factor, scale_factor)
    for scale in both:
        check_number(OP, "scale_factor", scale)
    if len(both) != 2 or not all(0 < scale < float("inf") for scale in both):
        fail(ValueError, OP, "scale_factor", "a number or two numbers above 0", scale_factor)
    return float(both[0]), float(both[1])


def scaled(shape: Sequence[int], scales: tuple[float, float]) -> tuple[int, int]:
    """The size of the result for an image of ``shape``, as torch rounds it."""
    # Whole numbers apart, because in a trace a product with a float is a number and not a symbol.
    height, width = (
        n * int(scale) if scale == int(scale) else torch.sym_int(n * scale)
        for n, scale in zip(shape[-2:], scales, strict=True)
    )
    if height < 1 or width < 1:
        fail(ValueError, OP, "scale_factor", "numbers that leave a pixel at least", scales)
    return height, width
