"""int8_matmul and quantize_int8 in Triton.

The product is a persistent kernel: as many programs as the GPU has multiprocessors walk over the tiles of the output,
in groups of rows so that neighbours share their part of B in L2. Each tile is a loop over K with `tl.dot` int8 -> int32
(mma on NVIDIA, mfma on AMD), and the whole epilogue happens on the sums in registers. Where there are fewer tiles than
multiprocessors, K is split, and a second kernel adds the parts (exact integers, so in any order) and runs the epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pykernels.ops._triton import Device, activate, device_of, launch, round_even, to_int8, triton_op
from pykernels.ops._tuned import tuned


@dataclass(frozen=True)
class Config:
    """Tiles of the product: BLOCK_M x BLOCK_N outputs, BLOCK_K bytes of K a step, `splits` parts of K."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1


def config(m: int, n: int, k: int, device: Device) -> Config:
    """The tiles for a shape: large where that fills the GPU, split along K where it does not."""
    block_m = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 64 else 128
    # Two operands of `stages` steps have to fit into shared memory; AMD's is small.
    block_n = 128 if device.platform == "hip" or m <= 64 else 256 if n >= 4096 and m >= 1024 else 128
    block_k = 64 if device.platform == "hip" else 128
    stages = 2 if device.platform == "hip" else 3 if block_m * block_n >= 128 * 256 else 4
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    splits = 1
    while splits < 16 and 2 * tiles * splits <= device.multiprocessors and triton.cdiv(k, block_k) >= 8 * splits:
        splits *= 2
    return Config(block_m, block_n, block_k, warps, stages, splits)


