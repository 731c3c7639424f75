"""The dense products of the LSTM's Triton ops: out = a b (+ bias_0 + bias_1) (+ out); a (m, k), b (k, n), any strides.

A program makes a tile BLOCK_M x BLOCK_N of out and walks over k; programs are numbered in groups of row tiles, so that
neighbours in time share their columns of b in L2. Because the strides are free, a transpose costs no copy: x W^T,
d(gates) W and d(gates)^T x are one kernel. Where there are fewer tiles than multiprocessors, as for the gradients of
weights, whose k is all rows of a sequence, k is split: each part has a float32 result of its own, and a second kernel
adds them in order, so the bits are the same from run to run. Sums are float32; float32 operands go through the matrix
unit as three products of tf32, which keep its precision (on AMD as they are).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pykernels.ops._triton import INTERPRETER, Device, device_of, dot, hinted, launch, matrix_precision
from pykernels.ops._tuned import tuned


@dataclass(frozen=True)
class Config:
    """Tiles BLOCK_M x BLOCK_N, BLOCK_K of k a step, `splits` parts of k."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1


def config(m: int, n: int, k: int, size: int, device: Device) -> Config:
    """The tiles for operands of `size` bytes an element: as large as registers allow and the GPU is filled with."""
    if device == INTERPRETER:  # a program costs a millisecond an operation there, whatever its size
        return Config(64, 64, 64, 4, 1, 2 if k >= 512 and m * n <= 4096 else 1)
    wide = size == 2  # three products of tf32 take three times the registers
    block_m = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 64 or not wide else 128
    block_n = 128 if wide and n > 64 else 64
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    if tiles < device.multiprocessors and block_n == 128:
        block_n = 64
        tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    block_k = 32 if not wide or device.platform == "hip" else 64
    stages = 2 if device.platform == "hip" else 3
    warps = 8 if block_m * block_n >= 128 * 128 else 4
    splits = 1
    while splits < 32 and 2 * tiles * splits <= device.multiprocessors and k >= 8 * splits * block_k:
        splits *= 2
    return Config(block_m, block_n, block_k, warps, stages, splits)


