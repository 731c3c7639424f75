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

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from pykernels.ops._triton import Device, compiles_for_amd, device_of, hinted, launch, matrix_precision, triton_op
from pykernels.ops.lstm import autograd
from pykernels.ops.lstm.arguments import check_sizes
from pykernels.ops.lstm.triton import backward as backward
from pykernels.ops.lstm.triton.config import Config, config
from pykernels.ops.lstm.triton.forward_kernels import cell_kernel, steps_kernel
from pykernels.ops.lstm.triton.gemm import product
from pykernels.ops.lstm.triton.layout import APART, UNROLLED, first_rows, gates_offset, output_offset, reserve_size


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
            check_sizes(batch_sizes.tolist(), rows, batch)
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
