"""Training's batch norm in Triton: statistics, act((x - mean) weight / sqrt(var + eps) + bias + residual), gradients.

Both layouts are one walk. A program has BLOCK_C channels for itself and goes over their values in steps of BLOCK_W:

    channels_last:  (N * H * W, C)   a step is BLOCK_W pixels, whose channels are adjacent
    contiguous:     (N, C, H * W)    a step is BLOCK_W adjacent pixels of an image; images follow one another

Tiles are (BLOCK_W, BLOCK_C) in both, with the parameters of the channels in registers, and sums are kept for each
element of the tile apart until the program's end: then a step costs a few operations an element and no exchange between
threads, and memory is the limit. Programs leave partial sums, which a small second kernel joins in a fixed order. Where
one program has all of a channel, it finishes by itself: statistics and the whole backward pass are one launch each.

Statistics are Welford's of differences to the first values' mean, joined by Chan's formula: no cancellation whatever
the mean, and no harm by an outlier. All elements of a tile have the same count, so that the reciprocal is a scalar's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._triton import Device, activate, device_of, hinted, launch, sigmoid, tanh, triton_op
from pykernels.ops.batch_norm_act.autograd import _has_mask, _setup_context, backward_by

# How dz = dy act'(z) comes about: it is dy; by the sign in the mask; by z, computed again.
_ONE, _FROM_MASK, _FROM_Z = 0, 1, 2


@dataclass(frozen=True)
class Config:
    """Tiles (block_w, block_c); kernels with sums have `slabs` programs a column of channels, the others `spread`."""

    block_w: int
    block_c: int
    warps: int
    slabs: int
    spread: int


def config(images: int, length: int, channels: int, last: bool, device: Device) -> Config:
    """Tiles of 16 elements a thread, and as many programs as are resident at once; a power of two, so that the shapes
    of a net that is traced with any batch size need few of them.
    """
    warps = 4
    tile = 16 * 32 * warps if device.platform == "cuda" else 16 * 64 * warps
    if last:  # 128 bytes of a 16-bit pixel
        block_c = min(64, max(8, triton.next_power_of_2(channels)))
        block_w = tile // block_c
    else:
        block_w = min(1024, max(8, triton.next_power_of_2(length)))
        # More channels a program would cost more registers for their parameters than the loads in flight gain.
        block_c = min(8, tile // block_w, max(1, triton.next_power_of_2(channels)))
    columns, tiles = triton.cdiv(channels, block_c), images * triton.cdiv(length, block_w)
    slabs = spread = 1
    while slabs < 512 and columns * slabs < 4 * device.multiprocessors and tiles >= 8 * slabs:
        slabs *= 2
    while columns * spread < 16 * device.multiprocessors and tiles >= 2 * spread:
        spread *= 2
    while tiles >= 64 * spread:  # the last programs to finish should not matter
        spread *= 2
    return Config(block_w, block_c, warps, slabs, spread)


@triton.jit
def _sizes(across, inner_units, LAST: tl.constexpr, ALIGN: tl.constexpr):
    """(length, channels): what a program walks over, and how many channels there are.

    The size that is adjacent in memory comes in units of ALIGN elements, so that the compiler may use vectors.
    """
    inner = inner_units * ALIGN
    if LAST:
        length, channels = across, inner
    else:
        length, channels = inner, across
    return length, channels


@triton.jit
def _lanes(length, channels, LAST: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """The offsets of a tile's elements from its first."""
    w, c = tl.arange(0, BLOCK_W)[:, None], tl.arange(0, BLOCK_C)[None, :]
    return w * channels + c if LAST else w + c * length


