"""quantize_int8 in Triton: scale and zero point of each slice by its extremes, q = saturate(round(x / scale) + zero).

Slices that lie in one piece and are not too long, the rows of a matrix above all, take one kernel: a program has a few
rows, keeps them (or the first 16384 elements of a long one) in registers, and reads x once. For anything else x is seen
as (outer, channels, inner), and two kernels share each channel among `parts` programs: extremes, then the quotients,
which begin with the extremes of all parts.

Extremes are the greatest bit patterns of magnitudes: for floats without a sign they are ordered as integers are, NaN
above infinity above all numbers. So NaN is found by the same maximum, whatever a GPU's fmax does with it, and no order
of the parts changes a bit. The divisions are correctly rounded: q equals the reference's to the bit.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from pykernels.ops._triton import device_of, hinted, launch, round_even, to_int8, triton_op
from pykernels.ops.int8_matmul.autograd import refuse_backward

#: The longest row that a program of `rows_kernel` keeps whole.
_WHOLE = 16384


@triton.jit
def _magnitudes(v, inside, SYMMETRIC: tl.constexpr):
    """The bits of how far v lies below and above 0; 0 outside. Symmetric: of |v|, both."""
    if SYMMETRIC:
        above = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        above = tl.where(inside, above, 0)
        below = above
    else:
        below = tl.where(v > 0.0, 0.0, v).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        above = tl.where(v < 0.0, 0.0, v).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        below, above = tl.where(inside, below, 0), tl.where(inside, above, 0)
    return below, above


@triton.jit
def _scale(below, above, SYMMETRIC: tl.constexpr):
    """scale and zero point, float32, of slices whose extremes have these bits."""
    high = above.to(tl.float32, bitcast=True)
    if SYMMETRIC:
        s = tl.div_rn(high, tl.full(high.shape, 127.0, tl.float32))
        z = tl.zeros(high.shape, tl.float32)
    else:
        low, steps = below.to(tl.float32, bitcast=True), tl.full(high.shape, 255.0, tl.float32)
        s = tl.div_rn(high, steps) + tl.div_rn(low, steps)
        good = (s > 0.0) & (s < float("inf"))
        z = tl.div_rn(tl.where(good, low, 0.0), tl.where(good, s, 1.0)) - 128.0
        z = tl.where(good, round_even(tl.minimum(tl.maximum(z, -128.0), 127.0)), 0.0)
    return tl.where(s == 0.0, 1.0, s), z


@triton.jit
def _quotients(v, s, z, SYMMETRIC: tl.constexpr):
    """saturate(round(v / s) + z); 0 where s is infinite or NaN."""
    finite = s < float("inf")
    v = tl.div_rn(tl.where(finite, v, 0.0), tl.where(finite, s, 1.0))
    v = round_even(tl.minimum(tl.maximum(v, -1024.0), 1024.0)) + z
    return to_int8(v, -127 if SYMMETRIC else -128)


@triton.jit
def rows_kernel(
    x, q, scale, zero_point, rows, length, x_stride, q_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """x (rows, length), q (rows, q_stride >= length), zeros behind length; WHOLE: a block holds the row of q."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Rows past the end read the last one, and are not stored.
    source = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * x_stride
    to = q + row.to(tl.int64)[:, None] * q_stride
    inner = tl.arange(0, BLOCK)[None, :]
    inside, stored = inner < length, (row < rows)[:, None]
    v = tl.load(source + inner, mask=inside, other=0.0).to(tl.float32)
    below, above = _magnitudes(v, inside, SYMMETRIC)
    if not WHOLE:
        for first in range(BLOCK, length, BLOCK):
            more = tl.load(source + first + inner, mask=first + inner < length, other=0.0).to(tl.float32)
            more_below, more_above = _magnitudes(more, first + inner < length, SYMMETRIC)
            below, above = tl.maximum(below, more_below), tl.maximum(above, more_above)
    s, z = _scale(tl.max(below, axis=1), tl.max(above, axis=1), SYMMETRIC)
    tl.store(scale + row, s, mask=row < rows)
    tl.store(zero_point + row, z.to(tl.int32), mask=row < rows)
    s, z = s[:, None], z[:, None]
    tl.store(to + inner, _quotients(v, s, z, SYMMETRIC), mask=(inner < q_stride) & stored)
    if not WHOLE:
        for first in range(BLOCK, length, BLOCK):
            more = tl.load(source + first + inner, mask=first + inner < length, other=0.0).to(tl.float32)
            tl.store(to + first + inner, _quotients(more, s, z, SYMMETRIC), mask=(first + inner < q_stride) & stored)


