"""Makes straight-line Python of a graph, and keeps what it needs at a call.

The generated function takes ``C``, the tuple of what was made from the sources (folded tensors, packed convolutions),
and the input tensors. ``C`` is made for the shapes of the inputs, because these choose the algorithm of a convolution,
and made again when a source has changed. One assignment publishes it, so that a call sees one set or another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pykernels.models._fused import Fused
from pykernels.nn.conv import ConvPack
from pykernels.optimize import _arena
from pykernels.optimize._chains import chain_op, chains, kept
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Made, Step, Value, layout_of, mapped, values_in
from pykernels.optimize._keep import PackedWeight
from pykernels.optimize._layout import FIXES, as_channels_last
from pykernels.optimize._recall import KnownCall, known_sources
from pykernels.optimize._sources import Sources
from pykernels.optimize._squeeze import is_squeeze
from pykernels.optimize._watch import Watch

_MOST_SHAPES = 256
_MOST_RUNS = 16
_LITERALS = (type(None), bool, int, str)


class _Bound:
    """What was made of the sources as they are, and ``C`` by the inputs' shapes."""

    def __init__(self, sources: Sources | None) -> None:
        self.sources = sources
        self.values: dict[Value, Any] = {}
        self.convs: list[Any] = []
        #: The function to run and its ``C``.
        self.by_shape: dict[Hashable, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        #: By the same, where what lies between the steps has a place.
        self.plans: dict[Hashable, _arena.Plan] = {}
        self.torchs: dict[tuple[int, str], Callable[..., Tensor]] = {}

    def by_torch(self, i: int, conv: FusedConv, layout: str) -> Callable[..., Tensor]:
        """The ``i``-th fused step by torch's functions, for inputs in ``layout``."""
        found = self.torchs.get((i, layout))
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = self.torchs[i, layout] = conv.by_torch(self.values, layout)
        return found

    def is_current(self) -> bool:
        return self.sources is None or self.sources.are_current()


class Program:
    """A graph that can be run. ``folded`` steps are computed once for each version of the sources."""

    def __init__(self, graph: Graph, folded: list[Step], watch: Watch, store: dict[Hashable, Any]) -> None:
        self.graph, self.folded, self.watch, self.store = graph, folded, watch, store
        self.exact, self.unsure = graph.exact, graph.unsure
        #: Whether it holds only in the gradient mode that it was recorded in.
        self.asks_modes = True
        #: Whether its parameters have yet to be searched for those that may exist only in packed form.
        self.is_new = True
        self.is_whole = not any(s.kind == "opaque" for s in graph.steps)
        self.writes_inputs = any(v.storage == -1 for s in graph.steps for v in s.writes)
        self.again = self.is_whole and not self.writes_inputs
        self.fused = [s for s in graph.steps if isinstance(s.function, FusedConv)]
        self._counters = _counters(watch)
        for step in self.fused:
            mean = step.function.norm[0] if step.function.norm else None
            step.function.counter = None if mean is None else self._counters.get(id(mean.tensor))
        read = [v for s in (*graph.steps, *folded) for v in s.reads()]
        read += [v for s in self.fused for v in s.function.parameters()]
        self.sources = [v for v in dict.fromkeys(read) if v.kind == "source"]
        self._constants = [v for s in folded for v in s.results()]
        self._writer = _Writer(self)
        #: The functions, by which of the fused steps are ours and what lies in an arena.
        self._runs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._writing = threading.Lock()
        chooses = bool(self.fused) or any(s.kind == "format" for s in graph.steps)  # these turn something, or nothing
        self._choosing: Callable[..., Any] | None = self._writer.function("choose") if chooses else None
        self._bound: _Bound | None = None
        #: For the report: the inputs' sizes at the last choice and those of all values (the recorded ones where nothing
        #: was chosen, or a part can't be followed), which steps turn what they are given, why fused ones are torch's.
        self.sizes = [tuple(v.shape) for v in graph.inputs]
        self.shapes: dict[Value, torch.Size] = {}
        self.turned: set[Step] = set()
        self.reasons = [s.function.torchs_because(s.args[0].shape, s.args[0].layout) for s in self.fused]

    def text(self) -> str:
        """The Python that ran last, or would for the recorded sizes."""
        return self._writer.last

    def wants_gradients(self) -> bool:
        """Whether somebody wants gradients of the weights."""
        return any(v.tensor is not None and v.tensor.requires_grad for v in self.sources)

    def shares(self, tensors: list[Tensor]) -> bool:
        """Whether an input lies in a source's memory. What was made of that source would be stale in the middle."""
        mine = {v.tensor.untyped_storage().data_ptr() for v in self.sources if v.tensor is not None}
        return any(t.untyped_storage().data_ptr() in mine for t in tensors)

    def __call__(self, tensors: list[Tensor]) -> Any:
        """The result for these inputs."""
        bound = self._bound  # not by `current`: a call costs as much as the rest
        if bound is None or not bound.is_current():
            bound = self._renew()
        shapes = self._shapes(tensors)
        found = bound.by_shape.get(shapes)
        if found is None:
            return self._choose(bound, shapes, tensors)
        run, constants = found
        return run(constants, *tensors)

    def watched(self, tensors: list[Tensor], see: Callable[[int, Any, Any], None]) -> Any:
        """The result for these inputs; ``see`` gets each step's number, and the tensors that it read and gave."""
        bound = self.current()
        if self._choosing is None:
            with self._writing:
                self._choosing = self._writer.function("choose")
        folded = tuple(bound.values[v] for v in self._constants)
        return self._choosing(folded, lambda i, x, residual: self.chosen(bound, i, x)[1](x, residual), see, *tensors)

    def entry(
        self, modes: tuple[Any, ...], args: Hashable, kwargs: Hashable, tensors: list[Tensor]
    ) -> KnownCall | None:
        """What `recall` needs to call it for these inputs, that it has just run for; None where that is not all."""
        bound = self._bound
        found = None if bound is None else bound.by_shape.get(self._shapes(tensors))
        if bound is None or found is None or not self.again or not self.watch.is_flat():
            return None
        sources = None if bound.sources is None else known_sources(bound.sources)
        if bound.sources is not None and sources is None:
            return None
        weights = tuple([v.tensor for v in self.sources if v.tensor is not None]) if modes[0] else ()
        return KnownCall(modes, args, kwargs, self.watch.flat(), sources, weights, *found, self, bound)

    def is_of(self, bound: Any) -> bool:
        """Is ``bound`` what it has made of its sources last?"""
        return self._bound is bound

    def _shapes(self, tensors: list[Tensor]) -> Hashable:
        return tuple([t.shape for t in tensors]) if self.fused else ()

    def current(self) -> _Bound:
        """What was made of the sources, made again if these have changed."""
        bound = self._bound
        return self._renew() if bound is None or not bound.is_current() else bound

    def let_go(self) -> None:
        """Holds the sources by nothing that torch counts, until it is called again."""
        self._bound = None

    def chosen(self, bound: _Bound, i: int, x: Tensor) -> tuple[str, Callable[..., Tensor], Any]:
        """For the ``i``-th fused step: why it is torch's, what runs it from x and the residual, and its constant."""
        conv, layout = self.fused[i].function, layout_of(x)
        why = conv.torchs_because(x.shape, layout)
        if why:
            run = bound.by_torch(i, conv, layout)
            return why, run, run
        constant = conv.constant(bound.convs[i], x.shape)
        return "", lambda x, residual: conv.run(x, constant, residual), constant

    def _choose(self, bound: _Bound, shapes: Hashable, tensors: list[Tensor]) -> Any:
        """Runs once with decisions made on the way: the algorithm of each convolution, and whether it is torch's."""
        folded = tuple(bound.values[v] for v in self._constants)
        constants: list[Any] = [None] * len(self.fused)
        reasons = [""] * len(self.fused)
        survey = _arena.Survey(self.graph, self.fused, constants)

        def choose(i: int, x: Tensor, residual: Tensor | None) -> Tensor:
            reasons[i], run, constants[i] = self.chosen(bound, i, x)
            return run(x, residual)

        plan = None
        if self._choosing is not None:
            result = self._choosing(folded, choose, survey.see, *tensors)
            plan = _arena.plan(survey) if self.fused else None
        run = self._run_for(tuple(not why for why in reasons), () if plan is None else plan.keys)
        if len(bound.by_shape) >= _MOST_SHAPES:
            bound.by_shape.clear()
            bound.plans.clear()
        places: tuple[Any, ...] = ()
        if plan is not None:
            bound.plans[shapes] = plan
            places = plan.idle, plan.arena
        bound.by_shape[shapes] = run, (*folded, *constants, *places)
        if self._choosing is None:
            return run(folded, *tensors)
        self.reasons, self.turned, self.is_new = reasons, survey.turned, True
        if self.is_whole:
            self.sizes, self.shapes = [tuple(t.shape) for t in tensors if isinstance(t, Tensor)], survey.shapes
        return result

    def _run_for(self, ours: tuple[bool, ...], planned: tuple[Any, ...]) -> Callable[..., Any]:
        with self._writing:
            if (ours, planned) not in self._runs:
                if len(self._runs) >= _MOST_RUNS:
                    self._runs.clear()
                self._runs[ours, planned] = self._writer.function("planned" if planned else "run", ours, planned)
            return self._runs[ours, planned]

    def plans(self) -> list[_arena.Plan]:
        """Those of the sizes of input that it knows."""
        return list(self._bound.plans.values()) if self._bound else []

    def memory(self) -> int:
        """Bytes that it keeps for intermediates between calls."""
        return sum(p.kept() for p in self.plans())

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
            tensors = [v.tensor for v in used if v.tensor is not None and type(v.tensor) is not PackedWeight]
            counters = [self._counters[id(t)] for t in tensors if id(t) in self._counters]
            bound = _Bound(Sources([*tensors, *counters]) if tensors else None)
            for step in self.folded:
                self._fold(step, bound.values)
            bound.convs = [s.function.pack(bound.values, self.store) for s in self.fused]
        self._bound = bound
        return bound

    def packed(self) -> dict[int, int]:
        """The bytes of what was made from the sources, by the address of its memory: programs share it."""
        bound = self._bound
        if bound is None:
            return {}
        tensors = [t for t in bound.values.values() if isinstance(t, Tensor)]
        tensors += [t for pack in bound.convs for t in pack.tensors()]
        tensors += [t for s in self.graph.steps if s.kind == "module" for t in packed_by(s.function)]
        copied = {id(run): self.fused[i].function for (i, _), run in bound.torchs.items()}
        copied = {at: f for at, f in copied.items() if f.rank == 4 or f.norm is not None}
        folded = {at: math.prod(f.weight.shape) * 4 for at, f in copied.items()}
        return folded | sizes(tensors)

    def _fold(self, step: Step, values: dict[Value, Any]) -> None:
        def tensor(x: Any) -> Any:
            return values.get(x, x.tensor) if isinstance(x, Value) else x

        result = step.function(*mapped(step.args, tensor), **mapped(step.kwargs, tensor))
        for value, got in zip(step.results(), _flat(result), strict=True):
            values[value] = got


def sizes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of each, by the address of its end: there a part of it ends too that is kept beside it."""
    return {t.data_ptr() + t.nbytes: t.nbytes for t in tensors}


def packed_by(module: nn.Module) -> list[Tensor]:
    """What modules of `pykernels.nn` in ``module``, or in one of `pykernels.models`, keep packed."""
    tensors: list[Any] = []
    modules = [n for m in module.modules() for n in (m, *(v.block for v in vars(m).values() if isinstance(v, Fused)))]
    for pack in (vars(m).get("_pack") for m in modules):
        if isinstance(pack, ConvPack):
            tensors += pack.tensors()
        elif pack is not None:
            tensors += pack.value if type(pack.value) is tuple else [pack.value]
    return [t for t in tensors if isinstance(t, Tensor)]


def _counters(watch: Watch) -> dict[int, Tensor]:
    """By its running mean, what a batch norm counts its training steps with, where it is on a GPU.

    There the steps write to the statistics without counting a version, and it takes too long to compare what is in
    them; but each of them counts one of the counter, through torch.
    """
    norms = [m for m in watch.modules.values() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    told = [(m.running_mean, m.num_batches_tracked) for m in norms]
    return {id(mean): count for mean, count in told if mean is not None and count is not None and not mean.is_cpu}


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for x in result if x is not None for t in _flat(x)]


class _Writer:
    """Writes a graph down as Python."""

    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, program.graph
        self.names: dict[str, Any] = {"channels_last": as_channels_last}
        self.last = ""
        self._known: dict[int, str] = {}
        self._number = {step: i for i, step in enumerate(program.fused)}
        self._constants = {v: i for i, v in enumerate(v for s in program.folded for v in s.results())}

    def function(self, name: str, ours: tuple[bool, ...] = (), planned: tuple[Any, ...] = ()) -> Callable[..., Any]:
        """``run``, where these of the fused steps are ours; or ``choose``, which asks about each.

        ``planned`` are the keys of `_arena.Plan`; the end of ``C`` says how to get an arena.
        """
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
        dead: list[Value] = []
        chain_of = {step: chain for chain in chains(self.graph.steps, places) for step in chain}
        for i, step in enumerate(self.graph.steps):
            if step in chain_of:
                if step is chain_of[step][-1]:
                    lines.append(f"    {self._chain(chain_of[step], places)}")
            elif step in places or (step, "at once") in places:
                lines.append(f"    {self._into_place(step, conv, places)}")
            elif isinstance(step.function, FusedConv):
                lines.append(f"    {self._fused(step, conv, None if name == 'choose' else ours[conv])}")
            else:
                lines.append(f"    {self._statement(step)}")
            conv += isinstance(step.function, FusedConv)
            if name == "choose":
                read, given = (", ".join(map(self._value, vs)) for vs in (step.reads(), step.results()))
                lines.append(f"    see({i}, [{read}], [{given}])")
            dead += last.get(i, ())
            if dead and (step not in chain_of or step is chain_of[step][-1]):
                lines.append(f"    del {', '.join(map(repr, dead))}")
                dead = []
        if planned:
            lines.append("    C[-2].append(A)")
        lines.append(f"    return {self._expression(self.graph.result)}")
        self.last = "\n".join(lines) + "\n"
        space = self.names
        exec(compile(self.last, f"<pykernels program {name}>", "exec"), space)
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

    def _fused(self, step: Step, i: int, is_ours: bool | None) -> str:
        x, residual = step.args
        conv: FusedConv = step.function
        given = f"channels_last({self._value(x)})" if conv.channels_last else self._value(x)
        constant = f"C[{len(self._constants) + i}]"
        if is_ours is None:
            call = f"choose({i}, {given}, {self._expression(residual)})"
        elif is_ours:
            call = f"{self._name(conv.run)}({given}, {constant}, {self._expression(residual)})"
        else:
            call = f"{constant}({given}, {self._expression(residual)})"
        fixed = f"{self._name(FIXES[conv.fix])}({call})" if conv.fix else call
        return f"{_pattern(step.outputs)} = {fixed}"

    def _statement(self, step: Step) -> str:
        arguments = [self._expression(a) for a in step.args]
        arguments += [f"{k}={self._expression(v)}" for k, v in step.kwargs.items()]
        function = self._name(step.function)
        if step.kind == "module" and vars(step.function).get("_compiled_call_impl") is not None:
            function += "._call_impl"  # its stub would ask again what has been asked
        call = f"{function}({', '.join(arguments)})"
        return call if step.outputs is None else f"{_pattern(step.outputs)} = {call}"

    def _into_place(self, step: Step, i: int, places: dict[Any, str]) -> str:
        """What `_statement` is for a step whose result lies in the arena."""
        y = repr(step.outputs)
        if (step, "at once") in places:
            copied = [(i, v) for i, v in enumerate(step.args[0]) if (step, i) in places]
            made = [f"{places[step, i]}.copy_({self._value(v)})" for i, v in copied]
            return "; ".join([f"{y} = {places[step, 'at once']}", *made])
        function, given = _arena.write_call(step) or (step.function.write_op(), (*step.args,))
        arguments = [self._expression(x) for x in given]
        if isinstance(step.function, FusedConv):
            arguments = [arguments[0], f"C[{len(self._constants) + i}]", arguments[1], y, "W"]
        else:
            arguments.append(f"out={y}")
        return f"{y} = {places[step]}; {self._name(function)}({', '.join(arguments)})"

    def _chain(self, chain: list[Step], places: dict[Any, str]) -> str:
        """The same for steps that are one call."""
        made, bound, added = [], [], []
        weights: list[str] = []
        codes: list[str] = []
        int8 = torch.ops.pykernels.int8_conv2d_chain_out.default
        is_int8 = chain_op(chain[0]) is int8
        for step in chain:
            x, *rest = step.args
            made.append(f"{step.outputs!r} = {places[step] if step in places else self._value(x)}")
            if not is_squeeze(step):
                bound.append(f"C[{len(self._constants) + self._number[step]}]")
                added.append(self._expression(rest[0]))
            else:
                bound.append("None")
                added.append("None")
                weights += map(self._expression, rest[:4])
                codes += map(repr, rest[4:])
        read = ", ".join(self._value(step.args[0]) for step in chain)
        outputs = ", ".join(repr(step.outputs) for step in chain)
        lists = f"[{', '.join(bound)}], [{', '.join(added)}], [{outputs}]"
        if not is_int8:
            lists += f", {kept(self.graph, chain)}, [{', '.join(weights)}], [{', '.join(codes)}]"
        op = self._name(int8 if is_int8 else torch.ops.pykernels.conv_bn_act_chain_out.default)
        return f"{'; '.join(made)}; {op}([{read}], {lists}, W)"

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
            return f"tuple.__new__({self._name(type(x))}, {self._expression(tuple(x))})"
        if type(x) is dict:
            items = [f"{self._expression(k)}: {self._expression(v)}" for k, v in x.items()]
            return f"{{{', '.join(items)}}}"
        if type(x) is Made:
            parts = self._name(x.kind), self._expression(x.items), self._expression(x.attributes)
            return f"{self._name(Made.make)}({', '.join(parts)})"
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