@triton.jit
def _first(image, w, column, length, channels, LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """The offset of a tile's first element."""
    if LAST:
        return tl.cast(w, tl.int64) * channels + column * BLOCK_C
    else:
        return (tl.cast(image, tl.int64) * channels + column * BLOCK_C) * length + w


@triton.jit
def _parameters(mean, var, weight, bias, c, inside, eps, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """mean, weight / sqrt(var + eps), bias and 1 / sqrt(var + eps) of the program's channels."""
    m = tl.load(mean + c, mask=inside, other=0.0)
    deviation = tl.sqrt_rn(tl.load(var + c, mask=inside, other=1.0) + eps)
    one = tl.full(m.shape, 1.0, tl.float32)
    inverse = tl.div_rn(one, deviation)
    scale = tl.div_rn(tl.load(weight + c, mask=inside, other=0.0), deviation) if HAS_WEIGHT else inverse
    shift = tl.load(bias + c, mask=inside, other=0.0) if HAS_BIAS else tl.zeros(m.shape, tl.float32)
    return m, scale, shift, inverse


@triton.jit
def _affine(centred, scale, shift):
    """The same roundings in the forward and the backward pass, which reads the sign of z from it again."""
    shape: tl.constexpr = centred.shape
    return tl.fma(centred, tl.broadcast_to(scale[None, :], shape), tl.broadcast_to(shift[None, :], shape))


@triton.jit
def _mask_first(image, w, column, length, channels, LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """The offset of the byte with a tile's first bits. A row of adjacent elements begins a new byte."""
    if LAST:
        return tl.cast(w, tl.int64) * tl.cdiv(channels, 8) + column * BLOCK_C // 8
    else:
        return (tl.cast(image, tl.int64) * channels + column * BLOCK_C) * tl.cdiv(length, 8) + w // 8


@triton.jit
def _store_bits(
    at, positive, w, column, length, channels, LAST: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Eight adjacent elements a byte, the first in the lowest bit."""
    eight = tl.arange(0, 8)
    if LAST:
        bits = tl.reshape(positive.to(tl.int32), (BLOCK_W, BLOCK_C // 8, 8)) << eight[None, None, :]
        packed = tl.sum(bits, axis=2)
        row, byte = tl.arange(0, BLOCK_W)[:, None], tl.arange(0, BLOCK_C // 8)[None, :]
        inside = (w + row < length) & (column * BLOCK_C + byte * 8 < channels)
        tl.store(at + row * tl.cdiv(channels, 8) + byte, packed.to(tl.uint8), mask=inside)
    else:
        bits = tl.reshape(positive.to(tl.int32), (BLOCK_W // 8, 8, BLOCK_C)) << eight[None, :, None]
        packed = tl.sum(bits, axis=1)
        byte, row = tl.arange(0, BLOCK_W // 8)[:, None], tl.arange(0, BLOCK_C)[None, :]
        inside = (w + byte * 8 < length) & (column * BLOCK_C + row < channels)
        tl.store(at + row * tl.cdiv(length, 8) + byte, packed.to(tl.uint8), mask=inside)


@triton.jit
def _load_bits(at, w, column, length, channels, LAST: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """Whether each element of a tile was positive. Eight threads' loads of one byte are one of the cache's."""
    eight = tl.arange(0, 8)
    if LAST:
        row, byte = tl.arange(0, BLOCK_W)[:, None], tl.arange(0, BLOCK_C // 8)[None, :]
        inside = (w + row < length) & (column * BLOCK_C + byte * 8 < channels)
        packed = tl.load(at + row * tl.cdiv(channels, 8) + byte, mask=inside, other=0).to(tl.int32)
        bits = packed[:, :, None] >> eight[None, None, :]
    else:
        byte, row = tl.arange(0, BLOCK_W // 8)[:, None], tl.arange(0, BLOCK_C)[None, :]
        inside = (w + byte * 8 < length) & (column * BLOCK_C + row < channels)
        packed = tl.load(at + row * tl.cdiv(length, 8) + byte, mask=inside, other=0).to(tl.int32)
        bits = packed[:, None, :] >> eight[None, :, None]
    return (tl.reshape(bits, (BLOCK_W, BLOCK_C)) & 1) != 0


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
    length, channels = _sizes(across, inner_units, LAST, ALIGN)
    columns = tl.cdiv(channels, BLOCK_C)
    column, slab = tl.program_id(0) % columns, tl.program_id(0) // columns
    w, c = tl.arange(0, BLOCK_W), column * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = _lanes(length, channels, LAST, BLOCK_W, BLOCK_C)
    full, tail = length // BLOCK_W, length % BLOCK_W
    whole = images * full
    tiles = whole + tl.where(tail > 0, images, 0)
    each = tl.cdiv(tiles, SLABS)
    begin, end = tl.minimum(slab * each, tiles), tl.minimum(slab * each + each, tiles)
    turn = tl.minimum(tl.maximum(whole, begin), end)
    m, m2 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32), tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    exists = tl.broadcast_to((c < channels)[None, :], (BLOCK_W, BLOCK_C))
    start = x + _first(0, 0, column, length, channels, LAST, BLOCK_C)
    anchor = tl.load(start + lanes, mask=(w < length)[:, None] & exists, other=0.0).to(tl.float32)
    anchor = tl.sum(anchor * (1.0 / tl.minimum(length, BLOCK_W)), axis=0)
    for t in range(begin, turn):
        at = x + _first(t // full, t % full * BLOCK_W, column, length, channels, LAST, BLOCK_C)
        v = tl.load(at + lanes, mask=exists, other=0.0).to(tl.float32) - anchor[None, :]
        d = v - m
        m += d * (1.0 / (t - begin + 1))
        m2 += d * (v - m)
    inside = (w < tail)[:, None] & exists
    for t in range(turn, end):
        at = x + _first(t - whole, full * BLOCK_W, column, length, channels, LAST, BLOCK_C)
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


@triton.jit
def normalise_kernel(
    x, mean, var, weight, bias, residual, y, mask, eps, negative_slope, images, across, inner_units, spread,
    LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """y, and behind a residual the signs: x and residual are read once, y and one bit an element written."""
    length, channels = _sizes(across, inner_units, LAST, ALIGN)
    columns, steps = tl.cdiv(channels, BLOCK_C), tl.cdiv(length, BLOCK_W)
    column, first = tl.program_id(0) % columns, tl.program_id(0) // columns
    w, c = tl.arange(0, BLOCK_W), column * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = _lanes(length, channels, LAST, BLOCK_W, BLOCK_C)
    m, scale, shift, _ = _parameters(mean, var, weight, bias, c, c < channels, eps, HAS_WEIGHT, HAS_BIAS)
    for t in range(first, images * steps, spread):
        image, start = t // steps, t % steps * BLOCK_W
        at = _first(image, start, column, length, channels, LAST, BLOCK_C)
        inside = (start + w < length)[:, None] & (c < channels)[None, :]
        centred = tl.load(x + at + lanes, mask=inside, other=0.0).to(tl.float32) - m[None, :]
        z = _affine(centred, scale, shift)
        if HAS_RESIDUAL:
            z += tl.load(residual + at + lanes, mask=inside, other=0.0).to(tl.float32)
        if HAS_MASK:
            signs = mask + _mask_first(image, start, column, length, channels, LAST, BLOCK_C)
            positive = inside & ((z <= 0.0) == 0)  # NaN counts as positive
            _store_bits(signs, positive, start, column, length, channels, LAST, BLOCK_W, BLOCK_C)
        z = activate(z, ACTIVATION, negative_slope)
        tl.store(y + at + lanes, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _slope(z, ACTIVATION: tl.constexpr):
    """act'(z) of the smooth activations. At a kink torch's choice: hardswish's is 0 from the left."""
    if ACTIVATION == 3:
        s = tl.where(z > 0.0, 1.0, tl.exp(z))
    elif ACTIVATION == 4:
        p = sigmoid(z)
        s = p * (1.0 - p)
    elif ACTIVATION == 5:
        p = tanh(z)
        s = 1.0 - p * p
    elif ACTIVATION == 6:
        p = sigmoid(z)
        s = p * (1.0 + z * (1.0 - p))
    elif ACTIVATION == 7:  # the normal distribution and z times its density
        s = 0.5 + 0.5 * tl.erf(z * 0.70710678) + z * 0.39894228 * tl.exp(-0.5 * z * z)
    else:
        tl.static_assert(ACTIVATION == 8, "unknown activation, or one that its sign tells")
        s = tl.where(z < -3.0, 0.0, tl.where(z <= 3.0, z * 0.33333333 + 0.5, 1.0))
    return s


@triton.jit
def _dz(
    t, dy, x, residual, mask, m, scale, shift, column, length, channels, negative_slope, LAST: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Step t's (offset of its first element, which elements exist, x - mean, dy act'(z)); 0 where none exists."""
    steps = tl.cdiv(length, BLOCK_W)
    image, start = t // steps, t % steps * BLOCK_W
    first = _first(image, start, column, length, channels, LAST, BLOCK_C)
    lanes = _lanes(length, channels, LAST, BLOCK_W, BLOCK_C)
    w, c = start + tl.arange(0, BLOCK_W), column * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (w < length)[:, None] & (c < channels)[None, :]
    g = tl.load(dy + first + lanes, mask=inside, other=0.0).to(tl.float32)
    centred = tl.load(x + first + lanes, mask=inside, other=0.0).to(tl.float32) - m[None, :]
    if SLOPE == 1:
        bits = mask + _mask_first(image, start, column, length, channels, LAST, BLOCK_C)
        positive = _load_bits(bits, start, column, length, channels, LAST, BLOCK_W, BLOCK_C)
    elif SLOPE == 2:
        z = _affine(centred, scale, shift)
        if HAS_RESIDUAL:
            z += tl.load(residual + first + lanes, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION <= 2:
            positive = (z <= 0.0) == 0
        else:
            g *= _slope(z, ACTIVATION)
    if SLOPE != 0 and ACTIVATION == 1:  # not g * 0: g may be infinite
        g = tl.where(positive, g, 0.0)
    elif SLOPE != 0 and ACTIVATION == 2:
        g = tl.where(positive, g, g * negative_slope)
    return first, inside, centred, g


@triton.jit
def backward_kernel(
    dy, x, mean, var, weight, bias, residual, mask, dx, dresidual, dweight, dbias, parts, eps, negative_slope,
    images, across, inner_units, spread, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, TRAINING: tl.constexpr, SUMS: tl.constexpr,
    GRADIENTS: tl.constexpr, WRITE_DZ: tl.constexpr,
):  # fmt: skip
    """The pass for the sums, the pass for the gradients, or, where spread is 1, both.

    SUMS: sums of dz and dz * (x - mean) into parts (2, spread, C), or with GRADIENTS at once to dbias and dweight.
    GRADIENTS: dx = scale * (dz - dbias / m - (x - mean) * dweight / (m * sqrt(var + eps))).
    WRITE_DZ: dresidual = dz, by the last pass that reads the residual.
    """
    length, channels = _sizes(across, inner_units, LAST, ALIGN)
    columns, tiles = tl.cdiv(channels, BLOCK_C), images * tl.cdiv(length, BLOCK_W)
    column, slab = tl.program_id(0) % columns, tl.program_id(0) // columns
    c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    lanes = _lanes(length, channels, LAST, BLOCK_W, BLOCK_C)
    m, scale, shift, inverse = _parameters(mean, var, weight, bias, c, exists, eps, HAS_WEIGHT, HAS_BIAS)
    if SUMS:
        sum_dz, sum_dzx = tl.zeros((BLOCK_W, BLOCK_C), tl.float32), tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
        for t in range(slab, tiles, spread):
            first, inside, centred, dz = _dz(
                t, dy, x, residual, mask, m, scale, shift, column, length, channels, negative_slope, LAST, BLOCK_W,
                BLOCK_C, ACTIVATION, SLOPE, HAS_RESIDUAL,
            )  # fmt: skip
            if WRITE_DZ and not GRADIENTS:
                tl.store(dresidual + first + lanes, dz.to(dresidual.dtype.element_ty), mask=inside)
            sum_dz += dz
            sum_dzx += dz * centred
        db, dwx = tl.sum(sum_dz, axis=0), tl.sum(sum_dzx, axis=0)
        if GRADIENTS:
            dw = dwx * inverse
            tl.store(dbias + c, db, mask=exists)
            tl.store(dweight + c, dw, mask=exists)
        else:
            tl.store(parts + slab * channels + c, db, mask=exists)
            tl.store(parts + (spread + slab) * channels + c, dwx, mask=exists)
    elif TRAINING:
        db = tl.load(dbias + c, mask=exists, other=0.0)
        dw = tl.load(dweight + c, mask=exists, other=0.0)
    if GRADIENTS:
        for t in range(slab, tiles, spread):
            first, inside, centred, dz = _dz(
                t, dy, x, residual, mask, m, scale, shift, column, length, channels, negative_slope, LAST, BLOCK_W,
                BLOCK_C, ACTIVATION, SLOPE, HAS_RESIDUAL,
            )  # fmt: skip
            if WRITE_DZ:
                tl.store(dresidual + first + lanes, dz.to(dresidual.dtype.element_ty), mask=inside)
            if TRAINING:
                over_m = 1.0 / (tl.cast(images, tl.float32) * length)
                dz -= (db * over_m)[None, :] + centred * (dw * inverse * over_m)[None, :]
            tl.store(dx + first + lanes, (dz * scale[None, :]).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def join_sums_kernel(parts, var, dweight, dbias, eps, channels, BLOCK_C: tl.constexpr, SLABS: tl.constexpr):
    """dbias and dweight of the slabs' sums (2, SLABS, C)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    at = parts + tl.arange(0, SLABS)[:, None] * channels + c[None, :]
    db = tl.sum(tl.load(at, mask=inside[None, :], other=0.0), axis=0)
    dwx = tl.sum(tl.load(at + SLABS * channels, mask=inside[None, :], other=0.0), axis=0)
    tl.store(dbias + c, db, mask=inside)
    tl.store(dweight + c, tl.div_rn(dwx, tl.sqrt_rn(tl.load(var + c, mask=inside, other=1.0) + eps)), mask=inside)


class _Call:
    """One x, the walk over it, and the other tensors made to match."""

    def __init__(self, x: torch.Tensor, needs_rows: bool) -> None:
        """``needs_rows``: the mask's rows are those of the memory format, so the walk has to be, too."""
        self.format = suggest_memory_format(x)
        self.x = self.like_x(x)
        n, c, h, w = x.shape
        # Images of one pixel are a matrix either way, whose channels are adjacent.
        self.last = self.format == torch.channels_last or (h * w == 1 and not needs_rows)
        self.images, self.channels = (1 if self.last else n), c
        self.length = n * h * w if self.last else h * w
        across, inner = (n * h * w, c) if self.last else (c, h * w)
        self.align = math.gcd(inner, 16)
        self.walk = (self.images, across, inner // self.align)
        self.config = config(hinted(self.images), hinted(self.length), c, self.last, device_of(x))
        self.columns = triton.cdiv(c, self.config.block_c)

    def like_x(self, t: torch.Tensor) -> torch.Tensor:
        return t.contiguous(memory_format=self.format)

    def empty_like_x(self) -> torch.Tensor:
        return torch.empty_like(self.x, memory_format=self.format)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two of float32, zeros where there is nothing to launch."""
        make = torch.empty if self.x.numel() else torch.zeros
        first, second = (make(self.channels, dtype=torch.float32, device=self.x.device) for _ in range(2))
        return first, second

    def parts(self, count: int) -> torch.Tensor:
        slabs = self.config.slabs
        shape = (count, slabs, self.channels) if slabs > 1 else (0,)
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def join_block(self) -> int:
        """Channels of a program that joins the slabs."""
        return max(8, min(64, 4096 // self.config.slabs))

    @property
    def constants(self) -> dict[str, int | bool]:
        c = self.config
        return {
            "LAST": self.last, "ALIGN": self.align, "BLOCK_W": c.block_w, "BLOCK_C": c.block_c, "num_warps": c.warps,
        }  # fmt: skip


def _or(t: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """An absent operand is any tensor: the kernel never reads it."""
    return other if t is None else t


def _vector(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.contiguous()


@triton_op("pykernels::batch_norm_statistics_triton", mutates_args=("running_mean", "running_var"))
def batch_norm_statistics(
    x: torch.Tensor, running_mean: torch.Tensor | None, running_var: torch.Tensor | None, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``torch.ops.pykernels.batch_norm_statistics`` in Triton."""
    call = _Call(x, False)
    mean, var = call.vectors()
    if x.numel() == 0:
        return mean, var
    slabs, parts = call.config.slabs, call.parts(3)
    outputs = (mean, var, _or(running_mean, mean), _or(running_var, var), momentum)
    has = {"HAS_MEAN": running_mean is not None, "HAS_VAR": running_var is not None}
    launch(
        moments_kernel, (call.columns * slabs,), call.x, parts, *outputs, *call.walk, SLABS=slabs, **has,
        **call.constants,
    )  # fmt: skip
    if slabs > 1:
        block = call.join_block()
        launch(
            join_moments_kernel, (triton.cdiv(call.channels, block),), parts, *outputs, call.channels, BLOCK_C=block,
            SLABS=slabs, **has,
        )  # fmt: skip
    return mean, var


def _mask_bytes(x: torch.Tensor, last: bool) -> int:
    n, c, h, w = x.shape
    rows, inner = (n * h * w, c) if last else (n * c, h * w)
    return rows * ((inner + 7) // 8)


@triton_op("pykernels::batch_norm_act_triton")
def batch_norm_act(
    x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
    residual: torch.Tensor | None, training: bool, eps: float, activation: int, negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``torch.ops.pykernels.batch_norm_act`` in Triton; ``training`` is the gradient's affair."""
    has_mask = _has_mask(ACTIVATIONS[activation], residual)
    call = _Call(x, has_mask)
    y = call.empty_like_x()
    mask = x.new_empty(_mask_bytes(x, call.last) if has_mask else 0, dtype=torch.uint8)
    if x.numel() == 0:
        return y, mask
    launch(
        normalise_kernel, (call.columns * call.config.spread,), call.x, mean.contiguous(), var.contiguous(),
        _or(_vector(weight), mean), _or(_vector(bias), mean), call.x if residual is None else call.like_x(residual), y,
        mask if has_mask else y, eps, negative_slope, *call.walk, call.config.spread, ACTIVATION=activation,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, HAS_MASK=has_mask,
        **call.constants,
    )  # fmt: skip
    return y, mask


@triton_op("pykernels::batch_norm_act_backward_triton")
def batch_norm_act_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor | None,
    bias: torch.Tensor | None, residual: torch.Tensor | None, mask: torch.Tensor, training: bool, eps: float,
    activation: int, negative_slope: float, need_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """``torch.ops.pykernels.batch_norm_act_backward`` in Triton."""
    has_mask = mask.numel() > 0
    call = _Call(x, has_mask)
    dweight, dbias = call.vectors()
    dx, dresidual = call.empty_like_x(), call.empty_like_x() if need_residual else x.new_empty(0)
    if x.numel() == 0:
        return dx, dresidual, dweight, dbias
    slope = _ONE if activation == 0 else _FROM_MASK if has_mask else _FROM_Z
    again = slope == _FROM_Z and residual is not None
    slabs, parts = call.config.slabs, call.parts(2)
    kept = call.x if residual is None else call.like_x(residual)
    vectors = (mean.contiguous(), var.contiguous(), _or(_vector(weight), mean), _or(_vector(bias), mean))
    has = {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "TRAINING": training, **call.constants}

    def run(g: torch.Tensor, spread: int, slope: int, residual: bool, **passes: bool) -> None:
        launch(
            backward_kernel, (call.columns * spread,), g, call.x, *vectors, kept, _or(mask if has_mask else None, kept),
            dx, _or(dresidual if need_residual else None, dx), dweight, dbias, parts, eps, negative_slope,
            *call.walk, spread, ACTIVATION=activation, SLOPE=slope, HAS_RESIDUAL=residual, **passes, **has,
        )  # fmt: skip

    g = call.like_x(dy)
    if slabs == 1:
        run(g, 1, slope, again, SUMS=True, GRADIENTS=True, WRITE_DZ=need_residual)
        return dx, dresidual, dweight, dbias
    # Where the second pass would have to read the residual again, the first one writes dz, and the second reads that.
    hands_on = again and need_residual
    run(g, slabs, slope, again, SUMS=True, GRADIENTS=False, WRITE_DZ=hands_on)
    block = call.join_block()
    launch(
        join_sums_kernel, (triton.cdiv(call.channels, block),), parts, var.contiguous(), dweight, dbias, eps,
        call.channels, BLOCK_C=block, SLABS=slabs,
    )  # fmt: skip
    if hands_on:
        g, slope, again = dresidual, _ONE, False
    run(g, call.config.spread, slope, again, SUMS=False, GRADIENTS=True, WRITE_DZ=need_residual and not hands_on)
    return dx, dresidual, dweight, dbias


batch_norm_act.register_autograd(
    backward_by(lambda: torch.ops.pykernels.batch_norm_act_backward_triton), setup_context=_setup_context
)
