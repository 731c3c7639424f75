"""int8_matmul in Triton: y = act(a_scale[m] * b_scale[n] * sum_k (a[m, k] - zero_point[m]) b[k, n] + bias[n]).

Both operands go in as rows of K, contiguous and 16 bytes apart at the least: a as it is, b as the weight of a Linear
whose `.t()` it is. Then K is read 16 bytes a thread straight into shared memory, and the matrix units (mma, wgmma on
Hopper, mfma on AMD), which want K innermost for bytes, take it from there without turning a byte. Anything else is
turned once by `rows_of_k_kernel`, padded with zeros.

The product is persistent: a few programs a multiprocessor walk over the tiles of the output, in groups of rows of tiles
so that neighbours share their part of B in L2. Rows past the end read the last row and are not stored, so that only
K's tail can need a mask. The whole epilogue happens on the sums in registers. Where there are fewer tiles than the GPU
takes, K is split, and a second kernel adds the parts (exact integers, so in any order) and has the epilogue.

A zero point costs one pass over b: sum (a - z) b = sum a b - z sum b.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from pykernels.ops._triton import Device, activate, device_of, hinted, launch, to_int8, triton_op
from pykernels.ops._tuned import tuned
from pykernels.ops.int8_matmul.autograd import matmul_backward, refuse_backward, setup_matmul
from pykernels.ops.int8_matmul.triton.quantize import quantize_int8, quantize_rows

__all__ = ["Config", "config", "int8_linear", "int8_matmul", "quantize_int8"]


@dataclass(frozen=True)
class Config:
    """Tiles of the product: BLOCK_M x BLOCK_N outputs; a step is `products` dots of BLOCK_K bytes of K each."""

    block_m: int
    block_n: int
    block_k: int
    #: Dots a step. Two for mma of sm_8x: with one, Triton prefetches fragments, and keeps each byte in a register.
    products: int
    warps: int
    #: Steps of K in shared memory.
    stages: int
    #: Programs a multiprocessor is to hold.
    resident: int
    #: Parts that K is cut into.
    splits: int = 1


#: The tiles of a kind of device. None spills in any epilogue (docs/kernels/int8_matmul/triton.md); `cycles` chooses.
_TILES = {
    "ampere": (
        Config(16, 64, 64, 2, 4, 5, 2),
        Config(16, 128, 64, 2, 4, 4, 2),
        Config(32, 128, 64, 2, 4, 4, 2),
        Config(64, 128, 64, 2, 4, 4, 2),
        Config(128, 128, 32, 2, 4, 5, 2),
        Config(128, 256, 64, 2, 8, 4, 1),
    ),
    "hopper": (
        Config(16, 64, 128, 1, 4, 5, 2),
        Config(16, 128, 128, 1, 4, 5, 2),
        Config(32, 128, 128, 1, 4, 4, 2),
        Config(64, 128, 128, 1, 4, 4, 2),
        Config(128, 128, 128, 1, 4, 3, 2),
        Config(128, 256, 128, 1, 8, 4, 1),
    ),
    "amd": (
        Config(16, 64, 128, 1, 4, 2, 2),
        Config(16, 128, 128, 1, 4, 2, 2),
        Config(32, 128, 128, 1, 4, 2, 2),
        Config(64, 128, 128, 1, 4, 2, 2),
        Config(128, 128, 64, 1, 8, 2, 1),
        Config(128, 256, 64, 1, 8, 2, 1),
    ),
}
#: Products of bytes that a multiprocessor finishes a cycle, and the share of them that a tile of so many outputs gets.
_PEAK = {"ampere": 2048, "hopper": 4096, "amd": 4096}
_SHARE = {128 * 256: 0.85, 128 * 128: 0.75, 64 * 128: 0.6}


def _kind(device: Device) -> str:
    return "amd" if device.platform == "hip" else "hopper" if device.capability == 90 else "ampere"


@triton.jit
def _epilogue(
    sums, first_m, first_n, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, zero_point, zero_point_stride,
    column_sums, bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_A_SCALE: tl.constexpr, HAS_B_SCALE: tl.constexpr,
    HAS_ZERO_POINT: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, OUT: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Stores act(a_scale * b_scale * sums + bias) as OUT: 0 int32 (the sums), 1 int8, 2 a float dtype."""
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    in_m, in_n = row < m - first_m, column < n - first_n
    if HAS_ZERO_POINT:
        z = tl.load(zero_point + (first_m + row) * zero_point_stride, mask=in_m, other=0)
        of_b = tl.load(column_sums + first_n + column, mask=in_n, other=0)
        sums -= z[:, None] * of_b[None, :]
    if OUT == 0:
        y = sums
    else:
        y = sums.to(tl.float32)
        if HAS_A_SCALE:
            y *= tl.load(a_scale + (first_m + row) * a_scale_stride, mask=in_m, other=0.0)[:, None]
        if HAS_B_SCALE:
            y *= tl.load(b_scale + (first_n + column) * b_scale_stride, mask=in_n, other=0.0)[None, :]
        if HAS_BIAS:
            y += tl.load(bias + first_n + column, mask=in_n, other=0.0)[None, :]
        y = activate(y, ACTIVATION, 0.01)
        y = to_int8(y, -128) if OUT == 1 else y.to(out.dtype.element_ty)
    if WIDE:
        row = row.to(tl.int64)
    place = out + (first_m.to(tl.int64) * n + first_n) + (row[:, None] * n + column[None, :])
    tl.store(place, y, mask=in_m[:, None] & in_n[None, :])


