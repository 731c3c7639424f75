"""The LSTM's backward in Triton: `lstm_backward` and `lstm_cell_backward`.

A layer is a recurrence backwards in time, and then one dense product over all time steps for each gradient:

    dh  = grad_output_t + d_gates_{t+1} W_hh               d_gates: of the sums i, f, g, o before their activations
    dc  = dc f_{t+1} + dh o (1 - tanh(c)^2)
    d_i = dc g i (1 - i)    d_f = dc c_{t-1} f (1 - f)    d_g = dc i (1 - g^2)    d_o = dh tanh(c) o (1 - o)

    grad_x = sum over directions of d_gates W_ih    dW_ih = d_gates' x    dW_hh = d_gates' h_{t-1}    db = column sums

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
from functools import partial

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from pykernels.ops._triton import compiles_for_amd, device_of, hinted, launch, matrix_precision, triton_op
from pykernels.ops.lstm.triton.backward_kernels import bias_kernel, column_sums_kernel, sequence_kernel, step_kernel
from pykernels.ops.lstm.triton.config import backward_config
from pykernels.ops.lstm.triton.gemm import product
from pykernels.ops.lstm.triton.layout import APART, UNROLLED, first_rows, gates_offset, output_offset


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
    c = backward_config(hinted(steps) if may_wait else 1, hinted(batch), hidden, directions, c0.element_size(), device)
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
