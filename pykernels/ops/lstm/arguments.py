"""The arguments of the LSTM ops. This module checks them, names the wrong one, and makes an `LSTMCall`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels.ops._arguments import (
    check_device,
    check_dtype,
    check_floating,
    check_int,
    check_number,
    check_shape,
    check_tensor,
    fail,
)

States = tuple[Tensor, Tensor]


class LSTMCall(NamedTuple):
    """What the kernels take besides tensors: the last arguments of ``torch.ops.pykernels.lstm``, in order."""

    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    has_bias: bool = True

    @property
    def directions(self) -> int:
        """Of each layer."""
        return 2 if self.bidirectional else 1


def two_states(op: str, states: States, names: Sequence[str]) -> States:
    """``states``, if it is a pair of dense tensors, which are called ``names``."""
    if not isinstance(states, tuple | list) or len(states) != 2:
        got = type(states).__name__ + (f" of {len(states)}" if isinstance(states, tuple | list) else "")
        fail(TypeError, op, "states", "a pair (h, c) of tensors", got)
    return check_tensor(op, names[0], states[0]), check_tensor(op, names[1], states[1])


def _check_alike(
    op: str, x: Tensor, states: Sequence[tuple[str, Tensor]], weights: Sequence[tuple[str, Tensor]]
) -> None:
    """Raises unless all are of ``x``'s device and dtype. Where only x's differs from the weights', x is to blame."""
    check_floating(op, "x", x)
    dtype, device = x.dtype, x.device
    for name, t in (*states, *weights):
        if t.dtype != dtype:
            first = weights[0][1].dtype
            if first != dtype and all(w.dtype == first for _, w in weights):
                fail(TypeError, op, "x", f"the weights' dtype {first}", dtype)
            fail(TypeError, op, name, f"x's dtype {dtype}", t.dtype)
        check_device(op, name, t, device)


def hidden_of(op: str, name: str, w_hh: Tensor) -> int:
    """H of ``w_hh`` (4H, H), called ``name``."""
    shape = w_hh.shape
    if len(shape) != 2 or shape[1] == 0 or shape[0] != 4 * shape[1]:
        fail(ValueError, op, name, "shape (4 * H, H) with H > 0", tuple(shape))
    return shape[1]


