"""The LSTM's backward in Triton: `lstm_backward` and `lstm_cell_backward`.

A layer is a recurrence backwards in time, and then one dense product over all time steps for each gradient:

    dh  = grad_output_t + d_gates_{t+1} W_hh               d_gates: of the sums i, f, g, o before their activations
    dc  = dc f_{t+1} + dh o (1 - tanh(c)^2)
    d_i = dc g i (1 - i)    d_f = dc c_{t-1} f (1 - f)    d_g = dc i (1 - g^2)    d_o = dh tanh(c) o (1 - o)

    dx = sum over directions of d_gates W_ih    dW_ih = d_gates' x    dW_hh = d_gates' h_{t-1}    db = column sums

The recurrence is one launch: each program has a tile of sequences and units (of one direction) for the whole sequence,
dc in registers, and what the programs of a tile of sequences exchange, d_gates, goes through L2 with a barrier a step.
All else that a step reads is asked for before the barrier, where a tile leaves the registers for it. The tile is small
(16 x 16 at batch 16), too small for the warps to share, so they share K = 4H: the product is a batch of SPLITS
products, one for each slice of K, added at the end. W_hh is transposed once, so that both operands are read along K,
and stays on the multiprocessor where it fits. Where the programs would not all be resident, the same step is a
launch of its own. d_gates are kept in the tensors' dtype, in rows of (direction, gate, unit): what programs exchange is
what the products read.

The reserve's layout is at the head of layout.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from pykernels.ops._triton import (
    INTERPRETER,
    Device,
    arrive,
    compiles_for_amd,
    device_of,
    dot,
    hinted,
    launch,
    matrix_precision,
    tanh,
    triton_op,
    wait_for,
)
from pykernels.ops.lstm.triton.gemm import product
from pykernels.ops.lstm.triton.layout import APART, UNROLLED, first_rows, gates_offset, output_offset

#: A persistent program holds its part of W_hh in so many tensors at most.
_CHUNKS = 4


@dataclass(frozen=True)
class Config:
    """A program's tile of sequences x units; `splits` slices of K side by side, `block_k` of each at once.

    chunks: the program holds its part of W_hh, K in so many parts of splits * block_k; 0: it reads W_hh each step.
    """

    persistent: bool
    block_b: int
    block_u: int
    block_k: int
    splits: int
    warps: int
    stages: int
    chunks: int = 0


def config(steps: int, batch: int, hidden: int, directions: int, size: int, device: Device) -> Config:
    """The tiles for elements of `size` bytes: what a program reads each step, 4H (block_b + block_u), is what counts.

    Persistent where all tiles are resident at once, one a multiprocessor: the programs wait for each other. W_hh stays
    on the multiprocessor (NVIDIA: in shared memory, AMD: in registers) where it fits; float32's, split in two for tf32,
    would take twice its bytes.
    """
    if device == INTERPRETER:  # one program after another there; what they would wait for is never there
        block_b, block_u = (max(16, triton.next_power_of_2(n)) for n in (batch, hidden))
        if size == 2 and steps > 1 and block_u <= 256:
            return Config(True, block_b, block_u, 2 * block_u, 2, 4, 1, 1)
        return Config(steps > 1, block_b, block_u, 64, 2, 4, 1)
    amd = device.platform == "hip"
    warps, most = 4 if amd else 8, 4096 if size == 2 else 2048  # float32's three products leave no registers for more
    waiting: list[tuple[int, int, Config]] = []
    launched: list[tuple[int, int, Config]] = []
    for block_b, block_u in itertools.product((16, 32, 64), repeat=2):
        if block_b >= 2 * max(batch, 16) or block_b * block_u > most:
            continue
        tiles = directions * triton.cdiv(batch, block_b) * triton.cdiv(hidden, block_u)
        splits = max(1, min(warps, 2048 // (block_b * block_u)))
        block_k = 64 if size == 2 else 16 if splits > 1 else 32
        streams = Config(True, block_b, block_u, block_k, splits, warps, 2 if amd else 3)
        launched.append((min(tiles, 2 * device.multiprocessors), block_b + block_u, streams))
        if steps == 1 or tiles > device.multiprocessors:
            continue
        waiting.append((2 * (block_b + block_u), tiles, streams))
        # Shared memory gives a program twice what L2 does.
        for part in sorted((128, 256, 512, 1024), key=lambda part: (triton.cdiv(4 * hidden, part) * part, -part)):
            chunks = triton.cdiv(4 * hidden, part)
            fits = 2 * part * (min(chunks, 2) * block_b + (0 if amd else chunks * block_u)) + 2048 <= device.shared
            fits = fits and (not amd or chunks * part * block_u <= 65536)  # in registers there
            if size == 2 and splits > 1 and chunks <= _CHUNKS and fits:
                holds = Config(True, block_b, block_u, part // splits, splits, warps, 1, chunks)
                waiting.append((2 * block_b + block_u, chunks * part, holds))
                break
    if waiting:
        return min(waiting, key=lambda choice: choice[:2])[2]
    # The largest tiles that still fill the GPU twice.
    return replace(max(launched, key=lambda choice: choice[:2])[2], persistent=False)


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


def _bias_gradients(d_gates: Tensor) -> list[Tensor]:
    """Of one direction's d_gates (rows, 4H)."""
    m, n = d_gates.shape
    rows_each = max(256, triton.cdiv(m, 64))  # 64 parts at most
    count = triton.cdiv(m, rows_each)
    parts = torch.empty((count, n), dtype=torch.float32, device=d_gates.device)
    found = [torch.empty((n,), dtype=d_gates.dtype, device=d_gates.device) for _ in range(2)]
    launch(
        column_sums_kernel, (triton.cdiv(n, 128), count),
        d_gates, parts, m, n, d_gates.stride(0), rows_each, BLOCK_M=32, BLOCK_N=128,
    )  # fmt: skip
    launch(bias_kernel, (triton.cdiv(n, 256),), parts, *found, n, count, BLOCK_N=256)
    return found


