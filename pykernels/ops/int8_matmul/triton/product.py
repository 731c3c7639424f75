"""The kernels of the int8 product; how they go together is said in __init__.py."""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops._triton import to_int8
from pykernels.ops._triton_activation import activate


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
