"""Puts int8 steps into the graph of a model that is quantised already, on the model's own grids and weights.

A layer runs in int8 if what it reads lies on a grid, and its weight is int8 with a scale for each output channel. It
gives int8 numbers if they are rounded at once. So do sums and activations between such layers. What gives a part of
what it reads, or its maximum, stays on the grid of that; means of windows do if they are rounded to the same grid. All
else computes in float32, on the rounded numbers, as it does in eager mode.
"""

from __future__ import annotations

from typing import Any

from pykernels.nn.int8_conv import Grid
from pykernels.optimize._activations import Act
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, mapped, values_in
from pykernels.optimize._int8_tensors import KeepRows, RoundRows
from pykernels.optimize._linear import FusedLinear
from pykernels.optimize._norms import is_join
from pykernels.quantize._given import Round, RoundAsItComes, is_given, take
from pykernels.quantize._given_layers import GivenLayer, GivenLinear, GivenRows, GivenWeightOnly, Weight, weight_of
from pykernels.quantize._glue import Lookup, Quantize, mean_at, operands, settle_roundings
from pykernels.quantize._rewrite import Rewriter, selects, why_no_kernel
from pykernels.quantize._steps import Int8Layer

#: What rounds a tensor as it comes, and what a layer that reads it becomes.
_COMING: dict[type, Any] = {RoundAsItComes: GivenLinear, RoundRows: GivenRows, KeepRows: GivenWeightOnly}
_NO_GRID = "its input is not rounded to all 256 numbers of a grid"
_NO_WEIGHT = "its weight is not int8 with one scale, or one for each output channel, and zero points of 0"
_NOT_LINEAR = "its input is rounded as it comes, for which there are int8 kernels of linear layers only"
_ACTIVATION = "the int8 kernels of linear layers do not have its activation"


def follow(graph: Graph, folded: list[Step]) -> list[Step]:
    """Rewrites ``graph``, whose constants ``folded`` makes. Returns those of ``folded`` that are still of use."""
    Follower(graph, folded).follow()
    needed = {v for s in graph.steps for v in s.reads()}
    needed |= {v for s in graph.steps if isinstance(s.function, FusedConv) for v in s.function.parameters()}
    kept: list[Step] = []
    for step in reversed(folded):
        if any(v in needed for v in step.results()):
            needed |= set(step.reads())
            kept.append(step)
    return kept[::-1]


def take_grids(graph: Graph) -> bool:
    """Puts roundings in the place of the grids that ``graph`` brings; False if it brings none."""
    if not is_given(graph):
        return False
    take(graph)
    return True


def settled(graph: Graph) -> None:
    """Formats are decided."""
    settle_roundings(graph)


