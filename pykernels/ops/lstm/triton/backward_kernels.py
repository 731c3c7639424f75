"""The kernels of the LSTM's backward; how they go together is said in backward.py."""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops._triton import arrive, dot, wait_for
from pykernels.ops._triton_activation import tanh


@triton.jit
def _rows_of(t, starts, steps, batch, PACKED: tl.constexpr):
    """The first row of time step t and its number of sequences; none before and after the sequence."""
    inside = (t >= 0) & (t < steps)
    if PACKED:
        first = tl.load(starts + t, mask=inside, other=0)
        return first, tl.load(starts + t + 1, mask=inside, other=0) - first
    else:
        first = tl.where(inside, t, 0) * batch
        return first, tl.where(inside, batch, 0)


@triton.jit
def _saved(
    first, active, first_next, next_active, known, direction, sequences, units, batch, hidden, rows, reserve, c0,
    grad_output, grad_h_n, grad_c_n,
    DIRECTIONS: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_H: tl.constexpr, HAS_C: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """What a step reads of others than the step before it: gates, c, c of the step before in time, and gradients."""
    # Offsets in a tile are 32 bits wide.
    inside = (sequences < active)[:, None] & (units < hidden)[None, :]
    tile = sequences[:, None] * hidden + units[None, :]
    gates = reserve + tl.cast(direction, tl.int64) * 5 * rows * hidden
    states = gates + tl.cast(rows, tl.int64) * 4 * hidden
    gates_tile = gates + tl.cast(first, tl.int64) * 4 * hidden + (sequences[:, None] * (4 * hidden) + units[None, :])
    i = tl.load(gates_tile, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(gates_tile + hidden, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gates_tile + 2 * hidden, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(gates_tile + 3 * hidden, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(states + tl.cast(first, tl.int64) * hidden + tile, mask=inside, other=0.0).to(tl.float32)
    goes_on = (sequences < next_active)[:, None]
    before = tl.load(states + tl.cast(first_next, tl.int64) * hidden + tile, mask=inside & goes_on, other=0.0)
    state = tl.cast(direction, tl.int64) * batch * hidden + tile
    begin = tl.load(c0 + state, mask=inside & (goes_on == 0), other=0.0)
    c_before = before.to(tl.float32) + begin.to(tl.float32)  # one of them is 0
    given = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
    last_h = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
    last_c = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
    if HAS_OUTPUT:
        output = grad_output + (tl.cast(first, tl.int64) * DIRECTIONS + direction) * hidden
        output_tile = output + (sequences[:, None] * (DIRECTIONS * hidden) + units[None, :])
        given = tl.load(output_tile, mask=inside, other=0.0).to(tl.float32)
    enters = inside & (sequences >= known)[:, None]
    if HAS_H:
        last_h = tl.load(grad_h_n + state, mask=enters, other=0.0).to(tl.float32)
    if HAS_C:
        last_c = tl.load(grad_c_n + state, mask=enters, other=0.0).to(tl.float32)
    return i, f, g, o, c, c_before, given, last_h, last_c


@triton.jit
def _weights(
    w_t, direction, units, hidden, PART: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, CHUNKS: tl.constexpr
):
    """One part of W_hh' (SPLITS, BLOCK_K, units), to hold; nothing past the last part."""
    if PART < CHUNKS:
        k = tl.arange(0, SPLITS)[:, None, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :, None]
        k += PART * (SPLITS * BLOCK_K)
        from_unit = w_t + tl.cast(direction, tl.int64) * 4 * hidden * hidden
        tile = from_unit + (tl.minimum(units, hidden - 1)[None, None, :] * (4 * hidden) + k)
        return tl.load(tile, mask=k < 4 * hidden, other=0.0)
    else:
        return 0


@triton.jit
def _product(
    d_gates, w_t, w_0, w_1, w_2, w_3, first, known, direction, sequences, units, hidden,
    DIRECTIONS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_gates W_hh of the step before, whose rows begin at `first`, for sequences x units."""
    # Sequences that are not known, and units beyond the last, read another's row, and nobody uses the result.
    read = tl.maximum(tl.minimum(sequences, known - 1), 0)
    units = tl.minimum(units, hidden - 1)
    inner = 4 * hidden
    from_row = d_gates + (tl.cast(first, tl.int64) * DIRECTIONS + direction) * inner
    from_unit = w_t + tl.cast(direction, tl.int64) * inner * hidden
    k_end = tl.where(known > 0, inner, 0)
    if SPLITS == 1:
        k_left = tl.arange(0, BLOCK_K)
        left_tile = from_row + (read[:, None] * (DIRECTIONS * inner) + k_left[None, :])
        right_tile = from_unit + (units[None, :] * inner + k_left[:, None])
        sums = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
        for k in range(0, k_end, BLOCK_K):
            left = tl.load(left_tile + k, mask=k_left[None, :] < k_end - k, other=0.0, cache_modifier=".cg")
            right = tl.load(right_tile + k, mask=k_left[:, None] < k_end - k, other=0.0)
            sums = dot(left, right, sums, PRECISION)
        return sums
    else:
        slices = tl.arange(0, SPLITS)[:, None, None] * BLOCK_K
        k_left = slices + tl.arange(0, BLOCK_K)[None, None, :]
        k_right = slices + tl.arange(0, BLOCK_K)[None, :, None]
        left_tile = from_row + (read[None, :, None] * (DIRECTIONS * inner) + k_left)
        parts = tl.zeros((SPLITS, BLOCK_B, BLOCK_U), tl.float32)
        if CHUNKS > 0:
            # Each is asked for while the one before it is multiplied.
            part: tl.constexpr = SPLITS * BLOCK_K
            d_0 = tl.load(left_tile, mask=k_left < k_end, other=0.0, cache_modifier=".cg")
            if CHUNKS > 1:
                d_1 = tl.load(left_tile + part, mask=k_left < k_end - part, other=0.0, cache_modifier=".cg")
            parts = dot(d_0, w_0, parts, PRECISION)
            if CHUNKS > 2:
                d_2 = tl.load(left_tile + 2 * part, mask=k_left < k_end - 2 * part, other=0.0, cache_modifier=".cg")
            if CHUNKS > 1:
                parts = dot(d_1, w_1, parts, PRECISION)
            if CHUNKS > 3:
                d_3 = tl.load(left_tile + 3 * part, mask=k_left < k_end - 3 * part, other=0.0, cache_modifier=".cg")
            if CHUNKS > 2:
                parts = dot(d_2, w_2, parts, PRECISION)
            if CHUNKS > 3:
                parts = dot(d_3, w_3, parts, PRECISION)
        else:
            right_tile = from_unit + (units[None, None, :] * inner + k_right)
            for k in range(0, k_end, SPLITS * BLOCK_K):
                left = tl.load(left_tile + k, mask=k_left < k_end - k, other=0.0, cache_modifier=".cg")
                right = tl.load(right_tile + k, mask=k_right < k_end - k, other=0.0)
                parts = dot(left, right, parts, PRECISION)
        return tl.sum(parts, axis=0)


@triton.jit
def _step(
    s, dc, direction, sequences, units, steps, batch, hidden, rows, starts, w_t, w_0, w_1, w_2, w_3, reserve, c0,
    grad_output, grad_h_n, grad_c_n, d_gates, grad_h0, grad_c0, arrived, expected,
    DIRECTIONS: tl.constexpr, PACKED: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_H: tl.constexpr, HAS_C: tl.constexpr,
    WAIT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    CHUNKS: tl.constexpr, EARLY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Step s of the recurrence, backwards in time, for sequences x units; gives dc of the step before it in time.

    A sequence enters with its last time step in the forward direction, and leaves after its first; step s = `steps`
    has only sequences that leave. `known`: those whose d_gates step s - 1 made; `active`: those of step s.
    """
    # Direction 1 ran backwards in time, so its backward runs forwards.
    t = (1 - direction) * (steps - 1 - s) + direction * s
    first, active = _rows_of(t, starts, steps, batch, PACKED)
    first_before, known = _rows_of(t + 1 - 2 * direction, starts, steps, batch, PACKED)
    first_next, next_active = _rows_of(t - 1 + 2 * direction, starts, steps, batch, PACKED)
    if EARLY:
        i, f, g, o, c, c_before, given, last_h, last_c = _saved(
            first, active, first_next, next_active, known, direction, sequences, units, batch, hidden, rows, reserve,
            c0, grad_output, grad_h_n, grad_c_n, DIRECTIONS, HAS_OUTPUT, HAS_H, HAS_C, BLOCK_B, BLOCK_U,
        )  # fmt: skip
    if WAIT:
        wait_for(arrived, expected)
    dh = _product(
        d_gates, w_t, w_0, w_1, w_2, w_3, first_before, known, direction, sequences, units, hidden,
        DIRECTIONS, BLOCK_B, BLOCK_U, BLOCK_K, SPLITS, CHUNKS, PRECISION,
    )  # fmt: skip
    if not EARLY:
        i, f, g, o, c, c_before, given, last_h, last_c = _saved(
            first, active, first_next, next_active, known, direction, sequences, units, batch, hidden, rows, reserve,
            c0, grad_output, grad_h_n, grad_c_n, DIRECTIONS, HAS_OUTPUT, HAS_H, HAS_C, BLOCK_B, BLOCK_U,
        )  # fmt: skip

    is_known = (sequences < known)[:, None]
    dh = tl.where(is_known, dh, last_h)
    dc = tl.where(is_known, dc, last_c)
    leaves = is_known & (sequences >= active)[:, None] & (units < hidden)[None, :]
    state = tl.cast(direction, tl.int64) * batch * hidden + (sequences[:, None] * hidden + units[None, :])
    tl.store(grad_h0 + state, dh.to(grad_h0.dtype.element_ty), mask=leaves)
    tl.store(grad_c0 + state, dc.to(grad_c0.dtype.element_ty), mask=leaves)

    dh += given
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    inside = (sequences < active)[:, None] & (units < hidden)[None, :]
    to_row = d_gates + (tl.cast(first, tl.int64) * DIRECTIONS + direction) * (4 * hidden)
    to_tile = to_row + (sequences[:, None] * (DIRECTIONS * 4 * hidden) + units[None, :])
    tl.store(to_tile, (dc * g * i * (1.0 - i)).to(d_gates.dtype.element_ty), mask=inside)
    tl.store(to_tile + hidden, (dc * c_before * f * (1.0 - f)).to(d_gates.dtype.element_ty), mask=inside)
    tl.store(to_tile + 2 * hidden, (dc * i * (1.0 - g * g)).to(d_gates.dtype.element_ty), mask=inside)
    tl.store(to_tile + 3 * hidden, (dh * tanh_c * o * (1.0 - o)).to(d_gates.dtype.element_ty), mask=inside)
    return dc * f


@triton.jit(do_not_specialize=["steps", "batch"])
def sequence_kernel(
    steps, batch, hidden, rows, starts, w_t, reserve, c0, grad_output, grad_h_n, grad_c_n, d_gates, grad_h0, grad_c0,
    arrived,
    DIRECTIONS: tl.constexpr, PACKED: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_H: tl.constexpr, HAS_C: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
    CHUNKS: tl.constexpr, PRECISION: tl.constexpr, APART: tl.constexpr, AMD: tl.constexpr,
):  # fmt: skip
    """All steps. Programs (direction, tile of sequences, tile of units), those of the last meeting at `arrived`."""
    programs = tl.cdiv(hidden, BLOCK_U)
    group = tl.program_id(0) // programs
    tiles_b = tl.cdiv(batch, BLOCK_B)
    sequences = group % tiles_b * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.program_id(0) % programs * BLOCK_U + tl.arange(0, BLOCK_U)
    counter = arrived + group * APART
    direction = group // tiles_b
    w_0 = _weights(w_t, direction, units, hidden, 0, BLOCK_K, SPLITS, CHUNKS)
    w_1 = _weights(w_t, direction, units, hidden, 1, BLOCK_K, SPLITS, CHUNKS)
    w_2 = _weights(w_t, direction, units, hidden, 2, BLOCK_K, SPLITS, CHUNKS)
    w_3 = _weights(w_t, direction, units, hidden, 3, BLOCK_K, SPLITS, CHUNKS)
    dc = tl.zeros((BLOCK_B, BLOCK_U), tl.float32)
    # One stage: no load of a step may be moved before the wait of another.
    for s in tl.range(0, steps + 1, num_stages=1):
        dc = _step(
            s, dc, direction, sequences, units, steps, batch, hidden, rows, starts, w_t, w_0, w_1, w_2, w_3, reserve,
            c0, grad_output, grad_h_n, grad_c_n, d_gates, grad_h0, grad_c0, counter, s * programs,
            DIRECTIONS, PACKED, HAS_OUTPUT, HAS_H, HAS_C, True, BLOCK_B, BLOCK_U, BLOCK_K, SPLITS, CHUNKS, EARLY,
            PRECISION,
        )  # fmt: skip
        arrive(counter, AMD)


@triton.jit(do_not_specialize=["s", "steps", "batch"])
def step_kernel(
    s, dc, steps, batch, hidden, rows, starts, w_t, reserve, c0, grad_output, grad_h_n, grad_c_n, d_gates, grad_h0,
    grad_c0,
    DIRECTIONS: tl.constexpr, PACKED: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_H: tl.constexpr, HAS_C: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step; dc (directions, batch, hidden) float32 goes from launch to launch."""
    direction = tl.program_id(2)
    sequences = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.program_id(0) * BLOCK_U + tl.arange(0, BLOCK_U)
    state = dc + tl.cast(direction, tl.int64) * batch * hidden + (sequences[:, None] * hidden + units[None, :])
    inside = (sequences < batch)[:, None] & (units < hidden)[None, :]
    after = _step(
        s, tl.load(state, mask=inside, other=0.0), direction, sequences, units, steps, batch, hidden, rows, starts,
        w_t, 0, 0, 0, 0, reserve, c0, grad_output, grad_h_n, grad_c_n, d_gates, grad_h0, grad_c0, dc, 0,
        DIRECTIONS, PACKED, HAS_OUTPUT, HAS_H, HAS_C, False, BLOCK_B, BLOCK_U, BLOCK_K, SPLITS, 0, EARLY, PRECISION,
    )  # fmt: skip
    tl.store(state, after, mask=inside)


@triton.jit
def column_sums_kernel(x, out, m, n, stride, rows_each, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """out (parts, n) float32: the sums of columns of x (m, n), a part of the rows each."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * rows_each
    last = tl.minimum(first + rows_each, m)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    tile = x + tl.cast(first, tl.int64) * stride + (tl.arange(0, BLOCK_M)[:, None] * stride + columns[None, :])
    for row in range(first, last, BLOCK_M):
        inside = (row + tl.arange(0, BLOCK_M) < last)[:, None] & (columns < n)[None, :]
        sums += tl.load(tile, mask=inside, other=0.0).to(tl.float32)
        tile += BLOCK_M * stride
    to = out + tl.cast(tl.program_id(1), tl.int64) * n + columns
    tl.store(to, tl.sum(sums, axis=0), mask=columns < n)


@triton.jit
def bias_kernel(parts, b_ih, b_hh, n, count, BLOCK_N: tl.constexpr):
    """Both biases' gradients (n,): the parts (count, n), added in their order."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for part in range(count):
        sums += tl.load(parts + tl.cast(part, tl.int64) * n + columns, mask=columns < n, other=0.0)
    tl.store(b_ih + columns, sums.to(b_ih.dtype.element_ty), mask=columns < n)
    tl.store(b_hh + columns, sums.to(b_hh.dtype.element_ty), mask=columns < n)