def _recurrence(
    steps: int,
    batch: int,
    starts: Tensor | None,
    w_hh: list[Tensor],
    reserve: Tensor,
    c0: Tensor,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    may_wait: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_gates (rows, D, 4H), grad_h0 and grad_c0 (D, B, H) of a layer.

    w_hh: of its directions, (4H, H); reserve: from the layer's on; grad_output (rows, D * H), contiguous; the states
    and their gradients (D, B, H), contiguous; may_wait: whether programs may wait for each other.
    """
    directions, _, hidden = c0.shape
    if hinted(batch) * directions * 4 * hidden >= 2**31:
        raise ValueError(
            f"pykernels.lstm_backward: h0: expected less than 2^31 d(gates) a step, got shape {tuple(c0.shape)}"
        )
    rows = reserve.numel() // (5 * directions * hidden)
    d_gates = torch.empty((rows, directions, 4 * hidden), dtype=c0.dtype, device=c0.device)
    grad_h0, grad_c0 = (torch.empty(c0.shape, dtype=c0.dtype, device=c0.device) for _ in range(2))
    device = device_of(c0)
    c = config(hinted(steps) if may_wait else 1, hinted(batch), hidden, directions, c0.element_size(), device)
    packed = starts is not None
    if starts is None:  # not c0, as below: a trace would take what offsets come from for written to, and copy it
        starts = torch.empty((0,), dtype=torch.int32, device=c0.device)
    w_t = torch.stack([w.t() for w in w_hh])
    tiles = triton.cdiv(hidden, c.block_u), triton.cdiv(batch, c.block_b), directions
    # An absent operand is any tensor: the kernel never reads it.
    tensors = (
        starts, w_t, reserve, c0, *(c0 if t is None else t for t in (grad_output, grad_h_n,
        grad_c_n)), d_gates, grad_h0, grad_c0,
    )  # fmt: skip
    constants = {
        "DIRECTIONS": directions, "PACKED": packed, "HAS_OUTPUT": grad_output is not None,
        "HAS_H": grad_h_n is not None, "HAS_C": grad_c_n is not None, "BLOCK_B": c.block_b, "BLOCK_U": c.block_u,
        "BLOCK_K": c.block_k, "SPLITS": c.splits, "EARLY": c.block_b * c.block_u <= 512,
        "PRECISION": matrix_precision(c0.dtype, False, device),
        "num_warps": c.warps, "num_stages": c.stages,
    }  # fmt: skip
    if c.persistent:
        arrived = torch.zeros((APART * tiles[1] * directions,), dtype=torch.int32, device=c0.device)
        grid = (tiles[0] * tiles[1] * directions,)
        # A co-operative launch fails where not all programs would be resident, instead of waiting for ever.
        constants |= {
            "CHUNKS": c.chunks,
            "APART": APART,
            "AMD": compiles_for_amd(device),
            "launch_cooperative_grid": True,
        }
        launch(sequence_kernel, grid, steps, batch, hidden, rows, *tensors, arrived, **constants)
        return d_gates, grad_h0, grad_c0
    dc = torch.empty((directions, batch, hidden), dtype=torch.float32, device=c0.device)
    for s in range(steps + 1):
        launch(step_kernel, tiles, s, dc, steps, batch, hidden, rows, *tensors, **constants)
    return d_gates, grad_h0, grad_c0


@torch.library.custom_op("pykernels::lstm_backward_steps_triton", mutates_args=())
def _opaque_recurrence(
    steps: int, batch: int, starts: Tensor | None, w_hh: list[Tensor], reserve: Tensor, c0: Tensor,
    grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`_recurrence` as a compiled graph calls it: no launch of its own promises that programs are co-resident."""
    return _recurrence(steps, batch, starts, w_hh, reserve, c0, grad_output, grad_h_n, grad_c_n)


@_opaque_recurrence.register_fake
def _fake_recurrence(
    steps: int, batch: int, starts: Tensor | None, w_hh: list[Tensor], reserve: Tensor, c0: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    directions, _, hidden = c0.shape
    d_gates = c0.new_empty((reserve.numel() // (5 * directions * hidden), directions, 4 * hidden))
    return d_gates, c0.new_empty(c0.shape), c0.new_empty(c0.shape)


def _states_before(output: Tensor, h0: Tensor, direction: int, steps: int, batch: int, starts: Tensor | None) -> Tensor:
    """h (rows, H) that each row of one direction began with. output: (rows, H) of that direction; h0: (B, H)."""
    rows = output.shape[0]
    if starts is None:
        kept = output.narrow(0, batch if direction else 0, rows - batch)
        return torch.cat([kept, h0] if direction else [h0, kept])
    # Where a row's step before had its sequence, and where none had it, h0's row behind all others.
    row = torch.arange(rows, device=output.device, dtype=starts.dtype)
    t = torch.searchsorted(starts, row, right=True) - 1
    sequence = row - starts.index_select(0, t)
    before = t + (1 if direction else -1)
    inside = (before >= 0) & (before < steps)
    before = before.clamp(0, steps - 1)
    first = starts.index_select(0, before)
    has = inside & (sequence < starts.index_select(0, before + 1) - first)
    return torch.cat([output, h0]).index_select(0, torch.where(has, first, rows) + sequence)


def _layer(
    x: Tensor, h0: Tensor, output: Tensor, weights: list[Tensor], d_gates: Tensor, steps: int, starts: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The products of a layer: the gradients of x (rows, I) and of its weights, from d_gates (rows, D, 4H)."""
    rows, directions, _ = d_gates.shape
    each = len(weights) // directions
    w_ih = weights[::each]
    grad_x = product(d_gates.view(rows, -1), torch.cat(w_ih) if directions > 1 else w_ih[0])
    found = []
    for d in range(directions):
        own = d_gates.select(1, d)
        hidden = h0.shape[-1]
        kept = output.narrow(1, d * hidden, hidden)
        before = _states_before(kept, h0.select(0, d), d, steps, h0.shape[1], starts)
        found += [product(own.t(), x), product(own.t(), before)]
        if each == 4:
            found += _bias_gradients(own)
    return grad_x, found


@triton_op("pykernels::lstm_backward_triton")
def lstm_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """``torch.ops.pykernels.lstm_backward`` in Triton, with what the Triton op `lstm` saved."""
    directions, batch, hidden = 2 if bidirectional else 1, h0.shape[1], h0.shape[2]
    if batch == 0:
        zeros = [t.new_zeros(t.shape) for t in (x, h0, c0, *weights)]
        return zeros[0], zeros[1], zeros[2], zeros[3:]
    transposed = batch_first and batch_sizes is None

    def rows_of(t: Tensor) -> Tensor:
        return (t.transpose(0, 1) if transposed else t).reshape(math.prod(t.shape[:-1]), t.shape[-1]).contiguous()

    flat_x, flat_output = rows_of(x), rows_of(output)
    rows = flat_x.shape[0]
    starts, steps = None, rows // batch
    if batch_sizes is not None:
        steps = batch_sizes.shape[0]
        starts = first_rows(batch_sizes, rows, x.device)
    grad = None if grad_output is None else rows_of(grad_output)
    each = len(weights) // num_layers
    ends = [gates_offset(layer * directions, rows, hidden) for layer in range(num_layers + 1)]
    outputs = [output_offset(layer, rows, hidden, num_layers, directions) for layer in range(num_layers)]
    between = [reserve.narrow(0, a, b - a).view(rows, -1) for a, b in itertools.pairwise(outputs)]
    recurrence: Callable[..., tuple[Tensor, Tensor, Tensor]] = _recurrence
    if is_fake(x):
        few = isinstance(steps, int) and steps <= UNROLLED
        recurrence = partial(_recurrence, may_wait=False) if few else _opaque_recurrence
    grad_weights: list[Tensor] = []
    grads_h: list[Tensor] = []
    grads_c: list[Tensor] = []
    for layer in reversed(range(num_layers)):
        first = layer * directions
        mine = weights[layer * each : (layer + 1) * each]
        h, c = (t.narrow(0, first, directions).contiguous() for t in (h0, c0))
        grad_h, grad_c = (
            None if t is None else t.narrow(0, first, directions).contiguous() for t in (grad_h_n, grad_c_n)
        )
        kept = reserve.narrow(0, ends[layer], ends[layer + 1] - ends[layer])
        w_hh = mine[1 :: each // directions]
        d_gates, grad_h0, grad_c0 = recurrence(steps, batch, starts, w_hh, kept, c, grad, grad_h, grad_c)
        below = flat_x if layer == 0 else between[layer - 1]
        above = flat_output if layer == num_layers - 1 else between[layer]
        grad, found = _layer(below, h, above, mine, d_gates, steps, starts)
        grad_weights = found + grad_weights
        grads_h.insert(0, grad_h0)
        grads_c.insert(0, grad_c0)
    assert grad is not None
    if transposed:
        grad = grad.view(steps, batch, -1).transpose(0, 1).clone(memory_format=torch.contiguous_format)
    all_h, all_c = (g[0] if num_layers == 1 else torch.cat(g) for g in (grads_h, grads_c))
    return grad.view(x.shape), all_h, all_c, grad_weights


@triton_op("pykernels::lstm_cell_backward_triton")
def lstm_cell_backward(
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    reserve: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.pykernels.lstm_cell_backward`` in Triton: a sequence of one step."""
    none = [torch.empty((0,), dtype=x.dtype, device=x.device) for _ in range(2)]
    biases = [w_hh.new_zeros((w_hh.shape[0],)) for _ in range(2)] if has_bias else none
    if x.shape[0] == 0:
        zeros = [t.new_zeros(t.shape) for t in (x, h, c, w_ih, w_hh)]
        return zeros[0], zeros[1], zeros[2], zeros[3], zeros[4], biases[0], biases[1]
    grad_h_n, grad_c_n = (None if t is None else t.contiguous().unsqueeze(0) for t in (grad_h, grad_c))
    c0 = c.contiguous().unsqueeze(0)
    d_gates, grad_h0, grad_c0 = _recurrence(1, x.shape[0], None, [w_hh], reserve, c0, None, grad_h_n, grad_c_n)
    own = d_gates.select(1, 0)
    if has_bias:
        biases = _bias_gradients(own)
    weights = product(own.t(), x), product(own.t(), h)
    return product(own, w_ih), grad_h0.squeeze(0), grad_c0.squeeze(0), weights[0], weights[1], biases[0], biases[1]
