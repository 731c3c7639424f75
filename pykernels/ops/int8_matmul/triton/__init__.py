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

from typing import Any

import torch
import triton

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._triton import device_of, hinted, launch, triton_op
from pykernels.ops._tuned import tuned
from pykernels.ops.int8_matmul.autograd import matmul_backward, refuse_backward, setup_matmul
from pykernels.ops.int8_matmul.triton.config import Config, config, pieces
from pykernels.ops.int8_matmul.triton.product import (
    add_parts_kernel,
    column_sums_kernel,
    matmul_kernel,
    rows_of_k_kernel,
)
from pykernels.ops.int8_matmul.triton.quantize import quantize_int8, quantize_rows

__all__ = ["int8_linear", "int8_matmul", "quantize_int8"]


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
        "HAS_ZERO_POINT": a_zero_point is not None, "HAS_BIAS": bias is not None,
        "ACTIVATION": ACTIVATIONS[activation],
        "OUT": 0 if out_dtype == torch.int32 else 1 if out_dtype == torch.int8 else 2, "WIDE": n > 2**22,
        "SPLITS": c.splits,
    }  # fmt: skip
    target = out if c.splits == 1 else torch.empty((c.splits, m, n), dtype=torch.int32, device=a.device)
    tasks = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n) * c.splits
    launch(
        matmul_kernel, (torch.sym_min(tasks, device.multiprocessors * c.resident),),
        a, b, target, m, n, k, a.stride(0), b.stride(0), *epilogue,
        BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, PRODUCTS=c.products, GROUP=8,
        PIECES=pieces(c),
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