class Follower(Rewriter):
    """One graph."""

    def __init__(self, graph: Graph, folded: list[Step]) -> None:
        seen = {v for s in graph.steps for v in (*s.reads(), *s.results())}
        super().__init__(graph, seen, _never, True, {}, {}, folded)
        self.users = graph.users()
        self.handed_out = {v.storage for v in values_in(graph.result)}
        found = ((s.outputs, weight_of(s)) for s in folded if isinstance(s.outputs, Value))
        self.weights: dict[Value, Weight] = {v: w for v, w in found if w is not None}
        self.grids: dict[Value, Grid] = {}
        self.has: set[Value] = set()
        #: What is rounded as it comes: the step that rounds it.
        self.coming: dict[Value, Step] = {}
        #: Of these, what there is as float numbers.
        self.rounded: set[Value] = set()

    def follow(self) -> None:
        """Rewrites the graph."""
        for step in self.graph.steps:
            if not self._write(step):
                step.args, step.kwargs = mapped(step.args, self._as_float), mapped(step.kwargs, self._as_float)
                self.steps.append(step)
        self.graph.result = mapped(self.graph.result, self._as_float)
        self.graph.steps = self.steps

    def _write(self, step: Step) -> bool:
        """Writes the int8 form of ``step``, if it has one."""
        if type(step.function) in (Round, *_COMING) and not self.fit.issuperset((step.outputs, step.args[0])):
            return False
        if type(step.function) is Round:
            self._write_round(step)
        elif type(step.function) in _COMING:
            self.coming[step.outputs] = step
        elif isinstance(step.function, FusedConv):
            return self._follow_layer(step)
        elif step in self.moves:
            return self._follow_move(step)
        elif step in self.computes and all(v in self.in8 for v in operands(step)):
            return self._give(step.outputs) and self._written(self._write_computing, step)
        elif mean_at(step) is not None and next(step.reads()) in self.in8:
            self._write_mean(step)
        else:
            return False
        return True

    def _written(self, write: Any, step: Step) -> bool:
        write(step)
        return True

    def _give(self, v: Value) -> bool:
        """Notes that ``v`` is made on the grid to which it is rounded, if that is all that anyone wants of it."""
        readers = self.users.get(v, [])
        if v not in self.fit or len(readers) != 1 or readers[0] is None or type(readers[0].function) is not Round:
            return False
        if readers[0].outputs not in self.fit:
            return False
        self._on(v, readers[0].function.grid)
        return True

    def _as_float(self, v: Any) -> Any:
        if isinstance(v, Value) and v in self.coming and v not in self.rounded:
            step = self.coming[v]
            step.args = (super()._as_float(step.args[0]),)
            self.steps.append(step)
            self.rounded.add(v)
        return super()._as_float(v)

    def _on(self, v: Value, grid: Grid) -> None:
        self.grids[v] = grid
        self.has.add(v)

    def _write_round(self, step: Step) -> None:
        (x,), y, grid = step.args, step.outputs, step.function.grid
        self._on(y, grid)
        if x in self.in8:
            self.in8[y] = self.in8[x]
            if self.grids[x] != grid:
                self.in8.pop(y)
                other = _to_another(self.grids[x], grid)
                self.steps.append(Step(other, (self.in8[x],), {}, self._new(y), (), "call", step.where))
        else:
            self.steps.append(Step(Quantize(grid), (x,), {}, self._new(y), (), "call", step.where))

    def _follow_layer(self, step: Step) -> bool:
        x, layer = step.args[0], step.function
        weight = self.weights.get(layer.weight)
        why = why_no_kernel(layer) or (_NO_WEIGHT if weight is None or getattr(layer, "turned", False) else "")
        if x in self.coming and not why:
            return self._follow_linear(step, self.coming[x])
        why = why or ("" if x in self.in8 else _NO_GRID)
        if why:
            self.graph.left.append((step.where, step.note, f"computes in float: {why}"))
            return False
        self._give(step.outputs)
        self._write_layer(step)
        return True

    def _follow_linear(self, step: Step, rounding: Step) -> bool:
        layer, weight = step.function, self.weights[step.function.weight]
        if type(layer) is not FusedLinear or layer.act.constants or layer.act.slopes is not None:
            why = _ACTIVATION if type(layer) is FusedLinear else _NOT_LINEAR
            self.graph.left.append((step.where, step.note, f"computes in float: {why}"))
            return False
        made: Any = _COMING[type(rounding.function)](layer, rounding.function, weight)
        args = self._as_float(rounding.args[0]), self._as_float(step.args[1])
        note = f"{'' if made.rounds_rows else 'weight-only '}int8 {step.note}"
        self.steps.append(Step(made, args, {}, step.outputs, (), "fused", step.where, note, step.sources))
        return True

    def _layer(self, step: Step, x: Grid, residual: Grid | None, out: Grid | None) -> Int8Layer:
        return GivenLayer(step.function, x, residual, out, self.weights[step.function.weight])

    def _follow_move(self, step: Step) -> bool:
        if is_join(step):
            return self._give(step.outputs) and self._written(self._write_join, step)
        (x,) = set(step.reads())
        if x not in self.in8:
            return False
        if any(v.storage == x.storage and v.storage in self.handed_out for v in step.results()):
            return False  # the caller gets a view of float numbers, as in eager mode
        if selects(step):
            for v in step.results():
                self._on(v, self.grids[x])
        elif not (self._give(step.outputs) and self.grids[step.outputs] == self.grids[x]):
            self.has -= {step.outputs}
            return False
        self._write_move(step)
        return True

    def _write_join(self, step: Step) -> None:
        grid, read = self.grids[step.outputs], {}
        for v in dict.fromkeys(step.reads()):
            if self.in8.get(v) is not None and self.grids[v] == grid:
                read[v] = self.in8[v]
                continue
            made, known = self._unnamed(v), v in self.in8
            function = _to_another(self.grids[v], grid) if known else Quantize(grid)
            self.steps.append(Step(function, (self.in8[v] if known else v,), {}, made, (), "call", step.where))
            read[v] = made
        args = mapped(step.args, lambda x: read.get(x, x))
        self.steps.append(Step(step.function, args, step.kwargs, self._new(step.outputs), (), "call", step.where))


def _to_another(x: Grid, out: Grid) -> Lookup:
    made = Lookup(Act("none"), x, out)
    made.__name__ = "requantize"
    return made


def _never(_: Step) -> str:
    return ""
