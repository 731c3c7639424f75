"""The arguments of the int8 LSTM's ops. This module checks them and names the wrong one; `LSTMCall` is lstm's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pykernels.ops._arguments import (
    check_device,
    check_dtype,
    check_floating,
    check_int,
    check_shape,
    check_tensor,
    fail,
)
from pykernels.ops.int8_matmul.arguments import MAX_K
from pykernels.ops.lstm.arguments import LSTMCall, check_shapes, hidden_of, weights_each

#: A tensor with the name that errors give it.
Named = tuple[str, Tensor]


def tensors(op: str, argument: str, value: Sequence[Tensor]) -> list[Tensor]:
    """``value`` as a list, if it is a sequence of dense tensors."""
    if isinstance(value, Tensor) or not hasattr(value, "__iter__"):
        fail(TypeError, op, argument, "a sequence of tensors", type(value).__name__)
    return [check_tensor(op, f"{argument}[{i}]", t) for i, t in enumerate(value)]


def _check_types(
    op: str, x: Tensor, states: Sequence[Named], weights: Sequence[Named], floats: Sequence[Named]
) -> None:
    """``states`` are of ``x``'s dtype, ``weights`` int8, ``floats`` of any floating dtype, all of x's device."""
    check_floating(op, "x", x)
    for name, t in (*states, *weights, *floats):
        check_device(op, name, t, x.device)
    for name, t in states:
        check_dtype(op, name, t, x.dtype, "x's dtype ")
    for name, t in weights:
        check_dtype(op, name, t, torch.int8)
    for name, t in floats:
        check_floating(op, name, t)


def _check_width(op: str, weights: Sequence[Named]) -> None:
    for name, w in weights:
        if w.shape[1] > MAX_K:
            fail(ValueError, op, name, f"at most {MAX_K} columns, beyond which int32 sums may wrap", w.shape[1])


def check_int8_cell(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, s_ih: Tensor, s_hh: Tensor, b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> None:  # fmt: skip
    """Raises for tensors that do not fit together in a call of `int8_lstm_cell`."""
    op = "int8_lstm_cell"
    weights = (("w_ih", w_ih), ("w_hh", w_hh))
    vectors = [
        (name, t) for name, t in (("s_ih", s_ih), ("s_hh", s_hh), ("b_ih", b_ih), ("b_hh", b_hh)) if t is not None
    ]
    _check_types(op, x, (("h", h), ("c", c)), weights, vectors)
    if x.dim() not in (1, 2):
        fail(ValueError, op, "x", "1 or 2 dimensions, (I,) or (B, I)", f"{x.dim()} dimensions")
    hidden = hidden_of(op, "w_hh", w_hh)
    *batch, features = x.shape
    check_shape(op, "w_ih", w_ih, (4 * hidden, features))
    check_shape(op, "h", h, (*batch, hidden))
    check_shape(op, "c", c, (*batch, hidden))
    for name, t in vectors:
        check_shape(op, name, t, (4 * hidden,))
    _check_width(op, weights)


def check_int8_lstm(
    x: Tensor, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor],
    batch_sizes: Tensor | None, call: LSTMCall,
) -> LSTMCall:  # fmt: skip
    """``call``, without biases where ``weights`` have none; raises for tensors and numbers that do not fit."""
    op = "int8_lstm"
    check_int(op, "num_layers", call.num_layers, 1)
    each = weights_each(op, weights, call)
    expected = 2 * call.num_layers * call.directions
    if len(scales) != expected:
        fail(ValueError, op, "scales", f"{expected} tensors", len(scales))
    named = [(f"weights[{i}]", w) for i, w in enumerate(weights)]
    matrices = [pair for i, pair in enumerate(named) if i % each < 2]
    floats = [(f"scales[{i}]", s) for i, s in enumerate(scales)]
    biases = [pair for i, pair in enumerate(named) if i % each >= 2]
    _check_types(op, x, (("h0", h0), ("c0", c0)), matrices, (*floats, *biases))
    hidden = check_shapes(op, x, h0, c0, named, batch_sizes, call)
    for name, s in floats:
        check_shape(op, name, s, (4 * hidden,))
    _check_width(op, matrices)
    return call if each == 4 else call._replace(has_bias=False)