@triton.jit
def _epilogue(
    sums, rows, columns, inside, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, bias,
    HAS_A_SCALE: tl.constexpr, HAS_B_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    """Stores act(a_scale * b_scale * sums + bias) as OUT: 0 int32 (the sums), 1 int8, 2 a float dtype."""
    where = out + rows[:, None].to(tl.int64) * n + columns[None, :]
    if OUT == 0:
        tl.store(where, sums, mask=inside)
    else:
        y = sums.to(tl.float32)
        if HAS_A_SCALE:
            y *= tl.load(a_scale + rows * a_scale_stride, mask=rows < m, other=0.0)[:, None]
        if HAS_B_SCALE:
            y *= tl.load(b_scale + columns * b_scale_stride, mask=columns < n, other=0.0)[None, :]
        if HAS_BIAS:
            y += tl.load(bias + columns, mask=columns < n, other=0.0)[None, :]
        y = activate(y, ACTIVATION, 0.01)
        if OUT == 1:
            tl.store(where, to_int8(y, -128), mask=inside)
        else:
            tl.store(where, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def matmul_kernel(
    a, b, out, parts, m, n, k, a_stride_m, a_stride_k, b_stride_k, b_stride_n,
    a_scale, a_scale_stride, b_scale, b_scale_stride, zero_point, zero_point_stride, bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    HAS_A_SCALE: tl.constexpr, HAS_B_SCALE: tl.constexpr, HAS_ZERO_POINT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """a (m, k) and b (k, n) int8, any strides; out (m, n), or with SPLITS > 1 parts (SPLITS, m, n) int32."""
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    steps = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLITS)  # of one part
    for task in range(tl.program_id(0), tiles_m * tiles_n * SPLITS, tl.num_programs(0)):
        tile, part = task // SPLITS, task % SPLITS
        group = tile // (GROUP * tiles_n)
        rows_of_group = tl.minimum(tiles_m - group * GROUP, GROUP)
        tile_m = group * GROUP + tile % (GROUP * tiles_n) % rows_of_group
        tile_n = tile % (GROUP * tiles_n) // rows_of_group
        rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # Rows past the end read the last row, and are not stored; then only K's tail needs a mask.
        first = tl.cast(part * steps * BLOCK_K, tl.int64)
        inner = tl.arange(0, BLOCK_K)
        a_tile = a + first * a_stride_k + tl.minimum(rows, m - 1)[:, None].to(tl.int64) * a_stride_m
        b_tile = b + first * b_stride_k + tl.minimum(columns, n - 1)[None, :].to(tl.int64) * b_stride_n
        a_tile += inner[None, :] * a_stride_k
        b_tile += inner[:, None] * b_stride_k
        left_of_k = k - part * steps * BLOCK_K
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        column_sums = tl.zeros((BLOCK_N,), dtype=tl.int32)
        for step in range(steps):
            inside_k = inner < left_of_k - step * BLOCK_K
            left = tl.load(a_tile, mask=inside_k[None, :], other=0)
            right = tl.load(b_tile, mask=inside_k[:, None], other=0)
            sums = tl.dot(left, right, sums, out_dtype=tl.int32)
            if HAS_ZERO_POINT:
                column_sums += tl.sum(right.to(tl.int32), axis=0)
            a_tile += BLOCK_K * a_stride_k
            b_tile += BLOCK_K * b_stride_k
        if HAS_ZERO_POINT:
            # sum (a - z) b = sum a b - z sum b
            z = tl.load(zero_point + rows * zero_point_stride, mask=rows < m, other=0)
            sums -= z[:, None] * column_sums[None, :]
        inside = (rows[:, None] < m) & (columns[None, :] < n)
        if SPLITS > 1:
            place = (tl.cast(part, tl.int64) * m + rows[:, None]) * n + columns[None, :]
            tl.store(parts + place, sums, mask=inside)
        else:
            _epilogue(
                sums, rows, columns, inside, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, bias,
                HAS_A_SCALE, HAS_B_SCALE, HAS_BIAS, ACTIVATION, OUT,
            )  # fmt: skip


@triton.jit
def reduce_kernel(
    parts, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
    HAS_A_SCALE: tl.constexpr, HAS_B_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    """Adds the parts (SPLITS, m, n) and runs the epilogue."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for part in range(SPLITS):
        place = (tl.cast(part, tl.int64) * m + rows[:, None]) * n + columns[None, :]
        sums += tl.load(parts + place, mask=inside, other=0)
    _epilogue(
        sums, rows, columns, inside, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, bias,
        HAS_A_SCALE, HAS_B_SCALE, HAS_BIAS, ACTIVATION, OUT,
    )  # fmt: skip


def _stride(t: torch.Tensor | None) -> int:
    return 0 if t is None or t.numel() == 1 else t.stride(0)


@triton_op("pykernels::int8_matmul_triton")
def int8_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor | None,
    b_scale: torch.Tensor | None,
    a_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """``torch.ops.pykernels.int8_matmul`` in Triton: the same arguments, checked by the public function."""
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=out_dtype, device=a.device)
    if m == 0 or n == 0:
        return out
    device = device_of(a)
    known = tuned("int8_matmul", a, (m, n, k))
    c = config(m, n, k, device) if known is None else Config(**known)
    parts = torch.empty((c.splits, m, n) if c.splits > 1 else (0,), dtype=torch.int32, device=a.device)
    tiles = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n)
    # An absent operand is any tensor: the kernel never reads it.
    scales = (
        a if a_scale is None else a_scale, _stride(a_scale), a if b_scale is None else b_scale, _stride(b_scale),
    )  # fmt: skip
    has = {"HAS_A_SCALE": a_scale is not None, "HAS_B_SCALE": b_scale is not None, "HAS_BIAS": bias is not None}
    kind = 0 if out_dtype == torch.int32 else 1 if out_dtype == torch.int8 else 2
    last = a if bias is None else bias.contiguous()
    launch(
        matmul_kernel, (min(tiles * c.splits, device.multiprocessors),),
        a, b, out, parts, m, n, k, a.stride(0), a.stride(1), b.stride(0), b.stride(1), *scales,
        a if a_zero_point is None else a_zero_point, _stride(a_zero_point), last,
        BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, GROUP=8, SPLITS=c.splits,
        HAS_ZERO_POINT=a_zero_point is not None, ACTIVATION=activation, OUT=kind, **has,
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    if c.splits > 1:
        launch(
            reduce_kernel, (triton.cdiv(m, 16), triton.cdiv(n, 128)),
            parts, out, m, n, *scales, last, BLOCK_M=16, BLOCK_N=128, SPLITS=c.splits, ACTIVATION=activation, OUT=kind,
            **has,
        )  # fmt: skip
    return out


@triton_op("pykernels::int8_linear_triton")
def int8_linear(
    x: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor, bias: torch.Tensor | None, activation: int
) -> torch.Tensor:
    """``torch.ops.pykernels.int8_linear``: the rows of x quantised, then the product."""
    q, scale, _ = quantize_int8(x, 0, True)
    return int8_matmul(q, b, scale, b_scale, None, bias, activation, x.dtype)


# ---- quantize_int8 ----
# x is seen as (outer, channels, inner). Two passes over it: extremes of each channel's parts, then the quotients.


@triton.jit
def extremes_kernel(x, low, high, channels, inner, length, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """low, high (channels, PARTS): the least and greatest element of every PARTS-th block of a channel; NaN if any."""
    channel, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    least = tl.full((BLOCK,), float("inf"), tl.float32)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    nan = tl.zeros((BLOCK,), tl.int32)
    for start in range(part * BLOCK, length, PARTS * BLOCK):
        i = (start + tl.arange(0, BLOCK)).to(tl.int64)  # of the channel's outer * inner elements
        at = (i // inner * channels + channel) * inner + i % inner
        v = tl.load(x + at, mask=i < length, other=0.0).to(tl.float32)
        inside = i < length
        nan |= ((v != v) & inside).to(tl.int32)
        least = tl.minimum(least, tl.where(inside, v, float("inf")))
        most = tl.maximum(most, tl.where(inside, v, float("-inf")))
    # Whether minimum and maximum hand NaN on is the hardware's affair, so it is counted apart.
    broken = tl.max(nan, axis=0) > 0
    tl.store(low + channel * PARTS + part, tl.where(broken, float("nan"), tl.min(least, axis=0)))
    tl.store(high + channel * PARTS + part, tl.where(broken, float("nan"), tl.max(most, axis=0)))


@triton.jit
def scale_kernel(low, high, scale, zero_point, PARTS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """scale, zero_point (channels) of the parts' extremes."""
    channel = tl.program_id(0)
    parts = channel * PARTS + tl.arange(0, PARTS)
    least, most = tl.load(low + parts), tl.load(high + parts)
    broken = tl.max(((least != least) | (most != most)).to(tl.int32), axis=0) > 0
    a, b = tl.min(tl.where(least != least, 0.0, least), axis=0), tl.max(tl.where(most != most, 0.0, most), axis=0)
    z = tl.zeros((), tl.float32)
    if SYMMETRIC:
        s = tl.div_rn(tl.maximum(tl.abs(a), tl.abs(b)), 127.0)
    else:
        a, b = tl.minimum(a, 0.0), tl.maximum(b, 0.0)
        s = tl.div_rn(b, 255.0) - tl.div_rn(a, 255.0)
        finite = (s > 0.0) & (s < float("inf"))
        q = tl.div_rn(tl.where(finite, a, 0.0), tl.where(finite, s, 1.0))
        z = round_even(tl.minimum(tl.maximum(-128.0 - q, -128.0), 127.0))
        z = tl.where(finite & (broken == 0), z, 0.0)
    s = tl.where(s == 0.0, 1.0, s)
    tl.store(scale + channel, tl.where(broken, float("nan"), s))
    tl.store(zero_point + channel, (z + 0.0).to(tl.int32))


@triton.jit
def quotients_kernel(x, scale, zero_point, q, channels, inner, n, LOWEST: tl.constexpr, BLOCK: tl.constexpr):
    """q = saturate(round(x / scale) + zero_point); 0 in channels with NaN or infinity."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = i // inner % channels
    inside = i < n
    s = tl.load(scale + channel, mask=inside, other=1.0)
    z = tl.load(zero_point + channel, mask=inside, other=0)
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    finite = s < float("inf")  # false for NaN too
    v = tl.div_rn(tl.where(finite, v, 0.0), tl.where(finite, s, 1.0))
    v = round_even(tl.minimum(tl.maximum(v, -1024.0), 1024.0)) + z.to(tl.float32)
    tl.store(q + i, to_int8(v, LOWEST), mask=inside)


@triton_op("pykernels::quantize_int8_triton")
def quantize_int8(x: torch.Tensor, axis: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.ops.pykernels.quantize_int8`` in Triton; axis < 0: one scale for all of x."""
    x = x.contiguous()
    channels = 1 if axis < 0 else x.shape[axis]
    inner = x.numel() if axis < 0 else x[(0,) * (axis + 1)].numel() if x.numel() else 0
    shape = () if axis < 0 else (channels,)
    q = torch.empty_like(x, dtype=torch.int8)
    scale = torch.ones(shape, dtype=torch.float32, device=x.device)
    zero_point = torch.zeros(shape, dtype=torch.int32, device=x.device)
    if x.numel() == 0:
        return q, scale, zero_point
    length = x.numel() // channels
    block = 1024
    # Enough parts to fill the GPU where there are few channels.
    wanted = max(1, min(triton.cdiv(length, block), 4 * device_of(x).multiprocessors // channels))
    parts = min(256, triton.next_power_of_2(wanted))
    low, high = (torch.empty((channels, parts), dtype=torch.float32, device=x.device) for _ in range(2))
    launch(extremes_kernel, (channels, parts), x, low, high, channels, inner, length, BLOCK=block, PARTS=parts)
    launch(scale_kernel, (channels,), low, high, scale, zero_point, PARTS=parts, SYMMETRIC=symmetric)
    launch(
        quotients_kernel,
        (triton.cdiv(x.numel(), block),),
        x,
        scale,
        zero_point,
        q,
        channels,
        inner,
        x.numel(),
        LOWEST=-127 if symmetric else -128,
        BLOCK=block,
    )
    return q, scale, zero_point
