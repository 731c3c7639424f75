"""From a graph to straight-line Python, and what it needs at a call.

The generated function takes ``C``, the tuple of what was made from the sources (folded tensors, packed convolutions),
and the input tensors. ``C`` is made for the shapes of the inputs, for these choose the algorithm of a convolution, and
made anew when a source has changed; it is published in one assignment, so that a call sees one set or another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from pykernels import _native
from pykernels.nn._packed import Pack
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize import _arena
from pykernels.optimize._graph import Graph, Step, Value, mapped, values_in
from pykernels.optimize._layout import as_channels_last, as_contiguous
from pykernels.optimize._patterns import FusedConv
from pykernels.optimize._report import Left, Replaced, Report
from pykernels.optimize._watch import Watch

_MOST_SHAPES = 256
#: Torch's functions that a user may have expected to be replaced.
_OF_INTEREST = {
    "conv2d": "is of a dtype, a device or a rank that the kernels don't take, or its weights are no constants",
    "batch_norm": "does not follow a convolution that nothing else reads, or its statistics are no constants",
    "linear": "torch's own is as fast",
    "conv1d": "has no kernels of ours", "conv3d": "has no kernels of ours",
    "conv_transpose2d": "has no kernels of ours", "layer_norm": "has no kernels of ours",
}  # fmt: skip
_LITERALS = (type(None), bool, int, str)


class _Bound:
    """What was made of the sources as they are: one `Pack` that tells, and ``C`` by the inputs' shapes."""

    def __init__(self, pack: Pack | None) -> None:
        self.pack = pack
        self.values: dict[Value, Any] = {}
        self.convs: list[Any] = []
        #: What to run, and its ``C``.
        self.by_shape: dict[Hashable, tuple[Callable[..., Any], tuple[Any, ...]]] = {}

    def is_current(self) -> bool:
        pack = self.pack
        return pack is None or pack.is_current(pack.dtype, pack.index, None)


