"""Runs a twin's float programs on batches and finds the ranges of all that they compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pykernels.ops._arguments import fail
from pykernels.optimize._face import family_of
from pykernels.optimize._graph import Value
from pykernels.quantize._grid import Observer
from pykernels.quantize._plan import Plan, Ranges
from pykernels.quantize._steps import in_float
from pykernels.quantize._tune import Channels, equalised

if TYPE_CHECKING:
    from pykernels.optimize._program import Program

OP = "quantize"
#: Of a batch: the first call of a kind, and another where that one filled a cache.
_MOST_RECORDINGS = 2
#: A call's arguments.
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Watcher:
    """Stands in for the programs' own calls while a model is watched. ``see`` gets each value and its tensor."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        #: How many calls of modules have been recorded, and not watched.
        self.missed = 0

    def run(self, program: Program, tensors: list[Tensor]) -> Any:
        """The result of ``program`` for ``tensors``."""
        self.programs[program.graph.rewritten.name] = program
        for v, t in zip(program.graph.inputs, tensors, strict=True):
            self.see(program, v, t)

        def see(at: int, _: Sequence[Any], given: Sequence[Any]) -> None:
            for v, t in zip(program.graph.steps[at].results(), given, strict=True):
                if isinstance(t, Tensor):
                    self.see(program, v, t)

        return program.watched(tensors, see)

    def see(self, program: Program, v: Value, t: Tensor) -> None:
        """``t`` is what ``v`` of ``program`` is now."""
        raise NotImplementedError


class RangeWatcher(Watcher):
    """Finds ranges with observers of one method."""

    def __init__(self, method: str, by_channel: bool) -> None:
        super().__init__()
        self.method, self.by_channel = method, by_channel
        #: By graph and value: what the channels are that layers read.
        self.channels: dict[str, dict[int, Channels]] = {}
        self.observers: dict[str, list[Observer | None]] = {}
        self.broken: set[str] = set()

    def see(self, program: Program, v: Value, t: Tensor) -> None:
        """Widens the range of ``v``."""
        graph = program.graph.rewritten
        at = graph.position(v)
        if at is None or not t.is_floating_point():
            return
        seen = self.observers.setdefault(graph.name, [None] * len(graph.values))
        found = seen[at]
        if found is None:
            found = seen[at] = Observer(self.method)
        if not found.see(t):
            self.broken.add(next((s.where for s in program.graph.steps if v in s.results()), "an input"))
        elif self.by_channel and at in graph.axes and t.numel():
            self.channels.setdefault(graph.name, {}).setdefault(at, Channels(graph.axes[at])).see(t)

    def tune(self, plan: Plan, equalize: bool, correct_bias: bool) -> None:
        """Sets what ``plan`` does to weights and biases before and after they are rounded."""
        for name, channels in self.channels.items():
            program = self.programs[name]
            if correct_bias:
                plan.means[name] = {at: c.mean() for at, c in channels.items()}
            pairs = [p for p in program.graph.rewritten.pairs if p.at in channels]
            if equalize and pairs:
                values = program.current().values
                layers = dict.fromkeys(s for p in pairs for s in (p.giver, *p.readers))
                weights = {s: _weight(s.function, values) for s in layers}
                plan.factors[name] = equalised(pairs, weights, channels, plan.per_channel)

    def tables(self) -> dict[str, Ranges]:
        """The ranges by graph."""
        return {name: [None if o is None else o.range() for o in found] for name, found in self.observers.items()}


def _weight(layer: Any, values: Mapping[Value, Any]) -> Tensor:
    """The weight of a layer in float, (K, C / groups, R, S), with its batch norm."""
    parts = layer.weight, layer.bias, *(layer.norm or (None,) * 4)
    tensors: list[Any] = [None if v is None else values.get(v, v.tensor) for v in parts]
    return in_float([layer.filters(tensors[0]), *tensors[1:]], layer.eps)[0]