@triton.jit
def _finish(sums, rows, columns, inside, out, out_stride_m, m, n, bias_0, bias_1, HAS_BIAS: tl.constexpr,
            ADD: tl.constexpr):  # fmt: skip
    """out = sums (+ bias_0 + bias_1) (+ out), rounded once."""
    if HAS_BIAS:
        columns_in = tl.minimum(columns, n - 1)
        sums += (tl.load(bias_0 + columns_in).to(tl.float32) + tl.load(bias_1 + columns_in).to(tl.float32))[None, :]
    where = out + rows[:, None].to(tl.int64) * out_stride_m + columns[None, :]
    if ADD:
        sums += tl.load(where, mask=inside, other=0.0).to(tl.float32)
    tl.store(where, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def product_kernel(
    a, b, out, parts, m, n, k, a_stride_m, a_stride_k, b_stride_k, b_stride_n, out_stride_m, bias_0, bias_1,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of out, or with SPLITS > 1 of one part's sums, parts (SPLITS, m, n) float32."""
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    part, tile = tl.program_id(0) % SPLITS, tl.program_id(0) // SPLITS
    group = tile // (GROUP * tiles_n)
    rows_of_group = tl.minimum(tiles_m - group * GROUP, GROUP)
    first_m = (group * GROUP + tile % (GROUP * tiles_n) % rows_of_group) * BLOCK_M
    first_n = (tile % (GROUP * tiles_n) // rows_of_group) * BLOCK_N
    # Rows past the end read the last row, and are not stored; then only k's tail needs a mask. But where it is rows
    # that are contiguous, that would take the wide loads, and a mask doesn't. Offsets within a tile are 32 bits wide:
    # 64 would take twice the registers.
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside_m, inside_n = rows < m - first_m, columns < n - first_n
    if A_ALONG_K:
        rows = tl.minimum(rows, m - 1 - first_m)
    if B_ALONG_K:
        columns = tl.minimum(columns, n - 1 - first_n)
    inner = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLITS)  # of one part
    first = part * steps * BLOCK_K
    a += first_m.to(tl.int64) * a_stride_m + tl.cast(first, tl.int64) * a_stride_k
    b += first_n.to(tl.int64) * b_stride_n + tl.cast(first, tl.int64) * b_stride_k
    a_tile = a + (rows[:, None] * a_stride_m + inner[None, :] * a_stride_k)
    b_tile = b + (inner[:, None] * b_stride_k + columns[None, :] * b_stride_n)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(steps):
        inside_k = inner < k - first - step * BLOCK_K
        if A_ALONG_K:
            left = tl.load(a_tile, mask=inside_k[None, :], other=0.0)
        else:
            left = tl.load(a_tile, mask=inside_k[None, :] & inside_m[:, None], other=0.0)
        if B_ALONG_K:
            right = tl.load(b_tile, mask=inside_k[:, None], other=0.0)
        else:
            right = tl.load(b_tile, mask=inside_k[:, None] & inside_n[None, :], other=0.0)
        sums = dot(left, right, sums, PRECISION)
        a_tile += BLOCK_K * a_stride_k
        b_tile += BLOCK_K * b_stride_k
    rows = first_m + tl.arange(0, BLOCK_M)
    columns = first_n + tl.arange(0, BLOCK_N)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if SPLITS > 1:
        tl.store(parts + (tl.cast(part, tl.int64) * m + rows[:, None]) * n + columns[None, :], sums, mask=inside)
    else:
        _finish(sums, rows, columns, inside, out, out_stride_m, m, n, bias_0, bias_1, HAS_BIAS, ADD)


@triton.jit
def sum_parts_kernel(
    parts, out, m, n, out_stride_m, bias_0, bias_1,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """out of the parts' sums, added in their order."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    place = parts + rows[:, None].to(tl.int64) * n + columns[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for part in range(SPLITS):
        sums += tl.load(place + tl.cast(part, tl.int64) * m * n, mask=inside, other=0.0)
    _finish(sums, rows, columns, inside, out, out_stride_m, m, n, bias_0, bias_1, HAS_BIAS, ADD)


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor | None = None,
    *,
    bias: tuple[Tensor, Tensor] | None = None,
    add: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``a @ b``, with both biases (n,) added, or added onto ``out``; deterministic.

    Args:
        a: (m, k) with any strides, ``a.t()`` included.
        b: (k, n) with any strides, of a's dtype.
        out: (m, n) with contiguous rows, to write to; None makes one.
        bias: two vectors (n,), contiguous.
        add: add to what ``out`` holds.
        dtype: of the result where ``out`` is None; None takes a's.
    """
    (m, k), n = a.shape, b.shape[1]
    if out is None:
        out = torch.empty((m, n), dtype=a.dtype if dtype is None else dtype, device=a.device)
    if m == 0 or n == 0:
        return out
    device = device_of(a)
    known = tuned("lstm_product", a, (m, n, k))
    c = config(hinted(m), n, hinted(k), a.element_size(), device) if known is None else Config(**known)
    parts = torch.empty((c.splits, m, n) if c.splits > 1 else (0,), dtype=torch.float32, device=a.device)
    biases = (a, a) if bias is None else bias  # absent: any tensor, which the kernel never reads
    tiles = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n)
    launch(
        product_kernel, (tiles * c.splits,),
        a, b, out, parts, m, n, k, a.stride(0), a.stride(1), b.stride(0), b.stride(1), out.stride(0), *biases,
        BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, GROUP=8, SPLITS=c.splits,
        A_ALONG_K=a.stride(1) == 1, B_ALONG_K=b.stride(0) == 1, HAS_BIAS=bias is not None, ADD=add,
        PRECISION=matrix_precision(a.dtype, False, device), num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    if c.splits > 1:
        launch(
            sum_parts_kernel, (triton.cdiv(m, 16), triton.cdiv(n, 64)),
            parts, out, m, n, out.stride(0), *biases, BLOCK_M=16, BLOCK_N=64, SPLITS=c.splits,
            HAS_BIAS=bias is not None, ADD=add,
        )  # fmt: skip
    return out
