"""What a quantised model knows: the options, and the ranges that a calibration found for each kind of call.

A table of ranges is for graphs of the same steps, wired alike, of the same modules; sizes do not matter. A call that
makes another graph runs in float, and the report says so. As a state the plan is one tensor of bytes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pykernels.ops._arguments import fail
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value
from pykernels.optimize._linear import FusedLinear
from pykernels.quantize._dynamic import quantize_rows
from pykernels.quantize._glue import settle_roundings
from pykernels.quantize._recurrent import lstms_in, use_int8_lstms
from pykernels.quantize._rewrite import Rewriter, layers_in, why_no_kernel
from pykernels.quantize._tune import Factors, Pair, along, axes_of, pairs_of

if TYPE_CHECKING:
    from pykernels.nn.int8_conv import Grid
    from pykernels.optimize._program import Program

_NO_DATA = "without batches linear layers and LSTMs are quantised, and no others"

#: The range of each value of a graph, in the order of `values_of`; None for what nobody saw.
Ranges = list[tuple[float, float] | None]


def values_of(graph: Graph) -> list[Value]:
    """The inputs and what the steps give, in the order of the graph."""
    return [*graph.inputs, *(v for s in graph.steps for v in s.results())]


def name_of(graph: Graph, names: Mapping[int, str]) -> str:
    """The same for graphs of the same steps, wired alike, with the same weights and numbers, whatever the sizes.

    ``names`` are those of the model's tensors, by their id.
    """
    number = {v: i for i, v in enumerate(values_of(graph))}

    def told(v: Value) -> Any:
        return number.get(v, names.get(id(v.tensor)))

    lines = [str(len(graph.inputs))]
    for s in graph.steps:
        read, numbers = [told(v) for v in s.reads()], list(_numbers((s.args, s.kwargs)))
        if isinstance(s.function, FusedConv):
            act = s.function.act
            read += [told(v) for v in s.function.parameters()]
            numbers += [act.slope, *act.constants]
        lines.append(f"{s.where} {s.note or s.name()} {read} {numbers} {len(s.results())}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _numbers(nest: Any) -> Iterator[float]:
    """The floats in a nest: integers may be sizes."""
    if isinstance(nest, float):
        yield nest
    elif isinstance(nest, tuple | list):
        for x in nest:
            yield from _numbers(x)
    elif isinstance(nest, dict):
        for x in nest.values():
            yield from _numbers(x)


@dataclass(eq=False)
class Plan:
    """Options and tables. ``skip`` are names of modules, or patterns of them, that stay in float."""

    per_channel: bool = True
    skip: tuple[str, ...] = ()
    #: Further ones, which a budget found.
    kept: tuple[str, ...] = ()
    dynamic: bool = False
    #: With ``dynamic``: whether rows stay float.
    weight_only: bool = False
    tables: dict[str, Ranges] = field(default_factory=dict)
    #: By graph and value: the factors of its channels, and their means where biases are to be corrected.
    factors: dict[str, dict[int, Factors]] = field(default_factory=dict)
    means: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    #: Off while the float programs run that a calibration watches.
    is_on: bool = True

    #: The one layer that runs in int8, while a budget looks for those that cost most.
    only: str | None = None
    #: By graph and value: the signal-to-noise ratios of layers.
    ratios: dict[str, dict[int, float]] = field(default_factory=dict)

    def is_active(self) -> bool:
        """Is there anything that runs in int8?"""
        return self.is_on and (self.dynamic or bool(self.tables))

    def why_float(self, step: Step) -> str:
        """Why the layer is to stay in float; "" where it is not."""
        names = {name for where in (step.where, *step.sources) for name in _around(where)}
        if any(fnmatch.fnmatchcase(n, p) for n in names for p in self.skip):
            return "it is named in skip"
        if step.where in self.kept:
            return "it costs more than the budget allows"
        return "" if self.only in (None, step.where) else "another one is measured alone"

    def rewrite(self, graph: Graph, model: nn.Module, store: dict[Hashable, Any], folded: list[Step]) -> None:
        """Puts int8 steps into ``graph``, a call of ``model``, if it is one of those that were calibrated.

        ``folded`` are the steps that make its constants; those of int8 steps take their places there.
        """
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        names = {id(t): name for name, t in tensors}
        graph.rewritten = Rewritten(name_of(graph, names), values_of(graph), layers_in(graph), lstms_in(graph))
        if not self.is_on:
            graph.rewritten.pairs = pairs_of(graph)
            graph.rewritten.axes = axes_of(graph.rewritten.layers, graph.rewritten.positions)
        graph.rewritten.given = {s: s.results() for s in graph.steps}
        ranges = self.tables.get(graph.rewritten.name)
        if ranges is not None and len(ranges) != len(graph.rewritten.values):  # of a broken state
            ranges = None
        if not self.is_on or (ranges is None and not self.dynamic):
            return
        graph.rewritten.is_calibrated = True
        graph.rewritten.recurrent = use_int8_lstms(
            graph, self.why_float, store, graph.rewritten.reasons, self.weight_only
        )
        if ranges is None:
            graph.rewritten.made = quantize_rows(graph, self.why_float, self.per_channel, self.weight_only)
            left = [s for s in graph.rewritten.layers if s not in graph.rewritten.made]
            for step in left:
                why = why_no_kernel(step.function) if isinstance(step.function, FusedLinear) else _NO_DATA
                graph.rewritten.reasons[step] = self.why_float(step) or why
            return
        known = {v: r for v, r in zip(graph.rewritten.values, ranges, strict=True) if r is not None}
        name, values = graph.rewritten.name, graph.rewritten.values
        factors = {values[at]: found for at, found in self.factors.get(name, {}).items()}
        means = {values[at]: found for at, found in self.means.get(name, {}).items()}
        rewriter = Rewriter(graph, known, self.why_float, self.per_channel, factors, means, folded)
        graph.rewritten.int8 = rewriter.rewrite(known)
        graph.rewritten.scaled = rewriter.scaled
        graph.rewritten.joined = rewriter.joined(graph.rewritten.positions)
        graph.rewritten.made = rewriter.made
        graph.rewritten.reasons |= rewriter.reasons

    def settled(self, graph: Graph) -> None:
        """Formats are decided."""
        for step, results in graph.rewritten.given.items():
            now = step.results()
            if len(now) == len(results):  # of sequences only images are left, where nobody reads them
                moved = zip(now, results, strict=True)
                graph.rewritten.aliases.update((new, old) for new, old in moved if new is not old)
        settle_roundings(graph)

    def to_bytes(self) -> Tensor:
        """All of it as a tensor of bytes."""
        told = {
            "version": 1, "per_channel": self.per_channel, "skip": self.skip, "kept": self.kept,
            "dynamic": self.dynamic, "weight_only": self.weight_only, "tables": self.tables, "ratios": self.ratios,
            "factors": _nested(self.factors, lambda f: [f.low, f.high, f.tensor.tolist()]),
            "means": _nested(self.means, lambda t: t.tolist()),
        }  # fmt: skip
        return torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)

    def take_bytes(self, state: Any) -> None:
        """Takes what `to_bytes` of another gave; ValueError where it is something else."""
        try:
            told = json.loads(bytes(state.tolist()).decode())
            if told["version"] != 1:
                raise ValueError("another version")
            flags = bool(told["per_channel"]), bool(told["dynamic"]), bool(told.get("weight_only"))
            names = tuple(told["skip"]), tuple(told["kept"])
            ratios = {name: {int(at): float(r) for at, r in found.items()} for name, found in told["ratios"].items()}
            factors = _nested(told.get("factors", {}), lambda f: Factors(float(f[0]), float(f[1]), torch.tensor(f[2])))
            means = _nested(told.get("means", {}), torch.tensor)
            tables: dict[str, Ranges] = {}
            for name, found in told["tables"].items():
                tables[name] = [None if r is None else (float(r[0]), float(r[1])) for r in found]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            expected = "the extra state of a quantised model, of version 1"
            got = f"{state.dtype} of shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
            fail(ValueError, "quantize", "state", expected, got)
        self.per_channel, self.dynamic, self.weight_only = flags
        self.skip, self.kept = names
        self.ratios, self.tables, self.factors, self.means = ratios, tables, factors, means


def _nested(tables: Mapping[str, Mapping[Any, Any]], made: Callable[[Any], Any]) -> dict[str, dict[int, Any]]:
    """``tables`` by graph and value, of what ``made`` makes of theirs."""
    return {name: {int(at): made(x) for at, x in table.items()} for name, table in tables.items()}


@dataclass(eq=False)
class Rewritten:
    """What became of a graph: its name, values, layers and LSTMs, as in float, and the int8 forms of values."""

    name: str
    values: list[Value]
    layers: list[Step]
    lstms: list[Step]
    int8: dict[Value, tuple[Value, Grid]] = field(default_factory=dict)
    #: What the steps gave before formats were settled, and what stands for such a value since.
    given: dict[Step, list[Value]] = field(default_factory=dict)
    aliases: dict[Value, Value] = field(default_factory=dict)
    #: Values whose channels have other scales in int8.
    scaled: dict[Value, Factors] = field(default_factory=dict)
    #: By what a step calls that rounds: the places of the values that lie on the grid of what it gives.
    joined: dict[Any, tuple[int, ...]] = field(default_factory=dict)
    #: What an equalisation may scale.
    pairs: list[Pair] = field(default_factory=list)
    #: By value: the dimension of the channels that layers read.
    axes: dict[int, int] = field(default_factory=dict)
    is_calibrated: bool = False
    #: The layers that run in int8, and why others don't.
    made: dict[Step, Step] = field(default_factory=dict)
    reasons: dict[Step, str] = field(default_factory=dict)
    recurrent: dict[Step, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = {v: i for i, v in enumerate(self.values)}
        self.of_layers_by_step = {s: self.positions[s.results()[0]] for s in (*self.layers, *self.lstms)}
        self.of_layers = frozenset(self.of_layers_by_step.values())

    def position(self, v: Value) -> int | None:
        """Which of its values ``v`` is, in float or in int8."""
        v = self.aliases.get(v, v)
        return self.positions.get(self.int8[v][0] if v in self.int8 else v)

    def in_float(self, v: Value, t: Tensor) -> Tensor:
        """What the numbers ``t`` of an int8 value stand for."""
        float_value, grid = self.int8[v]
        y, factors = grid.dequantize(t), self.scaled.get(float_value)
        if factors is None:
            return y
        giver = next(s for s, at in self.of_layers_by_step.items() if at == self.positions[float_value])
        return along(y, factors.tensor, giver)

    def grid(self, v: Value) -> Grid | None:
        """That of an int8 value; None of others."""
        found = self.int8.get(self.aliases.get(v, v)) if v.dtype is torch.int8 else None
        return None if found is None else found[1]

    def in_onnx(self, program: Program, inputs: list[Tensor]) -> tuple[Any] | None:
        """What the program gives for ``inputs``, for `torch.onnx.export`, in a tuple; None if it runs in float."""
        if not self.is_calibrated:
            return None
        from pykernels.quantize._onnx import InONNX

        return (InONNX(program).evaluate(inputs),)


def _around(where: str) -> Iterable[str]:
    """The name of a module and those of the modules around it."""
    parts = where.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)] if where else []
