"""The LSTM's forward in Triton: `lstm_cell` and `lstm`.

    i, f, g, o = x W_ih' + b_ih + h W_hh' + b_hh
    c' = sigmoid(f) c + sigmoid(i) tanh(g)
    h' = sigmoid(o) tanh(c')

A layer is one product for the inputs of all time steps (gemm.py), biases added: `sums` (rows, 4H) in
float32; and then the recurrence, of which a program makes a tile of BLOCK_B sequences x UNITS units, all four gates:

- persistent: one launch makes all steps. Each tile of sequences of each direction is a group of programs that wait for
  nobody else; within a group each step ends with a barrier (a counter in global memory), and h goes through the output
  itself, which is written once and so needs no second barrier. W_hh is loaded before the loop and stays on the
  multiprocessor where it fits (`resident`), else it comes from L2 each step. What a step needs besides h (sums, c) is
  asked for before the barrier. Co-residency: at most a program a multiprocessor, and a co-operative launch, which
  fails rather than hangs.
- a step a launch: the same kernel without the barrier, where the tiles are too many to be resident.

A tile of 16 x 4 * 8 is too small for warps to share, so they share K = H: the product is a batch of SPLITS products,
one a warp, and their sum. The columns of a tile are (unit, gate), so that the four gates of a unit are neighbours.

Packed data shrink the batch of a step: rows past it are masked, groups past it only pass the barrier. Nobody looks at
batch_sizes but the device. The reserve for the backward is described in layout.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    sigmoid,
    tanh,
    triton_op,
    wait_for,
)
from pykernels.ops.lstm import autograd, reference
from pykernels.ops.lstm.triton import backward as backward
from pykernels.ops.lstm.triton.gemm import product
from pykernels.ops.lstm.triton.layout import APART, UNROLLED, first_rows, gates_offset, output_offset, reserve_size


@dataclass(frozen=True)
class Config:
    """Tiles of block_b sequences x units; a warp multiplies block_k + tail_k of K at a time."""

    persistent: bool
    resident: bool
    block_b: int
    units: int
    splits: int
    block_k: int
    tail_k: int
    warps: int
    stages: int


def config(steps: int, batch: int, hidden: int, directions: int, size: int, device: Device) -> Config:
    """How a layer's recurrence, or with one step a cell, runs with elements of `size` bytes."""
    amd = device.platform == "hip"
    warps = 4 if amd else 8
    if device == INTERPRETER:  # programs run one after another: one a group, or it would wait for ever
        block_b, units = max(16, triton.next_power_of_2(batch)), max(16, triton.next_power_of_2(hidden))
        return Config(steps > 1, True, block_b, units, 2, max(16, units // 2), 0, warps, 1)
    block_b = 16 if batch <= 16 else 32
    groups = directions * triton.cdiv(batch, block_b)
    # The fewer units the sooner a program has its products, and all of them have to be resident.
    for units in (8, 16, 32) if steps > 1 else ():
        if groups * triton.cdiv(hidden, units) <= device.multiprocessors:
            block_k, tail_k = _parts(hidden, warps)
            weights, h = (warps * (block_k + tail_k) * n * size for n in (4 * units, block_b))
            shared = max(weights, h) if amd else weights + h
            # What the compiler has registers for: a quarter to a half of them hold W_hh.
            room = 49152 if size == 4 else 98304 if block_b == 16 else 65536
            fits = weights <= room and h <= 49152 and shared <= device.shared and block_b * units <= 512
            if fits and (size == 2 or block_b == 16):
                return Config(True, True, block_b, units, warps, block_k, tail_k, warps, 1)
            return _streamed(True, block_b, units, warps, size)
    if batch > 32:
        block_b = 64
    tiles = directions * triton.cdiv(batch, block_b) * triton.cdiv(hidden, 8)
    return _streamed(False, block_b, 8 if block_b < 64 and tiles <= 2 * device.multiprocessors else 16, warps, size)


def _streamed(persistent: bool, block_b: int, units: int, warps: int, size: int) -> Config:
    """W_hh from L2: as many splits as the registers have room for their sums."""
    splits = max(1, min(warps, (2048 if size == 2 or block_b < 64 else 1024) // (block_b * units)))
    block_k = 32 if size == 2 or splits == 1 else 16
    # With two stages the compiler aims at 128 registers there, and just misses them.
    stages = 3 if size == 2 and block_b == 32 and warps == 8 else 2
    return Config(persistent, False, block_b, units, splits, block_k, 0, warps, stages)


def _parts(hidden: int, parts: int) -> tuple[int, int]:
    """K in so many parts, each of a power of two or the sum of two, as tensors have to be: 96 = 64 + 32."""
    part = triton.cdiv(triton.cdiv(hidden, parts), 16) * 16
    block_k = 1 << (part.bit_length() - 1)
    tail_k = triton.next_power_of_2(part - block_k) if part > block_k else 0
    return (2 * block_k, 0) if tail_k == block_k else (block_k, max(16, tail_k) if tail_k else 0)


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


def _launch_steps(
    sums: list[Tensor],
    w_hh: list[Tensor],
    h0: Tensor,
    c0: Tensor,
    output: Tensor,
    h_n: Tensor,
    c_n: Tensor,
    reserve: Tensor,
    starts: Tensor | None,
    time: int,
    layer: int,
    sums_batch_first: bool,
    output_batch_first: bool,
    c: Config,
) -> None:
    """The recurrence of one layer by `steps_kernel`; the arguments as there, h0 and c0 those of the layer."""
    directions, batch, hidden = h0.shape
    rows, device = sums[0].shape[0], device_of(h0)
    width = directions * hidden
    sums_strides = (1, time) if sums_batch_first else (batch, 1)
    output_strides = (width, time * width) if output_batch_first else (batch * width, width)
    state = torch.empty(h0.shape, dtype=torch.float32, device=h0.device)
    tiles, groups = triton.cdiv(hidden, c.units), directions * triton.cdiv(batch, c.block_b)
    counters = torch.zeros((groups * APART if c.persistent else 1,), dtype=torch.int32, device=h0.device)
    spans = [(0, time)] if c.persistent else [(step, step + 1) for step in range(time)]
    options = {"launch_cooperative_grid": True} if c.persistent else {}
    for begin, end in spans:
        launch(
            steps_kernel, (_programs(c, tiles, groups, device), groups),
            sums[0], sums[-1], w_hh[0], w_hh[-1], h0, c0, state, output, h_n, c_n, reserve,
            h0 if starts is None else starts, counters,
            begin, end, time, batch, hidden, rows, *sums_strides, *output_strides,
            layer * directions * batch * hidden, gates_offset(layer * directions, rows, hidden),
            BLOCK_B=c.block_b, UNITS=c.units, SPLITS=c.splits, BLOCK_K=c.block_k, TAIL_K=c.tail_k,
            RESIDENT=c.resident, PERSISTENT=c.persistent, APART=APART, PACKED=starts is not None,
            DIRECTIONS=directions, SAVE=reserve.numel() > 0, PRECISION=matrix_precision(h0.dtype, False, device),
            AMD=compiles_for_amd(device), num_warps=c.warps, num_stages=c.stages, **options,
        )  # fmt: skip


def _programs(c: Config, tiles: int, groups: int, device: Device) -> int:
    """How many programs share a group's tiles of units: where they wait for each other, all have to be resident."""
    return tiles if not c.persistent or c.resident else max(1, min(tiles, device.multiprocessors // groups))


@torch.library.custom_op("pykernels::lstm_steps_triton", mutates_args=("output", "h_n", "c_n", "reserve"))
def _opaque_steps(
    sums: list[Tensor], w_hh: list[Tensor], h0: Tensor, c0: Tensor, output: Tensor, h_n: Tensor, c_n: Tensor,
    reserve: Tensor, starts: Tensor | None, time: int, layer: int, sums_batch_first: bool, output_batch_first: bool,
) -> None:  # fmt: skip
    """`_launch_steps` as a compiled graph calls it: no launch of its own promises that programs are co-resident."""
    _launch_steps(
        sums, w_hh, h0, c0, output, h_n, c_n, reserve, starts, time, layer, sums_batch_first, output_batch_first,
        _choose(h0, time),
    )  # fmt: skip


@_opaque_steps.register_fake
def _(*_: object) -> None:
    return None


def _choose(h0: Tensor, time: int, persistent: bool = True) -> Config:
    directions, batch, hidden = h0.shape
    steps = hinted(time) if persistent else 1
    return config(steps, hinted(batch), hidden, directions, h0.element_size(), device_of(h0))


@triton_op("pykernels::lstm_triton")
def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    has_bias: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.pykernels.lstm`` in Triton: the same arguments, checked by the public function, and results."""
    directions, batch, hidden = 2 if bidirectional else 1, h0.shape[1], h0.shape[2]
    rows, per_cell = math.prod(x.shape[:-1]), 4 if has_bias else 2
    traced = is_fake(x)
    batch_first = batch_first and batch_sizes is None
    if batch_sizes is None:
        time, starts = x.shape[1 if batch_first else 0], None
    else:
        time, starts = batch_sizes.shape[0], first_rows(batch_sizes, rows, x.device)
        if not (traced or batch_sizes.is_meta):
            reference.check_sizes(batch_sizes.tolist(), rows, batch)
    output = x.new_empty((*x.shape[:-1], directions * hidden))
    h_n, c_n = x.new_empty(h0.shape), x.new_empty(h0.shape)
    reserve = x.new_empty((reserve_size(rows, hidden, num_layers, directions) if save else 0,))
    if rows == 0:
        return output, h_n, c_n, reserve
    h0, c0 = h0.contiguous(), c0.contiguous()
    given = x.reshape(rows, x.shape[-1])
    for layer in range(num_layers):
        first = layer * directions
        own = [weights[cell * per_cell : (cell + 1) * per_cell] for cell in range(first, first + directions)]
        states = h0.narrow(0, first, directions), c0.narrow(0, first, directions)
        sums = []
        for w_ih, _, *biases in own:
            bias = (biases[0].contiguous(), biases[1].contiguous()) if has_bias else None
            sums.append(product(given, w_ih.t(), bias=bias, dtype=torch.float32))
        last = layer + 1 == num_layers
        made = output if last else x.new_empty((rows, directions * hidden))
        arguments = (
            sums, [w[1].contiguous() for w in own], *states, made, h_n, c_n, reserve, starts, time, layer,
            batch_first and layer == 0, batch_first and last,
        )  # fmt: skip
        if not traced:
            _launch_steps(*arguments, _choose(states[0], time))
        elif isinstance(time, int) and time <= UNROLLED:
            _launch_steps(*arguments, _choose(states[0], time, persistent=False))
        else:
            _opaque_steps(*arguments)
        if save and not last:
            begin = output_offset(layer, rows, hidden, num_layers, directions)
            reserve.narrow(0, begin, made.numel()).copy_(made.view(-1))
        given = made
    return output, h_n, c_n, reserve


@triton_op("pykernels::lstm_cell_triton")
def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.pykernels.lstm_cell`` in Triton: the same arguments, checked by the public function, and results."""
    (batch, features), hidden = x.shape, h.shape[1]
    h_out, c_out = x.new_empty(h.shape), x.new_empty(c.shape)
    reserve = x.new_empty((5 * batch * hidden if save else 0,))
    if batch == 0:
        return h_out, c_out, reserve
    x, h, c, w_ih, w_hh = (t.contiguous() for t in (x, h, c, w_ih, w_hh))
    device = device_of(x)
    tiles = config(1, hinted(batch), hidden, 1, x.element_size(), device)
    biases = (x, x) if b_ih is None or b_hh is None else (b_ih.contiguous(), b_hh.contiguous())
    launch(
        cell_kernel, (triton.cdiv(hidden, tiles.units), triton.cdiv(batch, tiles.block_b)),
        x, h, c, w_ih, w_hh, *biases, h_out, c_out, reserve, batch, features, hidden,
        BLOCK_B=tiles.block_b, UNITS=tiles.units, SPLITS=tiles.splits, BLOCK_K=tiles.block_k, HAS_BIAS=b_ih is not None,
        SAVE=save, PRECISION=matrix_precision(x.dtype, False, device), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return h_out, c_out, reserve


# The formulas are those of the native ops, the kernels Triton's.
torch.library.register_autograd(
    "pykernels::lstm_triton", autograd.lstm_backward("lstm_backward_triton"), setup_context=autograd.lstm_setup
)
torch.library.register_autograd(
    "pykernels::lstm_cell_triton",
    autograd.cell_backward("lstm_cell_backward_triton"),
    setup_context=autograd.cell_setup,
)