@triton.jit
def _store(
    sums, first_m, first_n, part, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, zero_point,
    zero_point_stride, column_sums, bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, HAS_A_SCALE: tl.constexpr,
    HAS_B_SCALE: tl.constexpr, HAS_ZERO_POINT: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The epilogue, or with SPLITS > 1 the sums as they are into the part's place."""
    if SPLITS > 1:
        _epilogue(
            sums, first_m, first_n, out + tl.cast(part, tl.int64) * m * n, m, n, a_scale, a_scale_stride, b_scale,
            b_scale_stride, zero_point, zero_point_stride, column_sums, bias, BLOCK_M, BLOCK_N, False, False, False,
            False, 0, 0, WIDE,
        )  # fmt: skip
    else:
        _epilogue(
            sums, first_m, first_n, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, zero_point,
            zero_point_stride, column_sums, bias, BLOCK_M, BLOCK_N, HAS_A_SCALE, HAS_B_SCALE, HAS_ZERO_POINT,
            HAS_BIAS, ACTIVATION, OUT, WIDE,
        )  # fmt: skip


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def matmul_kernel(
    a, b, out, m, n, k, a_stride, b_stride, a_scale, a_scale_stride, b_scale, b_scale_stride,
    zero_point, zero_point_stride, column_sums, bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRODUCTS: tl.constexpr, GROUP: tl.constexpr,
    SPLITS: tl.constexpr, EVEN_K: tl.constexpr, PIECES: tl.constexpr, HAS_A_SCALE: tl.constexpr,
    HAS_B_SCALE: tl.constexpr, HAS_ZERO_POINT: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """a (m, k) and b (n, k) int8, rows contiguous; out (m, n), or with SPLITS > 1 the parts (SPLITS, m, n) int32."""
    STEP: tl.constexpr = BLOCK_K * PRODUCTS
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    steps = tl.cdiv(k, STEP)
    steps_of_part = tl.cdiv(steps, SPLITS)
    for task in range(tl.program_id(0), tiles_m * tiles_n * SPLITS, tl.num_programs(0)):
        tile, part = task // SPLITS, task % SPLITS
        group = tile // (GROUP * tiles_n)
        rows_of_group = tl.minimum(tiles_m - group * GROUP, GROUP)
        first_m = (group * GROUP + tile % (GROUP * tiles_n) % rows_of_group) * BLOCK_M
        first_n = (tile % (GROUP * tiles_n) // rows_of_group) * BLOCK_N
        first_k = part * steps_of_part * STEP
        inner = tl.arange(0, BLOCK_K)
        row_a = tl.minimum(tl.arange(0, BLOCK_M), m - 1 - first_m)
        row_b = tl.minimum(tl.arange(0, BLOCK_N), n - 1 - first_n)
        # 64 bits for the tile, 32 inside it: the launcher keeps the strides small enough.
        a_tile = a + first_m.to(tl.int64) * a_stride + first_k
        b_tile = b + first_n.to(tl.int64) * b_stride + first_k
        in_a = row_a[:, None] * a_stride + inner[None, :]
        in_b = inner[:, None] + row_b[None, :] * b_stride
        left_of_k = k - first_k
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        for step in range(tl.minimum(steps_of_part, steps - part * steps_of_part)):
            for product in tl.static_range(PRODUCTS):
                if EVEN_K:
                    left = tl.load(a_tile + product * BLOCK_K + in_a)
                    right = tl.load(b_tile + product * BLOCK_K + in_b)
                else:
                    inside = inner < left_of_k - step * STEP - product * BLOCK_K
                    left = tl.load(a_tile + product * BLOCK_K + in_a, mask=inside[None, :], other=0)
                    right = tl.load(b_tile + product * BLOCK_K + in_b, mask=inside[:, None], other=0)
                sums = tl.dot(left, right, sums, out_dtype=tl.int32)
            a_tile += STEP
            b_tile += STEP
        # The epilogue of all columns at once would want more registers than there are beside the sums.
        if PIECES == 1:
            pieces = (sums,)
        else:
            pieces = _halves(sums, BLOCK_M, BLOCK_N)
            if PIECES == 4:
                low, high = pieces
                pieces = _halves(low, BLOCK_M, BLOCK_N // 2) + _halves(high, BLOCK_M, BLOCK_N // 2)
        for piece in tl.static_range(PIECES):
            _store(
                pieces[piece], first_m, first_n + piece * (BLOCK_N // PIECES), part, out, m, n, a_scale,
                a_scale_stride, b_scale, b_scale_stride, zero_point, zero_point_stride, column_sums, bias, BLOCK_M,
                BLOCK_N // PIECES, SPLITS, HAS_A_SCALE, HAS_B_SCALE, HAS_ZERO_POINT, HAS_BIAS, ACTIVATION, OUT, WIDE,
            )  # fmt: skip


@triton.jit
def add_parts_kernel(
    parts, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, zero_point, zero_point_stride, column_sums,
    bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, HAS_A_SCALE: tl.constexpr,
    HAS_B_SCALE: tl.constexpr, HAS_ZERO_POINT: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    OUT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Adds the parts (SPLITS, m, n) and runs the epilogue."""
    first_m, first_n = tl.program_id(1) * BLOCK_M, tl.program_id(0) * BLOCK_N
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside = (row[:, None] < m - first_m) & (column[None, :] < n - first_n)
    if WIDE:
        row = row.to(tl.int64)
    place = parts + (first_m.to(tl.int64) * n + first_n) + (row[:, None] * n + column[None, :])
    size = tl.cast(m, tl.int64) * n
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for part in tl.static_range(SPLITS):
        sums += tl.load(place + part * size, mask=inside, other=0)
    _epilogue(
        sums, first_m, first_n, out, m, n, a_scale, a_scale_stride, b_scale, b_scale_stride, zero_point,
        zero_point_stride, column_sums, bias, BLOCK_M, BLOCK_N, HAS_A_SCALE, HAS_B_SCALE, HAS_ZERO_POINT, HAS_BIAS,
        ACTIVATION, OUT, WIDE,
    )  # fmt: skip


@triton.jit
def rows_of_k_kernel(
    x, y, rows, k, padded, stride_row, stride_k, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """y (rows, padded) = x (rows, k) of any strides, zeros behind k."""
    first_row, first_k = tl.program_id(0).to(tl.int64) * BLOCK_R, tl.program_id(1).to(tl.int64) * BLOCK_K
    row, inner = first_row + tl.arange(0, BLOCK_R), first_k + tl.arange(0, BLOCK_K)
    inside = row[:, None] < rows
    source = x + row[:, None] * stride_row + inner[None, :] * stride_k
    v = tl.load(source, mask=inside & (inner[None, :] < k), other=0)
    tl.store(y + row[:, None] * padded + inner[None, :], v, mask=inside & (inner[None, :] < padded))


@triton.jit
def column_sums_kernel(b, sums, n, k, b_stride, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """sums (n) = sum over k of b (n, k)."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = b + tl.minimum(column, n - 1)[:, None].to(tl.int64) * b_stride
    total = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for first in range(0, k, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        v = tl.load(rows + inner[None, :], mask=inner[None, :] < k, other=0)
        total += tl.sum(v.to(tl.int32), axis=1)
    tl.store(sums + column, total, mask=column < n)


def shared_bytes(c: Config, device: Device) -> int:
    """What a program takes of shared memory: steps of both operands. wgmma reads one while all others are loaded."""
    wgmma = device.platform == "cuda" and device.capability == 90 and c.block_m >= 64
    buffers = c.stages if wgmma else max(1, c.stages - 1)
    return buffers * c.products * c.block_k * (c.block_m + c.block_n)


def candidates(m: int, n: int, k: int, device: Device) -> list[Config]:
    """What ``python -m pykernels tune`` times, and `config` chooses from."""
    found = []
    for tile in _TILES[_kind(device)]:
        if tile.block_m >= 4 * max(m, 16) or 4 * tile.block_m <= min(m, 64):
            continue  # mostly rows that are not there, or mostly b read again
        if shared_bytes(tile, device) > device.shared:
            continue
        if tile.block_n > 128 and n % 16 != 0:
            continue  # an output whose rows are not aligned is stored in single elements, which takes more registers
        steps = triton.cdiv(k, tile.block_k * tile.products)
        tasks = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
        for splits in (1, 2, 3, 4, 6, 8, 12, 16):
            # A part has work enough to be worth a launch, none is empty, and all programs are resident at once.
            fills = steps >= 4 * splits and (splits - 1) * triton.cdiv(steps, splits) < steps
            if splits == 1 or (fills and tasks * splits <= 2 * device.multiprocessors * tile.resident):
                found.append(replace(tile, splits=splits))
    return found


def config(m: int, n: int, k: int, device: Device) -> Config:
    """The candidate of the fewest estimated cycles, of those whose rows are neither mostly absent nor too few."""
    suitable = [c for c in candidates(m, n, k, device) if min(m, 64) <= c.block_m < 2 * max(m, 16)]
    return min(suitable, key=lambda c: cycles(c, m, n, k, device))


def cycles(c: Config, m: int, n: int, k: int, device: Device) -> float:
    """An estimate, as that of csrc/cuda/int8_matmul/choose.h: its constants were not measured either.

    A multiprocessor takes for a step of K the longer of multiplying, of reading (from L2, at most) and of waiting; so
    many times as it has programs. Then there are the epilogue, and the parts of K, which are written and read again.
    """
    rate = _PEAK[_kind(device)] * _SHARE.get(c.block_m * c.block_n, 0.4)
    tasks = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n) * c.splits
    each = triton.cdiv(tasks, device.multiprocessors)
    resident = min(each, c.resident)
    outputs = c.block_m * c.block_n
    step_k = c.block_k * c.products
    step = max(
        resident * outputs * step_k / rate,
        resident * (c.block_m + c.block_n) * step_k / 32,
        800 / max(c.stages - 1, 1),
    )
    steps = triton.cdiv(triton.cdiv(k, step_k), c.splits)
    total = triton.cdiv(each, resident) * (steps * step + 0.06 * resident * outputs + 1500)
    return total + (3000 + 8 * c.splits * m * n / 2048 if c.splits > 1 else 0)


def _rows_of_k(x: torch.Tensor, padded: int) -> torch.Tensor:
    """x (rows, K) with K contiguous and padded: x itself if it is so, or a copy."""
    rows, k = x.shape
    aligned = x.stride(0) % 16 == 0 and x.storage_offset() % 16 == 0
    if k == padded and x.stride(1) == 1 and aligned and x.stride(0) <= 2**22:
        return x
    y = torch.empty((rows, padded), dtype=torch.int8, device=x.device)
    launch(
        # Rows along the grid's first axis, which has no end; the second has one at 65535.
        rows_of_k_kernel, (triton.cdiv(rows, 64), triton.cdiv(padded, 128)), x, y, rows, k, padded, x.stride(0),
        x.stride(1), BLOCK_R=64, BLOCK_K=128,
    )  # fmt: skip
    return y


def _pieces(c: Config) -> int:
    """The parts that the epilogue is run in: 32 sums a thread or so at a time."""
    return {128: 4, 64: 2}.get(c.block_m * c.block_n // (32 * c.warps), 1)


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
    if m == 0 or n == 0:
        return torch.empty((m, n), dtype=out_dtype, device=a.device)
    padded = -(-k // 16) * 16
    return _product(
        _rows_of_k(a, padded), _rows_of_k(b.t(), padded), a_scale, b_scale, a_zero_point, bias, activation, out_dtype
    )


@triton_op("pykernels::int8_linear_triton")
def int8_linear(
    x: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor, bias: torch.Tensor | None, activation: int
) -> torch.Tensor:
    """``torch.ops.pykernels.int8_linear``: the rows of x quantised by one kernel, then the product."""
    (m, k), n = x.shape, b.shape[1]
    if m == 0 or n == 0:
        return torch.empty((m, n), dtype=x.dtype, device=x.device)
    padded = -(-k // 16) * 16
    q, scale = quantize_rows(x, padded)
    return _product(q, _rows_of_k(b.t(), padded), scale, b_scale, None, bias, activation, x.dtype)


def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor | None,
    b_scale: torch.Tensor | None,
    a_zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """a (m, k) and b (n, k), as `_rows_of_k` makes them."""
    (m, k), n = a.shape, b.shape[0]
    out = torch.empty((m, n), dtype=out_dtype, device=a.device)
    device = device_of(a)
    shape = (hinted(m), hinted(n), hinted(k))
    known = tuned("int8_matmul", a, shape)
    c = config(*shape, device) if known is None else Config(**known)
    column_sums = None
    if a_zero_point is not None:
        column_sums = torch.empty((n,), dtype=torch.int32, device=a.device)
        launch(column_sums_kernel, (triton.cdiv(n, 16),), b, column_sums, n, k, b.stride(0), BLOCK_N=16, BLOCK_K=512)
    # An absent operand is any tensor: the kernel never reads it.
    epilogue = [
        a if a_scale is None else a_scale, _stride(a_scale), a if b_scale is None else b_scale, _stride(b_scale),
        a if a_zero_point is None else a_zero_point, _stride(a_zero_point), a if column_sums is None else column_sums,
        a if bias is None else bias.contiguous(),
    ]  # fmt: skip
    options: dict[str, Any] = {
        "HAS_A_SCALE": a_scale is not None, "HAS_B_SCALE": b_scale is not None,
        "HAS_ZERO_POINT": a_zero_point is not None, "HAS_BIAS": bias is not None, "ACTIVATION": activation,
        "OUT": 0 if out_dtype == torch.int32 else 1 if out_dtype == torch.int8 else 2, "WIDE": n > 2**22,
        "SPLITS": c.splits,
    }  # fmt: skip
    target = out if c.splits == 1 else torch.empty((c.splits, m, n), dtype=torch.int32, device=a.device)
    tasks = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n) * c.splits
    launch(
        matmul_kernel, (torch.sym_min(tasks, device.multiprocessors * c.resident),),
        a, b, target, m, n, k, a.stride(0), b.stride(0), *epilogue,
        BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, PRODUCTS=c.products, GROUP=8,
        PIECES=_pieces(c),
        EVEN_K=k % (c.products * c.block_k) == 0, **options, num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    if c.splits > 1:
        launch(
            add_parts_kernel, (triton.cdiv(n, 256), triton.cdiv(m, 4)), target, out, m, n, *epilogue,
            BLOCK_M=4, BLOCK_N=256, **options,
        )  # fmt: skip
    return out


int8_matmul.register_autograd(matmul_backward(int8_matmul), setup_context=setup_matmul)
int8_linear.register_autograd(refuse_backward("int8_linear"))