class Program:
    """A graph that can be run. ``folded`` steps are computed once for each version of the sources."""

    def __init__(self, graph: Graph, folded: list[Step], watch: Watch, store: dict[Hashable, Any]) -> None:
        self.graph, self.folded, self.watch, self.store = graph, folded, watch, store
        self.exact = graph.exact
        self.again = not any(s.kind == "opaque" or any(v.storage == -1 for v in s.writes) for s in graph.steps)
        self.fused = [s for s in graph.steps if isinstance(s.function, FusedConv)]
        read = [v for s in (*graph.steps, *folded) for v in s.reads()]
        read += [v for s in self.fused for v in s.function.parameters()]
        self.sources = [v for v in dict.fromkeys(read) if v.kind == "source"]
        self._constants = [v for s in folded for v in s.results()]
        self._writer = _Writer(self)
        self.run: Callable[..., Any] = self._writer.function("run")
        self._choosing: Callable[..., Any] | None = self._writer.function("choose") if self.fused else None
        self._bound: _Bound | None = None
        self._planned: dict[tuple[Any, ...], Callable[..., Any]] = {}

    @property
    def text(self) -> str:
        """The generated Python."""
        return self._writer.texts["run"]

    def wants_gradients(self) -> bool:
        """Has somebody asked for gradients of the weights?"""
        return any(v.tensor is not None and v.tensor.requires_grad for v in self.sources)

    def __call__(self, tensors: list[Tensor]) -> Any:
        """The result for these inputs."""
        bound = self._bound
        if bound is None or not bound.is_current():
            bound = self._renew()
        shapes = tuple([t.shape for t in tensors]) if self.fused else ()
        found = bound.by_shape.get(shapes)
        if found is not None:
            return found[0](found[1], *tensors)
        if self._choosing is None:
            bound.by_shape[shapes] = self.run, self._tuple(bound, [])
            return self.run(self._tuple(bound, []), *tensors)
        chosen: list[Any] = [None] * len(self.fused)
        survey = _arena.Survey(self.graph, self.fused, chosen)

        def choose(i: int, x: Tensor) -> Any:
            chosen[i] = self.fused[i].function.constant(bound.convs[i], x.shape)
            return chosen[i]

        result = self._choosing(self._tuple(bound, []), choose, survey.see, *tensors)
        if len(bound.by_shape) >= _MOST_SHAPES:
            bound.by_shape.clear()
        bound.by_shape[shapes] = self._with_arena(_arena.plan(survey), self._tuple(bound, chosen))
        return result

    def _with_arena(
        self, plan: _arena.Plan | None, constants: tuple[Any, ...]
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if plan is None:
            return self.run, constants
        run = self._planned.get(plan.keys)
        if run is None:
            run = self._planned[plan.keys] = self._writer.function("planned", plan.keys)
        return run, (*constants, plan.idle, plan.arena)

    def memory(self) -> int:
        """Bytes that it keeps for intermediates between calls."""
        bound = self._bound
        plans = [c[-1].__self__ for run, c in list(bound.by_shape.values()) if run is not self.run] if bound else []
        return sum(p.kept() for p in plans)

    def _tuple(self, bound: _Bound, chosen: list[Any]) -> tuple[Any, ...]:
        return (*(bound.values[v] for v in self._constants), *chosen)

    def _renew(self) -> _Bound:
        with torch.inference_mode(False), torch.no_grad():
            used = {v: None for s in self.folded for v in s.reads() if v.kind == "source"}
            used.update({v: None for s in self.fused for v in s.function.parameters() if v.kind == "source"})
            if any(
                (t.shape, t.dtype, t.device) != (v.shape, v.dtype, v.device)
                for v in used
                if (t := v.tensor) is not None
            ):
                raise RuntimeError("a source has become another kind of tensor")
            slots = [({"": v.tensor}, "") for v in used]
            pack = Pack(slots, torch.float32, None, lambda tensors: None) if slots else None
            bound = _Bound(pack)
            for step in self.folded:
                self._fold(step, bound.values)
            bound.convs = [s.function.pack(bound.values, self.store) for s in self.fused]
        self._bound = bound
        return bound

    def tell(self, report: Report) -> None:
        """What it runs."""
        report.programs += 1
        for step in self.graph.steps:
            if step in self.fused:
                report.replaced.append(Replaced(step.sources, step.note, "pk.ops.conv_bn_act"))
            elif step.kind == "module" and step.note:
                report.replaced.append(Replaced((step.where,), step.note, f"pk.nn.{step.note}"))
            elif step.kind == "call" and step.where is not None:
                report.torch_steps += 1
                name = step.name()
                if name in _OF_INTEREST:
                    report.left.append(Left(step.where or "the model", name, _why_not(step, name)))
            elif step.kind == "module":
                report.left.append(Left(step.where, step.name(), _why_not(step, "")))
        report.left += [Left(where or "the model", what, why) for where, what, why in self.graph.opaque]

    def _fold(self, step: Step, values: dict[Value, Any]) -> None:
        def tensor(x: Any) -> Any:
            return values.get(x, x.tensor) if isinstance(x, Value) else x

        result = step.function(*mapped(step.args, tensor), **mapped(step.kwargs, tensor))
        for value, got in zip(step.results(), _flat(result), strict=True):
            values[value] = got


def _why_not(step: Step, name: str) -> str:
    """Why a call is torch's."""
    if getattr(step.function, "proj_size", 0):
        return "has projections (proj_size), which the kernels don't know"
    x = next(step.reads(), None)
    if name == "conv2d" and x is not None:
        if _native.error is not None:
            return _native.error
        takes = CONV_BN_ACT.takes(x.device.type)
        if x.dtype not in takes:
            return f"is {_short(x.dtype)}; the kernels take {' and '.join(map(_short, takes))}"
    return _OF_INTEREST.get(name, "has no kernels of ours")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for x in result if x is not None for t in _flat(x)]