@triton.jit
def _places(channel, i, channels, inner, length, LAYOUT: tl.constexpr):
    """Where the i-th of a channel's outer * inner elements lies. LAYOUT: 0 outer is 1, 1 inner is 1, 2 neither."""
    if LAYOUT == 0:
        place = channel * length + i
    elif LAYOUT == 1:
        place = i * channels + channel
    else:
        place = (i // inner * channels + channel) * inner + i % inner
    return place


@triton.jit
def extremes_kernel(
    x, low, high, channels, inner, length,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, LAYOUT: tl.constexpr, SYMMETRIC: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """low, high (channels, PARTS): the bits of the extremes of every PARTS-th block of a channel."""
    channel, part = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(1)
    first = part * BLOCK
    if WIDE:
        channel, first = channel.to(tl.int64), first.to(tl.int64)
    below = tl.zeros((BLOCK_C, BLOCK), tl.int32)
    above = tl.zeros((BLOCK_C, BLOCK), tl.int32)
    for start in range(first, length, PARTS * BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = (channel < channels)[:, None] & (i < length)[None, :]
        place = _places(channel[:, None], i[None, :], channels, inner, length, LAYOUT)
        v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        more_below, more_above = _magnitudes(v, inside, SYMMETRIC)
        below, above = tl.maximum(below, more_below), tl.maximum(above, more_above)
    tl.store(low + channel * PARTS + part, tl.max(below, axis=1), mask=channel < channels)
    tl.store(high + channel * PARTS + part, tl.max(above, axis=1), mask=channel < channels)


@triton.jit
def quotients_kernel(
    x, low, high, q, scale, zero_point, channels, inner, length,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, LAYOUT: tl.constexpr, SYMMETRIC: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """q of every PARTS-th block of a channel; the first part's programs store scale and zero_point (channels)."""
    channel, part = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(1)
    first = part * BLOCK
    if WIDE:
        channel, first = channel.to(tl.int64), first.to(tl.int64)
    parts = channel[:, None] * PARTS + tl.arange(0, PARTS)[None, :]
    there = (channel < channels)[:, None]
    above = tl.max(tl.load(high + parts, mask=there, other=0), axis=1)
    below = above
    if not SYMMETRIC:
        below = tl.max(tl.load(low + parts, mask=there, other=0), axis=1)
    s, z = _scale(below, above, SYMMETRIC)
    if part == 0:
        tl.store(scale + channel, s, mask=channel < channels)
        tl.store(zero_point + channel, z.to(tl.int32), mask=channel < channels)
    for start in range(first, length, PARTS * BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = there & (i < length)[None, :]
        place = _places(channel[:, None], i[None, :], channels, inner, length, LAYOUT)
        v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(q + place, _quotients(v, s[:, None], z[:, None], SYMMETRIC), mask=inside)


def _launch_rows(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, rows: int, length: int,
    x_stride: int, q_stride: int, symmetric: bool,
) -> None:  # fmt: skip
    block = min(_WHOLE, max(16, triton.next_power_of_2(hinted(length))))
    rows_of_program = max(1, 4096 // block)
    launch(
        rows_kernel, (triton.cdiv(rows, rows_of_program),), x, q, scale, zero_point, rows, length, x_stride, q_stride,
        ROWS=rows_of_program, BLOCK=block, WHOLE=q_stride <= block, SYMMETRIC=symmetric,
        num_warps=max(4, block // 1024),
    )  # fmt: skip


def quantize_rows(x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of x (m, k) quantised symmetrically: q (m, padded), zeros behind k, and their scales."""
    if x.stride(1) != 1:
        x = x.contiguous()
    m, k = x.shape
    q = torch.empty((m, padded), dtype=torch.int8, device=x.device)
    scale = torch.empty((m,), dtype=torch.float32, device=x.device)
    zero_point = torch.empty((m,), dtype=torch.int32, device=x.device)
    _launch_rows(x, q, scale, zero_point, m, k, x.stride(0), padded, True)
    return q, scale


@triton_op("pykernels::quantize_int8_triton")
def quantize_int8(x: torch.Tensor, axis: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.ops.pykernels.quantize_int8`` in Triton; axis < 0: one scale for all of x."""
    shape = () if axis < 0 else (x.shape[axis],)
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    if x.numel() == 0:
        scale = torch.ones(shape, dtype=torch.float32, device=x.device)
        return q, scale, torch.zeros(shape, dtype=torch.int32, device=x.device)
    scale = torch.empty(shape, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(shape, dtype=torch.int32, device=x.device)
    if not (axis == 0 and x.dim() == 2 and x.stride(1) == 1):  # rows of a wider matrix are read as they lie
        x = x.contiguous()
    channels = 1 if axis < 0 else x.shape[axis]
    outer, inner = (1, x.numel()) if axis < 0 else (math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :]))
    length = outer * inner
    wanted = 4 * device_of(x).multiprocessors  # programs
    in_one_piece = outer == 1
    if in_one_piece and (hinted(length) <= _WHOLE or 4 * hinted(channels) >= wanted):
        x_stride = x.stride(0) if axis == 0 else length
        _launch_rows(x, q, scale, zero_point, channels, length, x_stride, length, symmetric)
        return q, scale, zero_point
    x = x.contiguous()
    # A tile of 4096 elements, wide along the channels where they are neighbours.
    block_c = 1 if in_one_piece else triton.next_power_of_2(min(hinted(channels), max(1, 64 // hinted(inner))))
    block = min(4096 // block_c, max(16, triton.next_power_of_2(hinted(length))))
    tiles = triton.cdiv(channels, block_c)
    parts = min(256, max(1, wanted // hinted(tiles)), triton.cdiv(hinted(length), block))
    parts = triton.next_power_of_2(parts)
    low, high = torch.empty((2, channels, parts), dtype=torch.int32, device=x.device).unbind()
    options = {
        "BLOCK_C": block_c, "BLOCK": block, "PARTS": parts, "SYMMETRIC": symmetric,
        "LAYOUT": 0 if in_one_piece else 1 if inner == 1 else 2, "WIDE": x.numel() >= 2**30,
    }  # fmt: skip
    launch(extremes_kernel, (tiles, parts), x, low, high, channels, inner, length, **options)
    launch(quotients_kernel, (tiles, parts), x, low, high, q, scale, zero_point, channels, inner, length, **options)
    return q, scale, zero_point


quantize_int8.register_autograd(refuse_backward("quantize_int8"))
