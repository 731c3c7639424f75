"""Puts int8 steps in the place of float ones, where grids are known.

What a convolution or linear layer gives is int8 if another such layer wants it so. Between two of them, steps that move
numbers about (views, concatenations, pools, resizes) run on int8 too: what they read and give then lies on one grid. So
do sums, batch norms, activations and squeeze-and-excitation, with a grid for what they give. Everything else gets float
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pykernels.nn.int8_conv import Grid
from pykernels.ops.int8_matmul.arguments import MAX_K_WITH_ZERO_POINT
from pykernels.optimize._conv1d import FusedConv1d
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, is_torchs, mapped
from pykernels.optimize._layer_norms import FusedPixels
from pykernels.optimize._linear import FusedLinear
from pykernels.optimize._norms import bind_norm, is_join, is_norm
from pykernels.optimize._pools import WHOLE, pool_of
from pykernels.optimize._resizes import resize_of
from pykernels.quantize._glue import (
    Affine,
    Dequantize,
    Lookup,
    Mean,
    Quantize,
    Squeeze,
    Sum,
    bind_affine,
    lookup_of,
    mean_at,
    operands,
    squeeze_at,
    takes_norm,
    takes_sum,
)
from pykernels.quantize._grid import grid_of
from pykernels.quantize._steps import Int8Layer
from pykernels.quantize._tune import Factors, Tuning

_LAYERS = (FusedConv, FusedConv1d, FusedLinear, FusedPixels)
#: They give what they are given, in another order or shape.
_MOVES = frozenset(
    ["flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "movedim", "chunk",
    "split", "narrow", "unbind", "select", "__getitem__", "unflatten", "flip", "roll", "channel_shuffle",
    "pixel_shuffle", "pixel_unshuffle", "swapaxes", "t"]
)  # fmt: skip


def layers_in(graph: Graph) -> list[Step]:
    """The convolutions and linear layers."""
    return [s for s in graph.steps if isinstance(s.function, FusedConv)]


def selects(step: Step) -> bool:
    """Does it give numbers of its one tensor, in another order, or the largest of some? That commutes with rounding."""
    if step.kind != "call" or step.writes or not step.results() or len(list(step.reads())) != 1:
        return False
    pool, resize = pool_of(step), resize_of(step)
    if pool is not None or resize is not None:
        return not pool[0].pool.average if pool is not None else resize is not None and resize[0].is_nearest
    name = getattr(step.function, "__name__", "")
    return name in _MOVES and is_torchs(step.function, name)


def why_no_kernel(layer: FusedConv) -> str:
    """Why the int8 kernels do not take a layer; "" where they do."""
    if type(layer) not in _LAYERS:
        return "there are no int8 kernels for transposed convolutions"
    if not layer.on_cpu or layer.weight.dtype is not torch.float32:
        return "whole networks run in int8 on a CPU, from float32"
    if not 0 < layer.depth() <= MAX_K_WITH_ZERO_POINT:
        return f"it sums more than {MAX_K_WITH_ZERO_POINT} products, which may not fit into int32"
    # A clamp is what a grid does by itself; of others the kernels have no constants.
    if layer.act.slopes is not None or (layer.act.constants and layer.act.name != "relu6"):
        return f"the int8 kernels have no {layer.act.title()} with constants of its own"
    return ""


class Rewriter:
    """One graph. ``seen`` are the values that may be int8; ``why_float`` says why a layer is to stay in float, or "".

    ``folded`` are the steps that make its constants.
    """

    def __init__(
        self, graph: Graph, seen: Iterable[Value], why_float: Callable[[Step], str], per_channel: bool,
        factors: Mapping[Value, Factors], means: Mapping[Value, Tensor], folded: list[Step],
    ) -> None:  # fmt: skip
        self.graph, self.per_channel, self.folded = graph, per_channel, folded
        self._factors, self._means = factors, means
        written = {v.storage for s in graph.steps for v in s.writes}
        #: Those that no write changes.
        self.fit = {v for v in seen if v.storage not in written}
        #: Why layers stay in float.
        self.reasons: dict[Step, str] = {}
        self.layers = {s for s in layers_in(graph) if not self._why_not(s, why_float)}
        self.constants = {v for s in folded for v in s.results()}
        #: What makes those of batch norms.
        self.norms = {s.outputs: s for s in folded if s.function is bind_norm}
        #: The int8 step of each other layer.
        self.made: dict[Step, Step] = {}
        self.moves = {s for s in graph.steps if self._moves(s)}
        #: Those that compute on int8 numbers, with a grid of their own for what they give.
        self.computes = {s for s in graph.steps if s not in self.moves and self._computes(s)}
        self._parents: dict[Value, Value] = {}
        #: The int8 forms that there are.
        self.in8: dict[Value, Value] = {}
        self.steps: list[Step] = []
        self.next = graph.next_index()

    def rewrite(self, ranges: Mapping[Value, tuple[float, float]]) -> dict[Value, tuple[Value, Grid]]:
        """Rewrites the graph for the ``ranges`` of what was seen. Returns what int8 values stand for, with grids."""
        self.ranges = ranges
        wanted = self._wanted()
        #: Values that there are in int8 alone.
        self.has = self._had(wanted)
        for step in self.moves:
            if any(v in self.has for v in step.results()):
                for v in (*step.reads(), *step.results()):
                    self._join(v, step.results()[0])
        #: By the values whose channels have other scales in int8.
        self.scaled = self._scaled()
        self.grids = self._grids()
        for step in self.graph.steps:
            if step in self.layers:
                self._write_layer(step)
            elif step in self.moves and step.results()[0] in self.has:
                self._write_move(step)
            elif step in self.computes and step.outputs in self.has:
                self._write_computing(step)
            elif mean_at(step) is not None and next(step.reads()) in self.has:
                self._write_mean(step)
            else:
                step.args, step.kwargs = mapped(step.args, self._as_float), mapped(step.kwargs, self._as_float)
                self.steps.append(step)
        self.graph.result = mapped(self.graph.result, self._as_float)
        self.graph.steps = self.steps
        return {q: (v, self._grid(v)) for v, q in self.in8.items()}

    def joined(self, places: Mapping[Value, int]) -> dict[Any, tuple[int, ...]]:
        """By what a step calls that rounds: the ``places`` of the values that lie on the grid of what it gives."""
        found: dict[Value, list[int]] = {}
        for v in self.ranges:
            found.setdefault(self._root(v), []).append(places[v])
        stands_for = {q: v for v, q in self.in8.items()}
        rounds = (s for s in self.steps if isinstance(s.outputs, Value) and s.outputs in stands_for)
        return {s.function: tuple(found[self._root(stands_for[s.outputs])]) for s in rounds}

    def _why_not(self, step: Step, why_float: Callable[[Step], str]) -> str:
        why = why_no_kernel(step.function) or why_float(step)
        if not why and step.args[0] not in self.fit:
            why = "its input is written to later, or was not seen by the calibration"
        if why:
            self.reasons[step] = why
        return why

    def _moves(self, step: Step) -> bool:
        """Does it give numbers within the range of what it reads, and take int8 ones?"""
        if step.kind != "call" or step.writes or not step.results():
            return False
        if not all(v in self.fit for v in (*step.reads(), *step.results())):
            return False
        if is_join(step):
            return True
        if len(list(step.reads())) != 1:
            return False
        if selects(step):
            return True
        pool = pool_of(step)
        if pool is not None:  # of padding and with another divisor a mean would need to know the zero point
            call = pool[0].pool
            return not (call.average and (call == WHOLE or any(call.padding) or call.divisor))
        return resize_of(step) is not None

    def _computes(self, step: Step) -> bool:
        """Does it compute something that there is an int8 step for?"""
        if not isinstance(step.outputs, Value) or step.outputs not in self.fit:
            return False
        if not all(v in self.fit for v in operands(step)):
            return False
        if takes_norm(step, self.norms) or squeeze_at(step, self.constants):
            return True
        return takes_sum(step) or lookup_of(step) is not None

    def _wanted(self) -> set[Value]:
        """What a layer wants in int8, perhaps through moves and what computes on int8 numbers."""
        wanted: set[Value] = set()
        for step in reversed(self.graph.steps):
            between = step in self.moves or step in self.computes
            if step in self.layers or (between and any(v in wanted for v in step.results())):
                wanted |= set(operands(step))
            elif mean_at(step) is not None:
                wanted |= set(step.reads())
        return wanted & self.fit

    def _had(self, wanted: set[Value]) -> set[Value]:
        """What of that is made in int8; other values are rounded before the layers that want them."""
        has: set[Value] = set()
        for step in self.graph.steps:
            if step in self.layers:
                has |= {step.outputs} & wanted
            elif (step in self.moves or step in self.computes) and all(v in wanted for v in step.results()):
                read = operands(step)
                if sum(v in has for v in read) * 2 >= len(read):
                    has |= set(step.results())
        return has

    def _scaled(self) -> dict[Value, Factors]:
        """The factors of those that int8 layers alone give and read."""
        users, found = self.graph.users(), {}
        for step in self.layers:
            factors = self._factors.get(step.outputs)
            if factors is not None and step.outputs in self.has and self.layers.issuperset(users[step.outputs]):
                found[step.outputs] = factors
        return found

    def _root(self, v: Value) -> Value:
        while v in self._parents:
            v = self._parents[v]
        return v

    def _join(self, v: Value, w: Value) -> None:
        v, w = self._root(v), self._root(w)
        if v is not w:
            self._parents[v] = w

    def _grids(self) -> dict[Value, Grid]:
        """By the values that stand for those on one grid."""
        ranges: dict[Value, tuple[float, float]] = {}
        for v, (low, high) in self.ranges.items():
            known = ranges.get(root := self._root(v), (low, high))
            ranges[root] = min(low, known[0]), max(high, known[1])
        ranges |= {v: (f.low, f.high) for v, f in self.scaled.items()}
        return {v: grid_of(*both) for v, both in ranges.items()}

    def _grid(self, v: Value) -> Grid:
        return self.grids[self._root(v)]

    def _new(self, v: Value, like: Value | None = None) -> Value:
        """The int8 form of ``v``, in the memory of ``like`` or in new memory."""
        made = self.in8[v] = self._unnamed(v, like)
        return made

    def _unnamed(self, v: Value, like: Value | None = None) -> Value:
        """The same on some other grid."""
        made = v.like(self.next)
        made.kind, made.tensor, made.dtype = "step", None, torch.int8
        made.storage = -2 - self.next if like is None else like.storage
        self.next += 1
        return made

    def _as_int8(self, v: Value, where: str) -> Value:
        if v not in self.in8:
            self.steps.append(Step(Quantize(self._grid(v)), (v,), {}, self._new(v), (), "call", where))
        return self.in8[v]

    def _as_float(self, v: Any) -> Any:
        """``v`` itself, made of its int8 form where that is all there is."""
        if isinstance(v, Value) and v in self.has:
            self.steps.append(Step(Dequantize(self._grid(v)), (self.in8[v],), {}, v, (), "call", ""))
            self.has.discard(v)
        return v

    def _write_layer(self, step: Step) -> None:
        x, residual = step.args
        added = self.in8.get(residual, residual)
        y, layer = step.outputs, step.function
        inner, out = None if added is residual else self._grid(residual), None
        given = self._as_int8(x, step.where)
        outputs, after = y, None
        if y in self.has:
            out, outputs = self._grid(y), self._new(y)
        elif layer.act.constants:  # a clamp, which only a grid does by itself
            outputs = y.like(self.next)
            self.next += 1
            after = Step(torch.clamp, (outputs, *layer.act.constants), {}, y, (), "call", step.where)
        made = self._layer(step, self._grid(x), inner, out)
        note = f"int8 {step.note}"
        self.made[step] = Step(made, (given, added), {}, outputs, (), "fused", step.where, note, step.sources)
        self.steps.append(self.made[step])
        self.steps += [] if after is None else [after]

    def _layer(self, step: Step, x: Grid, residual: Grid | None, out: Grid | None) -> Int8Layer:
        given, y = step.args[0], step.outputs
        rows, columns = (self.scaled[v].tensor if v in self.scaled else None for v in (y, given))
        tuning = Tuning(rows, columns, self._means.get(given))
        return Int8Layer(step.function, x, residual, out, self.per_channel, tuning)

    def _write_norm(self, step: Step) -> None:
        pieces, constant, _ = step.args
        grids = [(v.shape[1], *self._grid(v)) for v in pieces]
        read = [self._as_int8(v, step.where) for v in pieces]
        made = self.norms[constant]
        function = Affine(made.args[6], made.args[7], self._grid(step.outputs))
        constants = tuple(constant.like(self.next + i) for i in range(2))
        self.next += 2
        bind = Step(bind_affine, (*made.args[1:6], grids, function.factor), {}, constants)
        self.folded[self.folded.index(made)] = bind
        new = Step(function, (read, *constants), {}, self._new(step.outputs), (), "call", step.where)
        new.sources, new.note = step.sources or (step.where,), f"int8 {step.note}"
        self.steps.append(new)

    def _write_computing(self, step: Step) -> None:
        if is_norm(step):
            return self._write_norm(step)
        x, *others = operands(step)
        read = [self._as_int8(v, step.where) for v in (x, *others)]
        grid, out = self._grid(x), self._grid(step.outputs)
        args: tuple[Any, ...] = tuple(read)
        act = lookup_of(step)
        function: Any
        if others:
            function = Sum(grid, self._grid(others[0]), out)
        elif act is not None:
            function = Lookup(act, grid, out)
        else:
            activation, gate = step.args[-2:]
            function, args = Squeeze(grid, out, activation, gate), (*read, *step.args[1:-2])
        made = Step(function, args, {}, self._new(step.outputs), (), "call", step.where)
        made.sources, made.note = step.sources or (step.where,), f"int8 {step.note or function.__name__}"
        self.steps.append(made)

    def _write_mean(self, step: Step) -> None:
        pool, x = mean_at(step), next(step.reads())
        assert pool is not None
        self.steps.append(Step(Mean(self._grid(x), pool), (self.in8[x],), {}, step.outputs, (), "call", step.where))

    def _write_move(self, step: Step) -> None:
        read = {v: self._as_int8(v, step.where) for v in step.reads()}
        args, kwargs = mapped(step.args, lambda x: read.get(x, x)), mapped(step.kwargs, lambda x: read.get(x, x))
        shared = {v.storage: q for v, q in read.items()}
        outputs = mapped(step.outputs, lambda v: self._new(v, shared.get(v.storage)) if v is not None else v)
        self.steps.append(Step(step.function, args, kwargs, outputs, (), step.kind, step.where))