def check_cell(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> None:
    """Raises for tensors that do not fit together in a call of `lstm_cell`."""
    op = "lstm_cell"
    biases = [(name, b) for name, b in (("b_ih", b_ih), ("b_hh", b_hh)) if b is not None]
    _check_alike(op, x, (("h", h), ("c", c)), (("w_ih", w_ih), ("w_hh", w_hh), *biases))
    if x.dim() not in (1, 2):
        fail(ValueError, op, "x", "1 or 2 dimensions, (I,) or (B, I)", f"{x.dim()} dimensions")
    hidden = hidden_of(op, "w_hh", w_hh)
    *batch, features = x.shape
    check_shape(op, "w_ih", w_ih, (4 * hidden, features))
    check_shape(op, "h", h, (*batch, hidden))
    check_shape(op, "c", c, (*batch, hidden))
    for name, bias in biases:
        check_shape(op, name, bias, (4 * hidden,))


def _check_batch_sizes(op: str, batch_sizes: Any, x: Tensor, h0: Tensor) -> None:
    """Raises unless ``batch_sizes`` are those of packed data; the numbers are read where there are any to read."""
    check_tensor(op, "batch_sizes", batch_sizes)
    check_dtype(op, "batch_sizes", batch_sizes, torch.int64)
    if batch_sizes.device.type != "cpu":
        fail(ValueError, op, "batch_sizes", "a tensor on the CPU", f"one on {batch_sizes.device}")
    if batch_sizes.dim() != 1:
        fail(ValueError, op, "batch_sizes", "1 dimension", f"shape {tuple(batch_sizes.shape)}")
    if x.dim() != 2:
        fail(ValueError, op, "x", "2 dimensions (packed data)", f"{x.dim()} dimensions")
    if h0.dim() == 3 and type(batch_sizes) is Tensor and not torch.compiler.is_compiling():  # not a trace's
        check_sizes(batch_sizes.tolist(), x.shape[0], h0.shape[1], op)


def check_sizes(sizes: Sequence[int], rows: int, batch: int, op: str = "lstm") -> None:
    """Raises for batch_sizes that no packed data have: for ``rows`` of x, and a ``batch`` of states."""
    falling = all(a >= b for a, b in pairwise(sizes))
    if sizes and not (falling and sizes[-1] > 0 and sizes[0] == batch and sum(sizes) == rows):
        expected = f"sizes >= 1 that do not rise, from the batch of h0 ({batch}) on, with the sum {rows} of x's rows"
        fail(ValueError, op, "batch_sizes", expected, list(sizes))


def weights_each(op: str, weights: Sequence[Tensor], call: LSTMCall) -> int:
    """The tensors of ``weights`` for each layer and direction: 4, or 2 without biases."""
    num_layers, directions = call.num_layers, call.directions
    each, rest = divmod(len(weights), num_layers * directions)
    if rest or each not in (2, 4):
        without = 2 * num_layers * directions
        expected = f"{2 * without} tensors, or {without} without biases (projections are not supported)"
        fail(ValueError, op, "weights", expected, len(weights))
    return each


def check_shapes(
    op: str, x: Tensor, h0: Tensor, c0: Tensor, named: Sequence[tuple[str, Tensor]], batch_sizes: Tensor | None,
    call: LSTMCall,
) -> int:  # fmt: skip
    """H; raises for shapes and batch_sizes that do not fit together. ``named`` are the weights, with their names."""
    num_layers, directions = call.num_layers, call.directions
    each = len(named) // (num_layers * directions)
    hidden = hidden_of(op, *named[1])

    if batch_sizes is not None:
        _check_batch_sizes(op, batch_sizes, x, h0)
        if h0.dim() != 3:
            fail(ValueError, op, "h0", f"shape ({num_layers * directions}, batch, {hidden})", tuple(h0.shape))
        steps, batch = batch_sizes.shape[0], h0.shape[1:2]
    else:
        if x.dim() not in (2, 3):
            expected = "3 dimensions, or 2 for an unbatched sequence"
            fail(ValueError, op, "x", expected, f"{x.dim()} dimensions")
        time = 1 if call.batch_first and x.dim() == 3 else 0
        steps, batch = x.shape[time], x.shape[1 - time : 2 - time] if x.dim() == 3 else x.shape[:0]
    if steps == 0:
        fail(ValueError, op, "x", "at least one time step", "none")

    gates, features = 4 * hidden, x.shape[-1]
    for i, (name, weight) in enumerate(named):
        wide = features if i < each * directions else hidden * directions
        check_shape(op, name, weight, ((gates, wide), (gates, hidden), (gates,), (gates,))[i % each])
    states = (num_layers * directions, *batch, hidden)
    check_shape(op, "h0", h0, states)
    check_shape(op, "c0", c0, states)
    return hidden


def check_lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    call: LSTMCall,
    dropout: float,
) -> LSTMCall:
    """``call``, without biases where ``weights`` have none; raises for tensors and numbers that do not fit."""
    op = "lstm"
    check_int(op, "num_layers", call.num_layers, 1)
    check_number(op, "dropout", dropout)
    if not 0 <= dropout <= 1:
        fail(ValueError, op, "dropout", "a probability in [0, 1]", dropout)
    each = weights_each(op, weights, call)
    named = [(f"weights[{i}]", w) for i, w in enumerate(weights)]
    _check_alike(op, x, (("h0", h0), ("c0", c0)), named)
    check_shapes(op, x, h0, c0, named, batch_sizes, call)
    return call if each == 4 else call._replace(has_bias=False)
