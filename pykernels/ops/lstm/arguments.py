"""What the public functions ask of their arguments, said better than the binding can."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pykernels.ops.lstm import autograd

States = tuple[Tensor, Tensor]

CELL_NAMES = ("x", "h", "c", "w_ih", "w_hh")


def _fail(op: str, argument: str, expected: str, got: object) -> None:
    raise ValueError(f"pykernels.{op}: {argument}: expected {expected}, got {got}")


def tensor(op: str, argument: str, value: Tensor | None) -> Tensor:
    """``value``, if it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"pykernels.{op}: {argument}: expected a tensor, got {type(value).__name__}")
    return value


def two_states(op: str, states: States) -> States:
    """``states``, if it is a pair."""
    if not isinstance(states, tuple | list) or len(states) != 2:
        got = f"{len(states)} of them" if isinstance(states, tuple | list) else type(states).__name__
        raise TypeError(f"pykernels.{op}: states: expected a pair (h, c) of tensors, got {got}")
    return states[0], states[1]


def for_autocast(tensors: tuple[Tensor | None, ...]) -> tuple[tuple[Tensor | None, ...], AbstractContextManager[None]]:
    """The tensors in autocast's dtype and a context without autocast, if it is on for x's device."""
    x = tensors[0]
    if not isinstance(x, Tensor) or not torch.amp.is_autocast_available(x.device.type):
        return tensors, nullcontext()
    if not torch.is_autocast_enabled(x.device.type):
        return tensors, nullcontext()
    cast = autograd.cast(tensors, x.device.type)
    return cast, torch.autocast(x.device.type, enabled=False)


def _check_alike(op: str, x: Tensor, named: Sequence[tuple[str, Tensor]]) -> None:
    if not x.is_floating_point():
        _fail(op, "x", "a floating dtype", x.dtype)
    for name, tensor in (("x", x), *named):
        if tensor.layout != torch.strided:
            _fail(op, name, "a dense tensor", f"layout {tensor.layout}")
        if tensor.dtype != x.dtype:
            _fail(op, name, f"x's dtype {x.dtype}", tensor.dtype)
        if tensor.device != x.device:
            _fail(op, name, f"x's device {x.device}", tensor.device)


def _check_shape(op: str, argument: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        _fail(op, argument, f"shape {tuple(expected)}", tuple(tensor.shape))


def check_cell(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> None:
    """Raises for what does not fit together in a call of `lstm_cell`."""
    op = "lstm_cell"
    biases = [(n, tensor(op, n, b)) for n, b in (("b_ih", b_ih), ("b_hh", b_hh)) if b is not None]
    _check_alike(op, x, [("h", h), ("c", c), ("w_ih", w_ih), ("w_hh", w_hh), *biases])
    if x.dim() not in (1, 2):
        _fail(op, "x", "1 or 2 dimensions, (I,) or (B, I)", f"{x.dim()} dimensions")
    if w_hh.dim() != 2 or w_hh.shape[1] == 0 or w_hh.shape[0] != 4 * w_hh.shape[1]:
        _fail(op, "w_hh", "shape (4 * H, H) with H > 0", tuple(w_hh.shape))
    hidden = w_hh.shape[1]
    _check_shape(op, "w_ih", w_ih, (4 * hidden, x.shape[-1]))
    for name, state in (("h", h), ("c", c)):
        _check_shape(op, name, state, (*x.shape[:-1], hidden))
    for name, bias in biases:
        _check_shape(op, name, bias, (4 * hidden,))


def check_lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    batch_sizes: Tensor | None,
) -> bool:
    """Raises for what does not fit; returns whether there are biases."""
    op, directions = "lstm", 2 if bidirectional else 1
    # Asked the other way round, for Dynamo's symbolic numbers have no type of ours.
    if num_layers is None or isinstance(num_layers, str | float | list | tuple):
        raise TypeError(f"pykernels.{op}: num_layers: expected an int, got {type(num_layers).__name__}")
    if dropout is None or isinstance(dropout, str | list | tuple):
        raise TypeError(f"pykernels.{op}: dropout: expected a number, got {type(dropout).__name__}")
    if num_layers < 1:
        _fail(op, "num_layers", "at least 1", num_layers)
    if not 0 <= dropout <= 1:
        _fail(op, "dropout", "a probability in [0, 1]", dropout)
    each, rest = divmod(len(weights), num_layers * directions)
    if rest or each not in (2, 4):
        without = 2 * num_layers * directions
        _fail(
            op,
            "weights",
            f"{2 * without} tensors, or {without} without biases (projections are not supported)",
            len(weights),
        )
    _check_alike(op, x, [("h0", h0), ("c0", c0), *((f"weights[{i}]", w) for i, w in enumerate(weights))])

    packed = batch_sizes is not None
    if batch_sizes is not None:
        tensor(op, "batch_sizes", batch_sizes)
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
            got = f"{tuple(batch_sizes.shape)} {batch_sizes.dtype} on {batch_sizes.device}"
            _fail(op, "batch_sizes", "a 1-D int64 tensor on the CPU", got)
    if x.dim() != 2 and (packed or x.dim() != 3):
        expected = "2 dimensions (packed data)" if packed else "3 dimensions, or 2 for an unbatched sequence"
        _fail(op, "x", expected, f"{x.dim()} dimensions")
    steps = batch_sizes.shape[0] if batch_sizes is not None else x.shape[1 if batch_first and x.dim() == 3 else 0]
    if steps == 0:
        raise RuntimeError("pykernels.lstm: x: expected at least one time step, got none")

    w_hh = weights[1]
    if w_hh.dim() != 2 or w_hh.shape[1] == 0 or w_hh.shape[0] != 4 * w_hh.shape[1]:
        _fail(op, "weights[1]", "shape (4 * H, H) with H > 0", tuple(w_hh.shape))
    hidden = w_hh.shape[1]
    for i, weight in enumerate(weights):
        wide = x.shape[-1] if i < each * directions else hidden * directions
        _check_shape(
            op,
            f"weights[{i}]",
            weight,
            ((4 * hidden, wide), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,))[i % each],
        )

    states: tuple[int, ...] = (num_layers * directions, hidden)
    if packed:
        if h0.dim() != 3:
            _fail(op, "h0", f"shape ({states[0]}, batch, {hidden})", tuple(h0.shape))
        states = (states[0], h0.shape[1], hidden)
    elif x.dim() == 3:
        states = (states[0], x.shape[0 if batch_first else 1], hidden)
    _check_shape(op, "h0", h0, states)
    _check_shape(op, "c0", c0, states)
    return each == 4
