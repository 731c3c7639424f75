"""What the kernels of batch norm share: where a tile lies, its channels' parameters, the mask of signs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sizes(across, inner_units, LAST: tl.constexpr, ALIGN: tl.constexpr):
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
def lanes_of(length, channels, LAST: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """The offsets of a tile's elements from its first."""
    w, c = tl.arange(0, BLOCK_W)[:, None], tl.arange(0, BLOCK_C)[None, :]
    return w * channels + c if LAST else w + c * length


@triton.jit
def first_of(image, w, column, length, channels, LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """The offset of a tile's first element."""
    if LAST:
        return tl.cast(w, tl.int64) * channels + column * BLOCK_C
    else:
        return (tl.cast(image, tl.int64) * channels + column * BLOCK_C) * length + w


@triton.jit
def parameters(mean, var, weight, bias, c, inside, eps, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """mean, weight / sqrt(var + eps), bias and 1 / sqrt(var + eps) of the program's channels."""
    m = tl.load(mean + c, mask=inside, other=0.0)
    deviation = tl.sqrt_rn(tl.load(var + c, mask=inside, other=1.0) + eps)
    one = tl.full(m.shape, 1.0, tl.float32)
    inverse = tl.div_rn(one, deviation)
    scale = tl.div_rn(tl.load(weight + c, mask=inside, other=0.0), deviation) if HAS_WEIGHT else inverse
    shift = tl.load(bias + c, mask=inside, other=0.0) if HAS_BIAS else tl.zeros(m.shape, tl.float32)
    return m, scale, shift, inverse


@triton.jit
def affine(centred, scale, shift):
    """The same roundings in the forward and the backward pass, which reads the sign of z from it again."""
    shape: tl.constexpr = centred.shape
    return tl.fma(centred, tl.broadcast_to(scale[None, :], shape), tl.broadcast_to(shift[None, :], shape))


@triton.jit
def mask_first(image, w, column, length, channels, LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """The offset of the byte with a tile's first bits. A row of adjacent elements begins a new byte."""
    if LAST:
        return tl.cast(w, tl.int64) * tl.cdiv(channels, 8) + column * BLOCK_C // 8
    else:
        return (tl.cast(image, tl.int64) * channels + column * BLOCK_C) * tl.cdiv(length, 8) + w // 8


@triton.jit
def store_bits(
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
def load_bits(at, w, column, length, channels, LAST: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
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