def calls_of(model: nn.Module, batches: Any) -> Iterable[Call]:
    """The calls of ``model`` that ``batches`` stand for, one for each.

    A dict holds the arguments by name; a tuple or list holds those by position, where one more than ``forward`` takes
    is a label, and dropped, and so is one more than it requires if that is a tensor of integers; all else is the one
    argument.
    """
    if isinstance(batches, Tensor):
        fail(TypeError, OP, "batches", "an iterable of batches, such as [x] or a DataLoader", "a tensor")
    try:
        found = iter(batches)
    except TypeError:
        fail(TypeError, OP, "batches", "an iterable of batches, such as [x] or a DataLoader", type(batches).__name__)
    needed, most = _positions(model.forward)
    for batch in found:
        if isinstance(batch, Mapping):
            yield (), dict(batch)
        elif isinstance(batch, tuple | list):
            last = batch[-1] if batch else None
            integers = isinstance(last, Tensor) and not last.is_floating_point() and most < float("inf")
            drops = len(batch) == most + 1 or (integers and len(batch) == needed + 1 > 1)
            yield tuple(batch[:-1] if drops else batch), {}
        else:
            yield (batch,), {}


def _positions(forward: Callable[..., Any]) -> tuple[int, float]:
    """How many arguments it needs by position, and how many it takes."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return 1, 1
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = [p for p in parameters if p.kind in kinds]
    any_number = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return sum(p.default is inspect.Parameter.empty for p in taken), float("inf") if any_number else len(taken)


def run_all(twin: nn.Module, calls: Iterable[Call], watcher: Watcher | None, each: Callable[[Any], None]) -> int:
    """Calls ``twin`` for all of ``calls``, watched; ``each`` gets the results. Returns their number."""
    family = family_of(twin)
    count = 0
    with torch.no_grad():
        for count, (args, kwargs) in enumerate(calls, 1):
            _check(twin, count - 1, args, kwargs)
            try:
                # Of copies: a model may write to what it is given.
                result = _watched(twin, family, watcher, args, kwargs)
            except Exception as problem:
                told = f"pykernels.{OP}: batches: batch {count - 1} makes the model raise {type(problem).__name__}"
                raise RuntimeError(f"{told}: {problem}") from problem
            each(result)
    return count


def _watched(twin: Any, family: Any, watcher: Watcher | None, args: Any, kwargs: Any) -> Any:
    def call() -> Any:
        given, named = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        return twin(*given, **named)

    if watcher is None:
        return call()
    family.watcher = watcher
    try:
        for _ in range(_MOST_RECORDINGS + 1):
            watcher.missed = 0
            result = call()
            if not watcher.missed:  # it was no recording, not even of a part
                break
    finally:
        family.watcher = None
    return result


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts back what calls write to the model's buffers, such as counters of calls."""
    before = [(t, t._version, t.detach().clone()) for t in model.buffers() if not t.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, version, value in before:
                if t._version != version:
                    t.copy_(value)


def _check(twin: nn.Module, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    device = next((t.device for t in (*twin.parameters(), *twin.buffers())), torch.device("cpu"))
    for t in (*args, *kwargs.values()):
        if not isinstance(t, Tensor):
            continue
        name = f"batch {number}"
        if t.device != device:
            fail(ValueError, OP, "batches", f"{name} on {device}, where the model is", t.device)
        if t.numel() == 0:
            fail(ValueError, OP, "batches", f"{name} with elements", f"shape {tuple(t.shape)}")
        if t.is_floating_point() and not bool(t.isfinite().all()):
            fail(ValueError, OP, "batches", f"{name} of finite numbers", "NaN or infinity")


def nothing_given(count: int) -> None:
    """Refuses it, if ``count`` batches are none."""
    if count == 0:
        fail(ValueError, OP, "batches", "at least one", "none (an empty list, or an iterator that has been used up)")


def calibrate(
    twin: nn.Module, plan: Plan, calls: Iterable[Call], method: str, equalize: bool = False, correct_bias: bool = False
) -> None:
    """Sets the tables of ``plan``."""
    family = family_of(twin)
    watcher = RangeWatcher(method, equalize or correct_bias)
    plan.is_on = False
    try:
        count = run_all(twin, calls, watcher, lambda _: None)
        if not watcher.broken:
            watcher.tune(plan, equalize, correct_bias)
    finally:
        plan.is_on = True
        family.forget()
    nothing_given(count)
    if watcher.broken:
        where = ", ".join(sorted(watcher.broken))
        fail(ValueError, OP, "batches", "finite numbers in all of the model", f"NaN or infinity in {where}")
    plan.tables |= watcher.tables()
