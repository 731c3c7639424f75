"""The statistics; how they are made is said in __init__.py."""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops.batch_norm_act.triton.tile import (
    first_of,
    lanes_of,
    sizes,
)


@triton.jit
def _join(n, mean, m2):
    """The count, mean and sum of squared deviations of the first axis' sets together."""
    total = tl.sum(n, axis=0)
    share = n / tl.maximum(total, 1.0)[None, :]
    centre = tl.sum(share * mean, axis=0)
    centre += tl.sum(share * (mean - centre[None, :]), axis=0)  # what the first sum rounded away
    d = tl.where(n > 0.0, mean - centre[None, :], 0.0)
    return total, centre, tl.sum(m2 + n * d * d, axis=0)


@triton.jit
def _store_statistics(
    n, m, m2, mean, var, running_mean, running_var, momentum, c, inside, HAS_MEAN: tl.constexpr, HAS_VAR: tl.constexpr
):
    """mean and var, and as F.batch_norm does it, the running ones, whose variance is the unbiased one."""
    tl.store(mean + c, m, mask=inside)
    tl.store(var + c, m2 / n, mask=inside)
    if HAS_MEAN:
        old = tl.load(running_mean + c, mask=inside, other=0.0)
        tl.store(running_mean + c, (1.0 - momentum) * old + momentum * m, mask=inside)
    if HAS_VAR:
        old = tl.load(running_var + c, mask=inside, other=0.0)
        tl.store(running_var + c, (1.0 - momentum) * old + momentum * (m2 / (n - 1.0)), mask=inside)


@triton.jit
def moments_kernel(
    x, parts, mean, var, running_mean, running_var, momentum, images, across, inner_units, LAST: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, SLABS: tl.constexpr, HAS_MEAN: tl.constexpr,
    HAS_VAR: tl.constexpr,
):  # fmt: skip
    """parts (3, SLABS, C): count, mean and squared deviations of each slab; with one slab the statistics themselves.

    The means, but for the last one, are of the differences to the mean of the channel's first step, which is left in
    ``mean``: so a mean that is large against the deviation is not rounded before it has to be.

    First all steps that are full, then those at the images' ends: so what an element of the tile has counted is the
    number of steps so far wherever it takes part.
    """
    length, channels = sizes(across, inner_units, LAST, ALIGN)
    columns = tl.cdiv(channels, BLOCK_C)
    column, slab = tl.program_id(0) % columns, tl.program_id(0) // columns
    w, c = tl.arange(0, BLOCK_W), column * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = lanes_of(length, channels, LAST, BLOCK_W, BLOCK_C)
    full, tail = length // BLOCK_W, length % BLOCK_W
    whole = images * full
    tiles = whole + tl.where(tail > 0, images, 0)
    each = tl.cdiv(tiles, SLABS)
    begin, end = tl.minimum(slab * each, tiles), tl.minimum(slab * each + each, tiles)
    turn = tl.minimum(tl.maximum(whole, begin), end)
    m, m2 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32), tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    exists = tl.broadcast_to((c < channels)[None, :], (BLOCK_W, BLOCK_C))
    start = x + first_of(0, 0, column, length, channels, LAST, BLOCK_C)
    anchor = tl.load(start + lanes, mask=(w < length)[:, None] & exists, other=0.0).to(tl.float32)
    anchor = tl.sum(anchor * (1.0 / tl.minimum(length, BLOCK_W)), axis=0)
    for t in range(begin, turn):
        at = x + first_of(t // full, t % full * BLOCK_W, column, length, channels, LAST, BLOCK_C)
        v = tl.load(at + lanes, mask=exists, other=0.0).to(tl.float32) - anchor[None, :]
        d = v - m
        m += d * (1.0 / (t - begin + 1))
        m2 += d * (v - m)
    inside = (w < tail)[:, None] & exists
    for t in range(turn, end):
        at = x + first_of(t - whole, full * BLOCK_W, column, length, channels, LAST, BLOCK_C)
        v = tl.load(at + lanes, mask=inside, other=0.0).to(tl.float32) - anchor[None, :]
        d = tl.where(inside, v - m, 0.0)
        m += d * (1.0 / (t - begin + 1))
        m2 += d * (v - m)
    n = (turn - begin + tl.where(w < tail, end - turn, 0)).to(tl.float32)
    total, centre, squares = _join(tl.broadcast_to(n[:, None], (BLOCK_W, BLOCK_C)), m, m2)
    if SLABS == 1:
        _store_statistics(
            total, anchor + centre, squares, mean, var, running_mean, running_var, momentum, c, c < channels, HAS_MEAN,
            HAS_VAR,
        )  # fmt: skip
    else:
        if slab == 0:
            tl.store(mean + c, anchor, mask=c < channels)
        at = parts + slab * channels + c
        tl.store(at, total, mask=c < channels)
        tl.store(at + SLABS * channels, centre, mask=c < channels)
        tl.store(at + 2 * SLABS * channels, squares, mask=c < channels)


@triton.jit
def join_moments_kernel(
    parts, mean, var, running_mean, running_var, momentum, channels, BLOCK_C: tl.constexpr, SLABS: tl.constexpr,
    HAS_MEAN: tl.constexpr, HAS_VAR: tl.constexpr,
):  # fmt: skip
    """mean and var of the slabs' parts (3, SLABS, C), on top of what ``mean`` holds; moves the running ones."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = parts + tl.arange(0, SLABS)[:, None] * channels + c[None, :]
    inside = (c < channels)[None, :]
    n = tl.load(at, mask=inside, other=0.0)
    m = tl.load(at + SLABS * channels, mask=inside, other=0.0)
    m2 = tl.load(at + 2 * SLABS * channels, mask=inside, other=0.0)
    total, centre, squares = _join(n, m, m2)
    centre += tl.load(mean + c, mask=c < channels, other=0.0)
    _store_statistics(
        total, centre, squares, mean, var, running_mean, running_var, momentum, c, c < channels, HAS_MEAN, HAS_VAR
    )
