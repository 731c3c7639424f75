"""The kernels of the LSTM's forward; how they go together is said in __init__.py."""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops._triton import arrive, dot, wait_for
from pykernels.ops._triton_activation import sigmoid, tanh


@triton.jit
def _rows_of(t, starts, time, batch, PACKED: tl.constexpr):
    """The first row of time t and its number of sequences; no sequences before and after the whole."""
    inside = (t >= 0) & (t < time)
    if PACKED:
        first = tl.load(starts + t, mask=inside, other=0)
        last = tl.load(starts + t + 1, mask=inside, other=0)
        return first, tl.minimum(last - first, batch)
    else:
        return t * batch, tl.where(inside, batch, 0)


@triton.jit
def _gate_rows(tile, hidden, UNITS: tl.constexpr):
    """The rows of W for a tile's columns (unit, gate); past the last unit, the last."""
    column = tl.arange(0, 4 * UNITS)
    return column % 4 * hidden + tl.minimum(tile * UNITS + column // 4, hidden - 1)


@triton.jit
def _load_rows(rows, others, inner, k, inside, knows, MIXED: tl.constexpr):
    """(SPLITS, BLOCK_B, BLOCK_K) at the pointers `rows` (BLOCK_B,); with MIXED at `others` where not `knows`.

    Past the first-level cache, which doesn't see what other multiprocessors store.
    """
    at = inner[:, None, :]
    if MIXED:
        first = tl.load(
            rows[None, :, None] + at, mask=(at < k) & (inside & knows)[None, :, None], other=0.0, cache_modifier=".cg"
        )
        second = tl.load(others[None, :, None] + at, mask=(at < k) & (inside & (knows == 0))[None, :, None], other=0.0)
        return tl.where(knows[None, :, None], first, second)
    else:
        return tl.load(rows[None, :, None] + at, mask=(at < k) & inside[None, :, None], other=0.0, cache_modifier=".cg")


@triton.jit
def _multiply(
    sums, rows, others, inside, knows, w, w_rows, w_stride, k,
    SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, MIXED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums (SPLITS, BLOCK_B, 4 UNITS) += a w'; the rows of a as `_load_rows` has them."""
    part = tl.arange(0, SPLITS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    columns = w + w_rows.to(tl.int64) * w_stride
    for start in range(0, k, SPLITS * BLOCK_K):
        inner = start + part
        left = _load_rows(rows, others, inner, k, inside, knows, MIXED)
        right = tl.load(columns[None, None, :] + inner[:, :, None], mask=(inner < k)[:, :, None], other=0.0)
        sums = dot(left, right, sums, PRECISION)
    return sums


@triton.jit
def _gates(sums, BLOCK_B: tl.constexpr, UNITS: tl.constexpr):
    """The four gates (BLOCK_B, UNITS) of the parts' sums (SPLITS, BLOCK_B, 4 UNITS)."""
    ig, fo = tl.split(tl.reshape(tl.sum(sums, axis=0), (BLOCK_B, UNITS, 2, 2)))
    i, g = tl.split(ig)
    f, o = tl.split(fo)
    return i, f, g, o


@triton.jit
def _load_gates(at, hidden, inside):
    i = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(at + hidden, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(at + 2 * hidden, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(at + 3 * hidden, mask=inside, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit
def _inputs(
    sums, c, c0, place, first, t, b, u, known, hidden, sums_step, sums_batch, inside,
    PACKED: tl.constexpr,
):  # fmt: skip
    """The input's part of the four gates, and c of the step before: (BLOCK_B, UNITS) each, float32."""
    row = tl.cast(t, tl.int64) * sums_step + b.to(tl.int64) * sums_batch
    if PACKED:
        row = tl.cast(first, tl.int64) + b
    sums_of = sums + row[:, None] * (4 * hidden) + u[None, :]
    i, f, g, o = _load_gates(sums_of, hidden, inside)
    goes_on = inside & (b < known)[:, None]
    before = tl.load(c + place, mask=goes_on, other=0.0)
    begins = tl.load(c0 + place, mask=inside & (b >= known)[:, None], other=0.0).to(tl.float32)
    return i, f, g, o, tl.where(goes_on, before, begins)


@triton.jit
def _cell(i, f, g, o, c):
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def _save(reserve, first, b, u, rows, hidden, i, f, g, o, c, inside):
    """To a cell's part of the reserve: gates (rows, 4, H), then c (rows, H)."""
    kind = reserve.dtype.element_ty
    row = (tl.cast(first, tl.int64) + b)[:, None]
    at = reserve + row * (4 * hidden) + u[None, :]
    tl.store(at, i.to(kind), mask=inside)
    tl.store(at + hidden, f.to(kind), mask=inside)
    tl.store(at + 2 * hidden, g.to(kind), mask=inside)
    tl.store(at + 3 * hidden, o.to(kind), mask=inside)
    tl.store(reserve + (4 * tl.cast(rows, tl.int64) + row) * hidden + u[None, :], c.to(kind), mask=inside)


@triton.jit
def _finish(
    i, f, g, o, c_before, c, output_of, h_n, c_n, reserve, place, first, b, u, rows, hidden, out_batch, ends, inside,
    SAVE: tl.constexpr,
):  # fmt: skip
    """The cell, and the stores of all that comes of it."""
    i, f, g, o, c_after, h = _cell(i, f, g, o, c_before)
    h = h.to(output_of.dtype.element_ty)
    tl.store(output_of + b[:, None].to(tl.int64) * out_batch + u[None, :], h, mask=inside)
    tl.store(c + place, c_after, mask=inside)
    last = inside & ends[:, None]
    tl.store(h_n + place, h, mask=last)
    tl.store(c_n + place, c_after.to(c_n.dtype.element_ty), mask=last)
    if SAVE:
        _save(reserve, first, b, u, rows, hidden, i, f, g, o, c_after, inside)


# A launch a step would be compiled for begin and end of 0, 1, multiples of 16 and others.
@triton.jit(do_not_specialize=["begin", "end", "time", "batch"])
def steps_kernel(
    sums_0, sums_1, w_0, w_1, h0, c0, c, output, h_n, c_n, reserve, starts, counters,
    begin, end, time, batch, hidden, rows, sums_step, sums_batch, out_step, out_batch, state_offset, reserve_offset,
    BLOCK_B: tl.constexpr, UNITS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, TAIL_K: tl.constexpr,
    RESIDENT: tl.constexpr, PERSISTENT: tl.constexpr, APART: tl.constexpr, PACKED: tl.constexpr,
    DIRECTIONS: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr, AMD: tl.constexpr,
):  # fmt: skip
    """Steps begin to end of one layer; a step's time runs backwards in the second direction.

    sums_0, sums_1 (rows, 4H) float32, row t * sums_step + b * sums_batch, and w_0, w_1 (4H, H), of each direction;
    h0, c0, c (DIRECTIONS, B, H), c float32; output: row t * out_step + b * out_batch elements, the directions beside
    each other; h_n, c_n at state_offset and reserve at reserve_offset: the layer's. PACKED: `starts` (time + 1) has
    the first rows of the steps, which are out_batch apart.
    """
    group = tl.program_id(1)
    tiles_b = tl.cdiv(batch, BLOCK_B)
    direction = group // tiles_b
    b = group % tiles_b * BLOCK_B + tl.arange(0, BLOCK_B)
    counter = counters + group * APART
    w = w_0
    sums = sums_0
    if DIRECTIONS == 2 and direction == 1:
        w = w_1
        sums = sums_1
    h_n += state_offset
    c_n += state_offset
    reserve += tl.cast(reserve_offset, tl.int64) + tl.cast(direction, tl.int64) * 5 * rows * hidden
    output += direction * hidden
    states = tl.cast(direction, tl.int64) * batch * hidden
    h0_rows = h0 + states + b.to(tl.int64) * hidden
    tiles = tl.cdiv(hidden, UNITS)

    if RESIDENT:
        part = tl.arange(0, SPLITS)[:, None] * (BLOCK_K + TAIL_K)
        inner = part + tl.arange(0, BLOCK_K)[None, :]
        columns = w + _gate_rows(tl.program_id(0), hidden, UNITS).to(tl.int64) * hidden
        weights = tl.load(columns[None, None, :] + inner[:, :, None], mask=(inner < hidden)[:, :, None], other=0.0)
        if TAIL_K > 0:
            inner_tail = part + BLOCK_K + tl.arange(0, TAIL_K)[None, :]
            weights_tail = tl.load(
                columns[None, None, :] + inner_tail[:, :, None], mask=(inner_tail < hidden)[:, :, None], other=0.0
            )

    for step in range(begin, end):
        t = step
        before = step - 1
        after = step + 1
        if DIRECTIONS == 2 and direction == 1:
            t = time - 1 - step
            before = t + 1
            after = t - 1
        first, count = _rows_of(t, starts, time, batch, PACKED)
        first_before, known = _rows_of(before, starts, time, batch, PACKED)
        _, goes_on = _rows_of(after, starts, time, batch, PACKED)
        if PACKED:
            output_of = output + tl.cast(first, tl.int64) * out_batch
            output_before = output + tl.cast(first_before, tl.int64) * out_batch
        else:
            output_of = output + tl.cast(t, tl.int64) * out_step
            output_before = output + tl.cast(before, tl.int64) * out_step
        # Sequences that the step before had not, begin: from h0. Pointers are not chosen between, for then a compiler
        # loses their alignment (or, Triton 3.6 on AMD, fails).
        h_rows = output_before + b.to(tl.int64) * out_batch
        knows = b < known
        sequences = b < count
        works = count > group % tiles_b * BLOCK_B
        arrivals = (step - begin) * tl.num_programs(0)

        if RESIDENT:
            u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
            inside = sequences[:, None] & (u < hidden)[None, :]
            place = states + b[:, None].to(tl.int64) * hidden + u[None, :]
            x_i, x_f, x_g, x_o, c_before = _inputs(
                sums, c, c0, place, first, t, b, u, known, hidden, sums_step, sums_batch, inside,
                PACKED,
            )  # fmt: skip
            if PERSISTENT:
                wait_for(counter, arrivals)
            if works:
                products = tl.zeros((SPLITS, BLOCK_B, 4 * UNITS), tl.float32)
                if PACKED or known > 0:
                    h = _load_rows(h_rows, h0_rows, inner, hidden, sequences, knows, PACKED)
                else:
                    h = _load_rows(h0_rows, h0_rows, inner, hidden, sequences, knows, False)
                products = dot(h, weights, products, PRECISION)
                if TAIL_K > 0:
                    if PACKED or known > 0:
                        h_tail = _load_rows(h_rows, h0_rows, inner_tail, hidden, sequences, knows, PACKED)
                    else:
                        h_tail = _load_rows(h0_rows, h0_rows, inner_tail, hidden, sequences, knows, False)
                    products = dot(h_tail, weights_tail, products, PRECISION)
                i, f, g, o = _gates(products, BLOCK_B, UNITS)
                _finish(
                    i + x_i, f + x_f, g + x_g, o + x_o, c_before, c, output_of, h_n, c_n, reserve, place, first, b, u,
                    rows, hidden, out_batch, b >= goes_on, inside, SAVE,
                )  # fmt: skip
        else:
            if PERSISTENT:
                wait_for(counter, arrivals)
            if works:
                for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
                    u = tile * UNITS + tl.arange(0, UNITS)
                    inside = sequences[:, None] & (u < hidden)[None, :]
                    place = states + b[:, None].to(tl.int64) * hidden + u[None, :]
                    products = tl.zeros((SPLITS, BLOCK_B, 4 * UNITS), tl.float32)
                    w_rows = _gate_rows(tile, hidden, UNITS)
                    if PACKED or known > 0:
                        products = _multiply(
                            products, h_rows, h0_rows, sequences, knows, w, w_rows, hidden, hidden, SPLITS, BLOCK_K,
                            PACKED, PRECISION,
                        )  # fmt: skip
                    else:
                        products = _multiply(
                            products, h0_rows, h0_rows, sequences, knows, w, w_rows, hidden, hidden, SPLITS, BLOCK_K,
                            False, PRECISION,
                        )  # fmt: skip
                    x_i, x_f, x_g, x_o, c_before = _inputs(
                        sums, c, c0, place, first, t, b, u, known, hidden, sums_step, sums_batch,
                        inside, PACKED,
                    )  # fmt: skip
                    i, f, g, o = _gates(products, BLOCK_B, UNITS)
                    _finish(
                        i + x_i, f + x_f, g + x_g, o + x_o, c_before, c, output_of, h_n, c_n, reserve, place, first,
                        b, u, rows, hidden, out_batch, b >= goes_on, inside, SAVE,
                    )  # fmt: skip
        if PERSISTENT:
            arrive(counter, AMD)


@triton.jit
def cell_kernel(
    x, h, c, w_ih, w_hh, b_ih, b_hh, h_out, c_out, reserve, batch, features, hidden,
    BLOCK_B: tl.constexpr, UNITS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step: x (B, I) and h (B, H) are multiplied in one launch, so nothing is read or written twice."""
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    sequences = b < batch
    inside = sequences[:, None] & (u < hidden)[None, :]
    rows = tl.minimum(b, batch - 1).to(tl.int64)
    w_rows = _gate_rows(tl.program_id(0), hidden, UNITS)
    place = b[:, None].to(tl.int64) * hidden + u[None, :]
    sums = tl.zeros((SPLITS, BLOCK_B, 4 * UNITS), tl.float32)
    x += rows * features
    h += rows * hidden
    sums = _multiply(
        sums, x, x, sequences, sequences, w_ih, w_rows, features, features, SPLITS, BLOCK_K, False, PRECISION
    )
    sums = _multiply(sums, h, h, sequences, sequences, w_hh, w_rows, hidden, hidden, SPLITS, BLOCK_K, False, PRECISION)
    i, f, g, o = _gates(sums, BLOCK_B, UNITS)
    if HAS_BIAS:
        units = (u < hidden)[None, :]
        i_0, f_0, g_0, o_0 = _load_gates(b_ih + u[None, :], hidden, units)
        i_1, f_1, g_1, o_1 = _load_gates(b_hh + u[None, :], hidden, units)
        i, f, g, o = i + (i_0 + i_1), f + (f_0 + f_1), g + (g_0 + g_1), o + (o_0 + o_1)
    c_before = tl.load(c + place, mask=inside, other=0.0).to(tl.float32)
    i, f, g, o, c_after, h_after = _cell(i, f, g, o, c_before)
    tl.store(h_out + place, h_after.to(h_out.dtype.element_ty), mask=inside)
    tl.store(c_out + place, c_after.to(c_out.dtype.element_ty), mask=inside)
    if SAVE:
        _save(reserve, 0, b, u, batch, hidden, i, f, g, o, c_after, inside)
