"""Models that are quantised already: finds the grids in their graphs.

There ``torch.ops.quantized_decomposed`` rounds a tensor to integers and makes floats of these again, before each layer
that is to compute in int8; that is how torchao's PT2E flow writes a model down. `take` puts one step, a `Round`, in the
place of each such pair, and moves it to what made the tensor: between the two may be only steps that give a part of
what they read, in another order, or the largest of some, and these commute with rounding. `_follow` then puts int8
steps into the graph, as for the ranges of a calibration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pykernels.nn.int8_conv import Grid
from pykernels.optimize._graph import Graph, Step, Value, mapped, values_in
from pykernels.optimize._int8_tensors import KeepRows, RoundRows
from pykernels.optimize._kinds import rounding_of
from pykernels.quantize._rewrite import selects

#: By dtype: the whole range, and what of it stands for -128.
_BOUNDS = {torch.uint8: (0, 255, 128), torch.int8: (-128, 127, 0)}
_TINY = torch.finfo(torch.float32).tiny


class Round:
    """What a step calls that rounds a float tensor to a grid, and gives float numbers."""

    __name__ = "fake_quantize"

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __eq__(self, other: object) -> bool:
        return type(other) is Round and other.grid == self.grid

    def __hash__(self) -> int:
        return hash(self.grid)

    def __call__(self, x: Tensor) -> Tensor:
        """Those of the grid that are nearest."""
        return self.grid.dequantize(self.grid.quantize(x))


class RoundAsItComes:
    """The same to a grid that covers 0 and all of the tensor, with a scale of at least ``least``."""

    __name__ = "fake_quantize"

    def __init__(self, least: float) -> None:
        self.least = least

    def __eq__(self, other: object) -> bool:
        return type(other) is RoundAsItComes and other.least == self.least

    def __hash__(self) -> int:
        return hash(self.least)

    def grid(self, x: Tensor) -> Grid:
        """The grid."""
        low, high = (float(t) for t in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, self.least)
        return Grid(scale, min(max(-round(low / scale), 0), 255) - 128)

    def __call__(self, x: Tensor) -> Tensor:
        """Those of the grid that are nearest."""
        grid = self.grid(x)
        return grid.dequantize(grid.quantize(x))


def is_given(graph: Graph) -> bool:
    """Does the graph round anything?"""
    return any(_op(s).startswith("quantize") or type(s.function) in (RoundRows, KeepRows) for s in graph.steps)


def take(graph: Graph) -> None:
    """Puts roundings in the place of pairs of steps, and moves them forward."""
    users = graph.users()
    makers = {v: s for s in graph.steps for v in s.results()}
    written = {v.storage for s in graph.steps for v in s.writes}
    apart = written | {v.storage for v in values_in(graph.result)}
    steps: list[Step] = []
    gone: set[Step] = set()
    same: dict[Value, Value] = {}
    for step in graph.steps:
        if step in gone:
            continue
        back: list[Any] = users.get(step.outputs, []) if _op(step).startswith("quantize_per_tensor.") else []
        function = _rounding(step, makers)
        if function is None or not back or not all(_is_inverse(s, step) for s in back):
            steps.append(step)
            continue
        gone |= set(back)
        first: Value | None = None
        for s in dict.fromkeys(back):
            if first is not None and s.outputs.storage not in apart:
                same[s.outputs] = first
                continue
            steps.append(Step(function, step.args[:1], {}, s.outputs, (), "call", step.where))
            first = s.outputs if s.outputs.storage not in apart else first
    for step in steps:
        step.args, step.kwargs = (mapped(x, lambda v: same.get(v, v)) for x in (step.args, step.kwargs))
    graph.steps = steps
    _move_forward(graph)


def _op(step: Step) -> str:
    """The name of its op, if that is one of those that round."""
    return rounding_of(step.function) if step.kind == "call" else ""


def _rounding(step: Step, makers: dict[Value, Step]) -> Round | RoundAsItComes | None:
    """What ``step``, together with what makes floats of its integers, does to a float tensor of the CPU."""
    op, x = _op(step), step.args[0] if step.args else None
    if len(step.args) != 6 or step.kwargs or not isinstance(x, Value) or x.kind == "source":
        return None
    _, scale, zero, low, high, dtype = step.args
    bounds = _BOUNDS.get(dtype, (0, 0, 0))
    if (low, high) != bounds[:2] or x.dtype is not torch.float32 or x.device.type != "cpu":
        return None
    if op == "quantize_per_tensor.default":
        fits = type(scale) in (int, float) and type(zero) is int and scale >= _TINY and low <= zero <= high
        return Round(Grid(float(scale), zero - bounds[2])) if fits else None
    chosen = makers.get(scale) if op == "quantize_per_tensor.tensor" and isinstance(scale, Value) else None
    if chosen is None or _op(chosen) != "choose_qparams.tensor" or chosen.outputs != (scale, zero):
        return None
    asked, same = (*chosen.args[:3], chosen.args[4]), (x, low, high, dtype)
    return RoundAsItComes(float(chosen.args[3])) if asked == same else None


def _is_inverse(step: Step | None, rounding: Step) -> bool:
    """Does it make float32 numbers of those of ``rounding``, on the same grid?"""
    if step is None or _op(step) != f"de{_op(rounding)}" or step.args[1:] != rounding.args[1:]:
        return False
    return step.outputs.dtype is torch.float32


def _move_forward(graph: Graph) -> None:
    users = graph.users()
    makers = {s.outputs: s for s in graph.steps if isinstance(s.outputs, Value)}
    written = {v.storage for s in graph.steps for v in s.writes}
    handed_out = {v.storage for v in values_in(graph.result)}
    index = graph.next_index()
    for step in list(reversed(graph.steps)):
        while isinstance(step.function, Round):
            (x,) = step.args
            before = makers.get(x)
            if before is None or users[x] != [step] or not selects(before):
                break
            (whole,) = before.reads()
            maker = makers.get(whole)
            if users[whole] != [before] or maker is None or type(maker.function) is Round:
                break
            if written & {whole.storage, x.storage, step.outputs.storage}:
                break
            if x.storage == whole.storage and step.outputs.storage in handed_out:  # the caller gets memory of its own
                break
            rounded = whole.like(index)
            rounded.storage, index = -2 - index, index + 1
            y = step.outputs
            if x.storage == whole.storage:
                y.storage = rounded.storage
            args, kwargs = (_with(nest, whole, rounded) for nest in (before.args, before.kwargs))
            moved = Step(before.function, args, kwargs, y, (), before.kind, before.where, before.note)
            early = Step(step.function, (whole,), {}, rounded, (), "call", step.where)
            graph.steps = list(_replaced(graph.steps, before, (early, moved), step))
            users[whole], users[rounded] = [early], [moved]
            makers[rounded], makers[y] = early, moved
            step = early


def _with(nest: Any, v: Value, other: Value) -> Any:
    return mapped(nest, lambda x: other if x is v else x)


def _replaced(steps: list[Step], step: Step, by: tuple[Step, ...], gone: Step) -> Iterator[Step]:
    for s in steps:
        if s is step:
            yield from by
        elif s is not gone:
            yield s
