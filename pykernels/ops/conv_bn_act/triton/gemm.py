"""The convolution as a matrix product in Triton: rows are pixels (n, p, q), columns filters, sums run over (r, s, c).

Nothing is unfolded: a program gathers, step by step, the BLOCK_M x BLOCK_K part of x that its pixels see, multiplies it
with `tl.dot` by BLOCK_K x BLOCK_N of the weight (k, r, s, c), and finishes its sums in registers. Two ways of stepping:

  taps  BLOCK_K channels of one tap a step: one row of addresses and one mask for all channels, read as vectors.
  flat  BLOCK_K of all r * s * c terms, for few channels (a stem has three): no step is filled up with zeros.

Programs of neighbouring filters are neighbours, so that the pixels they share come from L2. Where the tiles are too few
for the GPU, the sum is split: parts (splits, m, k) are added in their order by `reduce_kernel`, which finishes them.
Strides and sizes come divided by a power of two and are multiplied again here: so Triton knows what divides them,
without which it reads single elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops._triton import dot
from pykernels.ops.conv_bn_act.triton.epilogue import finish, tile_pixels


@triton.jit
def conv_kernel(
    x, weight, y, parts, scale, shift, residual, m, channels, filters, groups, h, w, pixels, q,
    x_n, x_h, x_w, x_c, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    y_n, y_step, residual_n, residual_step, residual_scale, y_scale, negative_slope,
    R: tl.constexpr, S: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, FLAT: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr,
    PLANES: tl.constexpr, X_VEC: tl.constexpr, K_VEC: tl.constexpr, P_VEC: tl.constexpr, Y_VEC: tl.constexpr,
    RESIDUAL_VEC: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESCALED: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    """x (n, groups * c, h, w), weight (groups * k, r, s, c) dense; y (n, groups * k, p, q), PLANES: NCHW.

    FLAT: C is c. PADDED: a tap may lie beside the image. EVEN: BLOCK_K divides c.
    """
    channels *= X_VEC
    filters *= K_VEC
    m = tl.cast(m, tl.int64) * P_VEC
    pixels *= P_VEC
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    x_n, x_h, x_w = tl.cast(x_n, index) * X_VEC, tl.cast(x_h, index) * X_VEC, tl.cast(x_w, index) * X_VEC
    accumulate: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    tiles_n = tl.cdiv(filters, BLOCK_N)
    pid = tl.program_id(0)
    part, tile = pid % SPLITS, pid // SPLITS
    tile_n, tile = tile % tiles_n, tile // tiles_n
    group, tile_m = tile % groups, tile // groups

    start = tl.cast(tile_m, tl.int64) * BLOCK_M
    first, image, pixel, inside_rows = tile_pixels(start, m, pixels, BLOCK_M, WIDE)
    # Rows past the end read what the first one reads. (To choose between addresses would hide what divides them.)
    seen_image, seen_pixel = tl.where(inside_rows, image, 0), tl.where(inside_rows, pixel, 0)
    h0 = seen_pixel // q * stride_h - pad_h
    w0 = seen_pixel % q * stride_w - pad_w
    corner = seen_image * x_n + h0 * x_h + w0 * x_w
    x_tile = x + (first * x_n + tl.cast(group, tl.int64) * channels * x_c)

    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_columns = columns < filters
    terms = R * S * C if FLAT else R * S * channels
    weight_tile = weight + tl.cast(group, tl.int64) * filters * terms + tl.cast(tile_n, tl.int64) * BLOCK_N * terms
    weight_row = tl.where(inside_columns, tl.arange(0, BLOCK_N), 0).to(index) * terms

    inner = tl.arange(0, BLOCK_K)
    channel_steps = tl.cdiv(channels, BLOCK_K)
    steps = tl.cdiv(R * S * C, BLOCK_K) if FLAT else R * S * channel_steps
    each = tl.cdiv(steps, SPLITS)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=accumulate)
    for step in range(part * each, tl.minimum((part + 1) * each, steps)):
        if FLAT:
            term = step * BLOCK_K + inner
            tap, channel = term // C, term % C
            row, column = tap // S * dilation_h, tap % S * dilation_w
            at = (row.to(index) * x_h + column.to(index) * x_w + channel.to(index) * x_c)[None, :] + corner[:, None]
            inside_terms = term < R * S * C
            inside = inside_terms[None, :]
            if PADDED:
                at_h, at_w = h0[:, None] + row[None, :], w0[:, None] + column[None, :]
                inside = inside & (at_h >= 0) & (at_h < h) & (at_w >= 0) & (at_w < w)
            left = tl.load(x_tile + at, mask=inside, other=0)
            right = tl.load(weight_tile + (weight_row[None, :] + term[:, None]), mask=inside_terms[:, None], other=0)
        else:
            tap = step // channel_steps if R * S > 1 else 0
            c0 = (step - tap * channel_steps) * BLOCK_K
            row, column = tap // S * dilation_h, tap % S * dilation_w
            # Added to the rows before the channels: one addition a row, and not one an element.
            at = corner + (tl.cast(row, index) * x_h + tl.cast(column, index) * x_w + c0)
            inside_channels = inner < channels - c0
            if PADDED:
                inside = (h0 + row >= 0) & (h0 + row < h) & (w0 + column >= 0) & (w0 + column < w)
                if EVEN:
                    left = tl.load(x_tile + (at[:, None] + inner[None, :]), mask=inside[:, None], other=0)
                else:
                    mask = inside[:, None] & inside_channels[None, :]
                    left = tl.load(x_tile + (at[:, None] + inner[None, :]), mask=mask, other=0)
            elif EVEN:
                left = tl.load(x_tile + (at[:, None] + inner[None, :]))
            else:
                left = tl.load(x_tile + (at[:, None] + inner[None, :]), mask=inside_channels[None, :], other=0)
            weight_at = weight_row + (tl.cast(tap, index) * channels + c0)
            if EVEN:
                right = tl.load(weight_tile + (weight_at[None, :] + inner[:, None]))
            else:
                right = tl.load(
                    weight_tile + (weight_at[None, :] + inner[:, None]), mask=inside_channels[:, None], other=0
                )
        if accumulate == tl.int32:
            sums = tl.dot(left, right, sums, out_dtype=tl.int32)  # Triton 3.6 does not infer it
        else:
            sums = dot(left, right, sums, PRECISION)

    inside = inside_rows[:, None] & inside_columns[None, :]
    if SPLITS > 1:
        width = groups * filters
        parts_tile = parts + (tl.cast(part, tl.int64) * m + start) * width + group * filters
        tl.store(parts_tile + (tl.arange(0, BLOCK_M).to(index)[:, None] * width + columns[None, :]), sums, mask=inside)
    else:
        finish(
            sums, y, residual, scale, shift, first, image[:, None], pixel[:, None],
            (columns + group * filters)[None, :], inside_columns[None, :], inside,
            y_n, y_step, residual_n, residual_step, residual_scale, y_scale, negative_slope,
            PLANES, Y_VEC, RESIDUAL_VEC, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RESCALED, ACTIVATION, OUT,
        )  # fmt: skip


@triton.jit
def reduce_kernel(
    parts, y, scale, shift, residual, m, width, pixels, y_n, y_step, residual_n, residual_step,
    residual_scale, y_scale, negative_slope,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PLANES: tl.constexpr, K_VEC: tl.constexpr,
    P_VEC: tl.constexpr, Y_VEC: tl.constexpr, RESIDUAL_VEC: tl.constexpr, WIDE: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESCALED: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    """y from the sum, in its order, of the parts (SPLITS, m, width); width is that of all groups."""
    width *= K_VEC
    m = tl.cast(m, tl.int64) * P_VEC
    pixels *= P_VEC
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    tiles_n = tl.cdiv(width, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    start = tl.cast(tile_m, tl.int64) * BLOCK_M
    first, image, pixel, inside_rows = tile_pixels(start, m, pixels, BLOCK_M, WIDE)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = inside_rows[:, None] & (columns < width)[None, :]
    at = tl.arange(0, BLOCK_M).to(index)[:, None] * width + columns[None, :]
    sums = tl.load(parts + start * width + at, mask=inside, other=0)
    for part in range(1, SPLITS):
        sums += tl.load(parts + (tl.cast(part, tl.int64) * m + start) * width + at, mask=inside, other=0)
    finish(
        sums, y, residual, scale, shift, first, image[:, None], pixel[:, None],
        columns[None, :], (columns < width)[None, :], inside,
        y_n, y_step, residual_n, residual_step, residual_scale, y_scale, negative_slope,
        PLANES, Y_VEC, RESIDUAL_VEC, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RESCALED, ACTIVATION, OUT,
    )  # fmt: skip