class _Writer:
    """Writes a graph down as Python."""

    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, program.graph
        self.names: dict[str, Any] = {"contiguous": as_contiguous, "channels_last": as_channels_last}
        self.texts: dict[str, str] = {}
        self._known: dict[int, str] = {}
        self._constants = {v: i for i, v in enumerate(v for s in program.folded for v in s.results())}

    def function(self, name: str, planned: tuple[Any, ...] = ()) -> Callable[..., Any]:
        """``planned`` are the keys of `_arena.Plan`; the end of ``C`` says how to get an arena."""
        inputs = ["C", *(["choose", "see"] if name == "choose" else []), *map(repr, self.graph.inputs)]
        lines = [f"def {name}({', '.join(inputs)}):"]
        if planned:
            lines += [
                "    try:",
                "        A = C[-2].pop()",
                "    except IndexError:",
                "        A = C[-1]()",
                "    W = A[0]",
            ]
        last = self._last_uses()
        places = {key: f"A[{i}]" for i, key in enumerate(planned, 1)}
        conv = 0
        for i, step in enumerate(self.graph.steps):
            fused = isinstance(step.function, FusedConv)
            constant = ""
            if fused:
                constant = f"choose({conv}, {self._value(step.args[0])})"
                constant = constant if name == "choose" else f"C[{len(self._constants) + conv}]"
            conv += fused
            lines.append(f"    {self._statement(step, constant, places)}")
            if name == "choose":
                read, given = (", ".join(map(self._value, vs)) for vs in (step.reads(), step.results()))
                lines.append(f"    see({i}, [{read}], [{given}])")
            dead = last.get(i, ())
            if dead:
                lines.append(f"    del {', '.join(map(repr, dead))}")
        if planned:
            lines.append("    C[-2].append(A)")
        lines.append(f"    return {self._expression(self.graph.result)}")
        self.texts[name] = "\n".join(lines) + "\n"
        space = self.names
        exec(compile(self.texts[name], f"<pykernels program {name}>", "exec"), space)
        return space[name]

    def _last_uses(self) -> dict[int, list[Value]]:
        last: dict[Value, int] = {}
        for i, step in enumerate(self.graph.steps):
            for v in step.results():
                last[v] = i
            for v in step.reads():
                if v in last:
                    last[v] = i
        for v in values_in(self.graph.result):
            last.pop(v, None)
        by_step: dict[int, list[Value]] = {}
        for v, i in last.items():
            by_step.setdefault(i, []).append(v)
        return by_step

    def _statement(self, step: Step, constant: str, places: dict[Any, str]) -> str:
        if step in places or (step, "at once") in places:
            return self._into_place(step, constant, places)
        if constant:
            x, residual = step.args
            function: Any = step.function
            given = f"channels_last({self._value(x)})" if function.channels_last else self._value(x)
            call = f"{self._name(function.run)}({given}, {constant}, {self._expression(residual)})"
            if function.fix:
                call = f"{function.fix}({call})"
        else:
            arguments = [self._expression(a) for a in step.args]
            arguments += [f"{k}={self._expression(v)}" for k, v in step.kwargs.items()]
            call = f"{self._name(step.function)}({', '.join(arguments)})"
        return call if step.outputs is None else f"{_pattern(step.outputs)} = {call}"

    def _into_place(self, step: Step, constant: str, places: dict[Any, str]) -> str:
        """What `_statement` is for a step whose result lies in the arena."""
        y = repr(step.outputs)
        if (step, "at once") in places:
            copied = [(i, v) for i, v in enumerate(step.args[0]) if (step, i) in places]
            made = [f"{places[step, i]}.copy_({self._value(v)})" for i, v in copied]
            return "; ".join([f"{y} = {places[step, 'at once']}", *made])
        function, given, out = _arena.write_call(step) or (_arena.write_op(), (*step.args,), "")
        arguments = [self._expression(x) for x in given]
        if constant:
            arguments = [arguments[0], constant, arguments[1], y, "W"]
        else:
            arguments.append(f"out=({y}, {places[step, out]})" if out else f"out={y}")
        return f"{y} = {places[step]}; {self._name(function)}({', '.join(arguments)})"

    def _value(self, v: Value) -> str:
        if v in self._constants:
            return f"C[{self._constants[v]}]"
        return self._name(v.tensor) if v.kind == "source" else repr(v)

    def _expression(self, x: Any) -> str:
        if isinstance(x, Value):
            return self._value(x)
        if type(x) in _LITERALS or (type(x) is float and math.isfinite(x)):
            return repr(x)
        if x is Ellipsis:
            return "..."
        if type(x) is tuple or type(x) is list:
            items = [self._expression(i) for i in x]
            if type(x) is list:
                return f"[{', '.join(items)}]"
            return f"({', '.join(items)}{',' * (len(items) == 1)})"
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return f"{self._name(type(x))}({', '.join(self._expression(i) for i in x)})"
        if type(x) is dict:
            items = [f"{self._expression(k)}: {self._expression(v)}" for k, v in x.items()]
            return f"{{{', '.join(items)}}}"
        if type(x) is slice:
            return f"slice({', '.join(self._expression(i) for i in (x.start, x.stop, x.step))})"
        return self._name(x)

    def _name(self, x: Any) -> str:
        if id(x) not in self._known:
            name = f"k{len(self._known)}"
            self._known[id(x)] = name
            self.names[name] = x
        return self._known[id(x)]


def _pattern(outputs: Any) -> str:
    if outputs is None:
        return "_"
    if isinstance(outputs, Value):
        return repr(outputs)
    items = [_pattern(x) for x in outputs]
    return f"({', '.join(items)}{',' * (len(items) == 1)})"
