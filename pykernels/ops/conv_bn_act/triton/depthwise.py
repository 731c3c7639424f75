"""Convolutions of few channels a group in Triton: depthwise above all, one filter a channel.

    z[n, k, p, q] = sum over c, r, s of x[n, group(k) * C + c, h0 + r dilation, w0 + s dilation] * weight[k, c, r, s]

There is nothing to share between filters, so there is no matrix product: a program keeps BLOCK_M pixels x BLOCK_N
filters of sums in registers and goes through the taps, whose pixels its neighbours have just read into L1. Lanes run
along whichever of channels and pixels is adjacent in memory: channels_last and NCHW are both read where they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops.conv_bn_act.triton.epilogue import finish, tile_pixels


@triton.jit
def _add_tap(
    sums, x, weight, tap, h0, w0, h, w, x_h, x_w, x_c, dilation_h, dilation_w, inside, inside_filters,
    R: tl.constexpr, S: tl.constexpr, PADDED: tl.constexpr, index: tl.constexpr,
):  # fmt: skip
    """Adds the product with the ``tap``-th of a filter's (c, r, s)."""
    c, r, s = tap // (R * S), tap // S % R, tap % S
    row, column = r * dilation_h, s * dilation_w
    if PADDED:
        inside = inside & ((h0 + row >= 0) & (h0 + row < h) & (w0 + column >= 0) & (w0 + column < w))
    at = tl.cast(row, index) * x_h + tl.cast(column, index) * x_w + c * x_c
    seen = tl.load(x + at, mask=inside, other=0).to(sums.dtype)
    return sums + seen * tl.load(weight + tap, mask=inside_filters, other=0).to(sums.dtype)


@triton.jit
def depthwise_kernel(
    x, weight, y, scale, shift, residual, m, width, h, w, pixels, q,
    x_n, x_h, x_w, x_c, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    y_n, y_step, residual_n, residual_step, residual_scale, y_scale, negative_slope,
    R: tl.constexpr, S: tl.constexpr, C: tl.constexpr, MULTIPLIER: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PLANES: tl.constexpr, PADDED: tl.constexpr, X_VEC: tl.constexpr, K_VEC: tl.constexpr,
    P_VEC: tl.constexpr, Y_VEC: tl.constexpr, RESIDUAL_VEC: tl.constexpr, WIDE: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RESCALED: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    """weight (width, C, R, S), dense; MULTIPLIER filters share C channels. PLANES: lanes run along pixels."""
    width *= K_VEC
    m = tl.cast(m, tl.int64) * P_VEC
    pixels *= P_VEC
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    x_n, x_h, x_w = tl.cast(x_n, index) * X_VEC, tl.cast(x_h, index) * X_VEC, tl.cast(x_w, index) * X_VEC
    accumulate: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    tiles_n = tl.cdiv(width, BLOCK_N)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    start = tl.cast(tile_m, tl.int64) * BLOCK_M
    first, image, pixel, inside_rows = tile_pixels(start, m, pixels, BLOCK_M, WIDE)
    filters = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if PLANES:
        image, pixel, inside_rows = image[None, :], pixel[None, :], inside_rows[None, :]
        filters = filters[:, None]
        sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=accumulate)
    else:
        image, pixel, inside_rows = image[:, None], pixel[:, None], inside_rows[:, None]
        filters = filters[None, :]
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=accumulate)
    inside_filters = filters < width
    inside = inside_rows & inside_filters
    h0 = pixel // q * stride_h - pad_h
    w0 = pixel % q * stride_w - pad_w
    channel = filters if MULTIPLIER == 1 and C == 1 else filters // MULTIPLIER * C
    x_tile = x + first * x_n
    at = (image * x_n + h0 * x_h + w0 * x_w) + channel.to(index) * x_c
    weight_at = weight + filters.to(index) * (C * R * S)
    if R * S * C <= 9:  # more taps at once spill
        for tap in tl.static_range(R * S * C):
            sums = _add_tap(
                sums, x_tile + at, weight_at, tap, h0, w0, h, w, x_h, x_w, x_c, dilation_h, dilation_w, inside,
                inside_filters, R, S, PADDED, index,
            )  # fmt: skip
    else:
        for tap in range(R * S * C):
            sums = _add_tap(
                sums, x_tile + at, weight_at, tap, h0, w0, h, w, x_h, x_w, x_c, dilation_h, dilation_w, inside,
                inside_filters, R, S, PADDED, index,
            )  # fmt: skip
    finish(
        sums, y, residual, scale, shift, first, image, pixel, filters, inside_filters, inside,
        y_n, y_step, residual_n, residual_step, residual_scale, y_scale, negative_slope,
        PLANES, Y_VEC, RESIDUAL_VEC, HAS_SCALE, HAS_SHIFT, HAS_RESIDUAL, RESCALED, ACTIVATION, OUT,
    )  # fmt: skip
