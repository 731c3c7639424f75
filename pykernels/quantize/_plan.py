"""What a quantised model knows: the options, and the ranges that a calibration found for each kind of call.

A table of ranges is for graphs of the same steps, wired alike, of the same modules; sizes do not matter. A call that
makes another graph runs in float, and the report says so. As a state the plan is one tensor of bytes.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pykernels.ops._arguments import fail
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value
from pykernels.optimize._linear import FusedLinear
from pykernels.quantize._dynamic import quantize_rows
from pykernels.quantize._recurrent import use_int8_lstms
from pykernels.quantize._rewrite import Rewriter, layers_in, why_no_kernel
from pykernels.quantize._steps import settle_roundings

if TYPE_CHECKING:
    from pykernels.nn.int8_conv import Grid

_NOT_DYNAMIC = "only linear layers and LSTMs are quantised as they come"

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
    tables: dict[str, Ranges] = field(default_factory=dict)
    #: Off while the float programs run that a calibration watches.
    is_on: bool = True

    #: The one layer that runs in int8, while a budget looks for those that cost most.
    only: str | None = None
    #: By graph and value: the signal-to-noise ratios of layers.
    ratios: dict[str, dict[int, float]] = field(default_factory=dict)

    def why_float(self, step: Step) -> str:
        """Why the layer is to stay in float; "" where it is not."""
        names = {name for where in (step.where, *step.sources) for name in _around(where)}
        if any(fnmatch.fnmatchcase(n, p) for n in names for p in self.skip):
            return "it is named in skip"
        if step.where in self.kept:
            return "it costs more than the budget allows"
        return "" if self.only in (None, step.where) else "another one is measured alone"

    def rewrite(self, graph: Graph, model: nn.Module, store: dict[Hashable, Any]) -> None:
        """Puts int8 steps into ``graph``, a call of ``model``, if it is one of those that were calibrated."""
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        names = {id(t): name for name, t in tensors}
        graph.plan = Rewritten(name_of(graph, names), values_of(graph), layers_in(graph))
        graph.plan.given = {s: s.results() for s in graph.steps}
        ranges = self.tables.get(graph.plan.name)
        if ranges is not None and len(ranges) != len(graph.plan.values):  # of a broken state
            ranges = None
        if not self.is_on or (ranges is None and not self.dynamic):
            return
        graph.plan.is_calibrated = True
        graph.plan.recurrent = use_int8_lstms(graph, self.why_float, store)
        if ranges is None:
            graph.plan.made = quantize_rows(graph, self.why_float, self.per_channel)
            left = [s for s in graph.plan.layers if s not in graph.plan.made]
            for step in left:
                why = why_no_kernel(step.function) if isinstance(step.function, FusedLinear) else _NOT_DYNAMIC
                graph.plan.reasons[step] = self.why_float(step) or why
            return
        known = {v: r for v, r in zip(graph.plan.values, ranges, strict=True) if r is not None}
        rewriter = Rewriter(graph, known, self.why_float, self.per_channel)
        graph.plan.int8 = rewriter.rewrite()
        graph.plan.made, graph.plan.reasons = rewriter.made, rewriter.reasons

    def settled(self, graph: Graph) -> None:
        """Formats are decided."""
        for step, results in graph.plan.given.items():
            now = step.results()
            if len(now) == len(results):  # of sequences only images are left, where nobody reads them
                moved = zip(now, results, strict=True)
                graph.plan.aliases.update((new, old) for new, old in moved if new is not old)
        settle_roundings(graph)

    def to_bytes(self) -> Tensor:
        """All of it as a tensor of bytes."""
        told = {
            "version": 1, "per_channel": self.per_channel, "skip": self.skip, "kept": self.kept,
            "dynamic": self.dynamic, "tables": self.tables, "ratios": self.ratios,
        }  # fmt: skip
        return torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)

    def take_bytes(self, state: Any) -> None:
        """Takes what `to_bytes` of another gave; ValueError where it is something else."""
        try:
            told = json.loads(bytes(state.tolist()).decode())
            if told["version"] != 1:
                raise ValueError("another version")
            options = bool(told["per_channel"]), bool(told["dynamic"]), tuple(told["skip"]), tuple(told["kept"])
            ratios = {name: {int(at): float(r) for at, r in found.items()} for name, found in told["ratios"].items()}
            tables: dict[str, Ranges] = {}
            for name, found in told["tables"].items():
                tables[name] = [None if r is None else (float(r[0]), float(r[1])) for r in found]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            expected = "the extra state of a quantised model, of version 1"
            got = f"{state.dtype} of shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
            fail(ValueError, "quantize", "state", expected, got)
        self.per_channel, self.dynamic, self.skip, self.kept = options
        self.ratios, self.tables = ratios, tables


@dataclass(eq=False)
class Rewritten:
    """What became of a graph: its name, its values and layers as they were in float, and the int8 forms of values."""

    name: str
    values: list[Value]
    layers: list[Step]
    int8: dict[Value, tuple[Value, Grid]] = field(default_factory=dict)
    #: What the steps gave before formats were settled, and what stands for such a value since.
    given: dict[Step, list[Value]] = field(default_factory=dict)
    aliases: dict[Value, Value] = field(default_factory=dict)
    is_calibrated: bool = False
    #: The layers that run in int8, and why others don't.
    made: dict[Step, Step] = field(default_factory=dict)
    reasons: dict[Step, str] = field(default_factory=dict)
    recurrent: dict[Step, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._positions = {v: i for i, v in enumerate(self.values)}
        self.of_layers_by_step = {s: self._positions[s.outputs] for s in self.layers}
        self.of_layers = frozenset(self.of_layers_by_step.values())

    def position(self, v: Value) -> int | None:
        """Which of its values ``v`` is, in float or in int8."""
        v = self.aliases.get(v, v)
        return self._positions.get(self.int8[v][0] if v in self.int8 else v)


def _around(where: str) -> Iterable[str]:
    """The name of a module and those of the modules around it."""
    parts = where.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)] if where else []
