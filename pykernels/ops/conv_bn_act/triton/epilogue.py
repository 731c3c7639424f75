"""What the Triton convolutions share: where a tile's pixels are, and how its sums become y.

    y = cast(act(scale[k] * sum + shift[k] + residual_scale * residual) * y_scale)

A pixel (n, p, q) is a row of the output. Addresses are a 64-bit base for the tile's first image plus 32-bit offsets,
because tiles of 64-bit pointers cost twice the registers; WIDE makes the offsets 64 bits where images are that large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops._triton import to_int8
from pykernels.ops._triton_activation import activate


@triton.jit
def tile_pixels(start, m, pixels, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Of the BLOCK rows from ``start`` (int64): the first one's image, then images from it, pixels, and which exist."""
    i = tl.arange(0, BLOCK)
    image = start // pixels
    inside = i < m - start
    row = i.to(tl.int64) + (start - image * pixels) if WIDE else i + (start - image * pixels).to(tl.int32)
    return image, row // pixels, row % pixels, inside


@triton.jit
def _place(t, first, image, pixel, filters, t_n, t_step, VEC: tl.constexpr, PLANES: tl.constexpr):
    """A tile's pointers into y or residual: dense planes of pixels, or else filters are adjacent."""
    t_n, t_step = tl.cast(t_n, image.dtype) * VEC, tl.cast(t_step, image.dtype) * VEC
    step = filters * t_step + pixel if PLANES else pixel * t_step + filters
    return t + first * t_n + (image * t_n + step)


@triton.jit
def finish(
    sums, y, residual, scale, shift, first, image, pixel, filters, inside_filters, inside,
    y_n, y_step, residual_n, residual_step, residual_scale, y_scale, negative_slope,
    PLANES: tl.constexpr, Y_VEC: tl.constexpr, RESIDUAL_VEC: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESCALED: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    """Stores a tile: images from the ``first`` and pixels run along one of its axes, ``filters`` along the other.

    OUT: 0 int32 (the sums), 1 int8, 2 a float dtype. RESCALED: residual_scale and y_scale count.
    """
    at = _place(y, first, image, pixel, filters.to(pixel.dtype), y_n, y_step, Y_VEC, PLANES)
    if OUT == 0:
        tl.store(at, sums, mask=inside)
    else:
        z = sums.to(tl.float32)
        if HAS_SCALE:
            z *= tl.load(scale + filters, mask=inside_filters, other=0.0)
        if HAS_SHIFT:
            z += tl.load(shift + filters, mask=inside_filters, other=0.0)
        if HAS_RESIDUAL:
            added_at = _place(
                residual, first, image, pixel, filters.to(pixel.dtype), residual_n, residual_step, RESIDUAL_VEC, PLANES
            )
            added = tl.load(added_at, mask=inside, other=0.0).to(tl.float32)
            z += added * residual_scale if RESCALED else added
        z = activate(z, ACTIVATION, negative_slope)
        if RESCALED:
            z *= y_scale
        if OUT == 1:
            tl.store(at, to_int8(z, -128), mask=inside)
        else:
            tl.store(at, z.to(y.dtype.element_ty), mask=inside)
