"""The specs of `lstm_cell` and `lstm`: samples, backends, how exact they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pykernels.ops._spec import OpSpec, Sample
from pykernels.ops.lstm import lstm, lstm_cell, reference
from pykernels.ops.lstm.op import LSTM, LSTM_CELL

#: Relative error of h against that of one sum: c' = f c + i g and h = o tanh(c) each multiply two gates of equal
#: relative error (2), and c hands its error on, times a forget gate that is 1/2 on average: 1 + 1/2 + 1/4 + ... (2).
GROWTH = 4.0


def _uniform(shape: Sequence[int], bound: float, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return ((torch.rand(*shape, generator=generator) * 2 - 1) * bound).to(dtype)


def flat_weights(
    input_size: int,
    hidden: int,
    num_layers: int,
    directions: int,
    bias: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """Weights in nn.LSTM's flat order, from its initial distribution."""
    bound = hidden**-0.5
    weights = []
    for layer in range(num_layers):
        for _ in range(directions):
            wide = input_size if layer == 0 else hidden * directions
            shapes = [(4 * hidden, wide), (4 * hidden, hidden)] + [(4 * hidden,)] * (2 if bias else 0)
            weights += [_uniform(shape, bound, dtype, generator) for shape in shapes]
    return weights


def _sequence(
    name: str,
    time: int,
    batch: int,
    input_size: int,
    hidden: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    bias: bool = True,
    unbatched: bool = False,
    batch_sizes: Sequence[int] | None = None,
    zero_states: bool = False,
    bench: bool = False,
) -> Sample:
    directions = 2 if bidirectional else 1

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if batch_sizes is not None:
            shape: tuple[int, ...] = (sum(batch_sizes), input_size)
        else:
            shape = (batch, time, input_size) if batch_first else (time, batch, input_size)
        x = torch.randn(*shape, generator=generator).to(dtype)
        states = [torch.randn(layers * directions, batch, hidden, generator=generator).to(dtype) for _ in range(2)]
        if zero_states:
            states = [torch.zeros_like(s) for s in states]
        if unbatched:
            x, states = x.squeeze(1), [s.squeeze(1) for s in states]
        weights = flat_weights(input_size, hidden, layers, directions, bias, dtype, generator)
        options: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first}
        if batch_sizes is not None:
            options["batch_sizes"] = torch.tensor(batch_sizes)
        return (x, (states[0], states[1]), weights), options

    rows = time * batch if batch_sizes is None else sum(batch_sizes)
    widths = [input_size] + [hidden * directions] * (layers - 1)
    products = directions * sum(4 * hidden * (wide + hidden) for wide in widths)
    moved = products + rows * (input_size + hidden * directions) + 4 * layers * directions * batch * hidden
    # Layers add their independent errors as squares, like the terms of a sum.
    reduction = layers * (max(widths) + hidden + 2)
    return Sample(name, make, reduction, flops=2 * rows * products, bytes=4 * moved, bench=bench)


def _cell(
    name: str,
    batch: int,
    input_size: int,
    hidden: int,
    *,
    bias: bool = True,
    unbatched: bool = False,
    bench: bool = False,
) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        widths = (input_size, hidden, hidden)
        x, h, c = (torch.randn(batch, wide, generator=generator).to(dtype) for wide in widths)
        if unbatched:
            x, h, c = x[0], h[0], c[0]
        return (x, (h, c), *flat_weights(input_size, hidden, 1, 1, bias, dtype, generator)), {}

    products = 4 * hidden * (input_size + hidden)
    moved = products + batch * (input_size + 4 * hidden)
    return Sample(name, make, input_size + hidden + 2, flops=2 * batch * products, bytes=4 * moved, bench=bench)


LSTM_CELL_SPEC = OpSpec(
    op=LSTM_CELL,
    function=lstm_cell,
    reference=reference.lstm_cell,
    samples=(
        _cell("one", 1, 16, 16),
        _cell("tails", 5, 13, 29),
        _cell("wide-input", 3, 300, 24),
        _cell("no-bias", 4, 24, 40, bias=False),
        _cell("unbatched", 1, 10, 33, unbatched=True),
        _cell("tiny", 2, 1, 1),
        _cell("no-batch", 0, 8, 16),
        _cell("batch", 67, 32, 48),
        _cell("b1-h128", 1, 128, 128, bench=True),
        _cell("b1-h512", 1, 512, 512, bench=True),
        _cell("b64-h512", 64, 512, 512, bench=True),
    ),
    growth=GROWTH,
)

LSTM_SPEC = OpSpec(
    op=LSTM,
    function=lstm,
    reference=reference.lstm,
    samples=(
        _sequence("plain", 7, 3, 16, 32),
        _sequence("tails", 6, 5, 13, 29),
        _sequence("one-step", 1, 4, 10, 20),
        _sequence("batch-1", 9, 1, 24, 40),
        _sequence("long", 200, 2, 8, 16),
        _sequence("tiny", 3, 2, 1, 1),
        _sequence("layers", 5, 4, 12, 24, layers=3),
        _sequence("bidirectional", 5, 4, 12, 24, bidirectional=True),
        _sequence("deep-bidirectional", 6, 3, 10, 17, layers=2, bidirectional=True, batch_first=True),
        _sequence("batch-first", 5, 6, 12, 16, batch_first=True),
        _sequence("no-bias", 4, 3, 11, 18, layers=2, bias=False),
        _sequence("zero-states", 5, 3, 12, 16, zero_states=True),
        _sequence("unbatched", 6, 1, 9, 21, unbatched=True, bidirectional=True),
        _sequence("no-batch", 4, 0, 8, 16),
        _sequence("packed", 5, 4, 12, 24, batch_sizes=(4, 3, 3, 1, 1)),
        _sequence("packed-deep", 6, 5, 7, 19, layers=2, bidirectional=True, batch_sizes=(5, 5, 4, 2, 1, 1)),
        _sequence("wide-batch", 4, 37, 20, 32),
        _sequence("b1-t64-h512x2", 64, 1, 256, 512, layers=2, zero_states=True, bench=True),
        _sequence("b32-t64-h512x2", 64, 32, 256, 512, layers=2, zero_states=True, bench=True),
        _sequence("b1-t50-h128-both", 50, 1, 1280, 128, bidirectional=True, zero_states=True, bench=True),
    ),
    growth=GROWTH,
)


def bound(args: tuple[Any, ...], named: dict[str, Any], *, gradients: bool = False) -> float:
    """The largest relative L2 error of `lstm(*args, **named)`, as `OpSpec.tolerance` has it for a sample.

    A gradient has the forward's error in its gates, and passes sums of its own: over 4 H gates a step, and over the
    rows for the weights.
    """
    x, states, weights = args
    hidden = states[0].shape[-1]
    wide = max(w.shape[-1] for w in weights if w.dim() == 2)
    own = 4 * hidden + x.numel() // max(x.shape[-1], 1) if gradients else 0
    return LSTM_SPEC.bound(x.dtype, named.get("num_layers", 1) * (wide + hidden + 2 + own))


SPECS: tuple[OpSpec, ...] = (LSTM_CELL_SPEC, LSTM_SPEC)
