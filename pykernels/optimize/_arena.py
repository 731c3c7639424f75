"""Memory for what a program makes on its way: planned by liveness for the shapes of its inputs, borrowed by each call.

The run that chooses the algorithms of the convolutions is watched (`Survey`): it shows which tensors share memory and
how the results of fused steps lie. A result that can't be seen from outside, neither itself nor a view of it, gets a
place in an arena; two may have the same place where they don't live at the same time. The kernels write there, so that
a call asks nobody for memory but for the steps of torch and for what it returns.

An arena belongs to one call at a time, and then waits for the next; a call that fails drops it. Those that waited for
long are given back to the system.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pykernels.optimize._graph import Graph, Step, Value, storage_of, values_in

#: Arenas of one plan that wait, and bytes of all that wait while another one is made.
_MOST_IDLE = 8
_MOST_IDLE_BYTES = 256 << 20
#: Who waits for longer than this, and at most twice as long, is given back.
_PATIENCE = 30.0
_ALIGN = 64
_BUILTIN = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a tensor lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


class Survey:
    """What a run shows of its tensors. ``bound`` are the constants of the fused steps, filled in as the run goes on."""

    def __init__(self, graph: Graph, fused: Sequence[Step], bound: Sequence[Any]) -> None:
        self.graph, self.bound = graph, bound
        self.number = {s: i for i, s in enumerate(fused)}
        self.owners: dict[Value, Value] = {}
        self.forms: dict[Step, Form] = {}
        self.workspace = 0

    def see(self, at: int, read: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Step ``at`` has read these and given those."""
        step = self.graph.steps[at]
        owners = {storage_of(t): self.owner(v) for v, t in zip(step.reads(), read, strict=True)}
        for v, t in zip(step.results(), given, strict=True):
            self.owners[v] = owners.get(storage_of(t), v)
        if step in self.number and given[0].is_cpu and given[0].numel():
            y = given[0]
            self.forms[step] = Form(y.shape, y.stride(), y.dtype, _extent(y) * y.itemsize)
            needs = torch.ops.pykernels.conv_bn_act_bound_workspace(read[0], self.bound[self.number[step]], y)
            self.workspace = max(self.workspace, needs)

    def owner(self, v: Value) -> Value:
        """The value that ``v`` is a view of, or itself."""
        return self.owners.get(v, v)


def _extent(t: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))


def write_op() -> Any:
    """Runs a bound convolution into a tensor that it is given, beside a workspace."""
    return torch.ops.pykernels.conv_bn_act_bound_out.default


def plan(survey: Survey) -> Plan | None:
    """Where the results of the fused steps are to lie; None where each of them can be seen from outside."""
    steps = survey.graph.steps
    seen = {survey.owner(v) for v in values_in(survey.graph.result)}
    last: dict[Value, int] = {}
    for i, step in enumerate(steps):
        for v in step.reads():
            last[survey.owner(v)] = i
            if _may_keep(step):
                seen.add(survey.owner(v))
    items = [
        _Item(step, form, i, last.get(step.outputs, i))
        for i, step in enumerate(steps)
        # Sizes that depend on values are others at the next call.
        if (form := survey.forms.get(step)) is not None and step.outputs not in seen and not step.outputs.dynamic
    ]
    return Plan(items, survey.workspace) if items else None


def _may_keep(step: Step) -> bool:
    """May a reference to what it reads outlive it?"""
    if step.kind in ("fused", "format"):
        return False
    function = step.function
    known = isinstance(function, types.FunctionType) and function.__module__.partition(".")[0] == "torch"
    return step.kind != "call" or not (known or isinstance(function, _BUILTIN))


@dataclass(eq=False)
class _Item:
    step: Step
    form: Form
    first: int
    last: int
    offset: int = -1


def _place(items: list[_Item], start: int) -> int:
    """Sets the offsets: the largest first, each into the smallest gap that holds it. Returns where they end."""
    placed: list[_Item] = []
    for item in sorted(items, key=lambda x: -x.form.nbytes):
        others = [o for o in placed if o.first <= item.last and item.first <= o.last]
        end, best, room = start, None, 0
        for other in sorted(others, key=lambda x: x.offset):
            gap = other.offset - end
            if gap >= item.form.nbytes and (best is None or gap < room):
                best, room = end, gap
            end = max(end, _aligned(other.offset + other.form.nbytes))
        item.offset = end if best is None else best
        placed.append(item)
    return max(_aligned(x.offset + x.form.nbytes) for x in items)


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN


class Plan:
    """The places of the results of ``steps``, and the arenas made by it that wait in ``idle`` or, longer, in ``aged``.

    An arena is a tuple of tensors: the workspace, then a result for each step.
    """

    def __init__(self, items: list[_Item], workspace: int) -> None:
        self.steps = tuple(x.step for x in items)
        self._workspace = workspace
        self.nbytes = _place(items, _aligned(workspace))
        self._places = [(x.form, x.offset) for x in items]
        self.idle: deque[tuple[Tensor, ...]] = deque(maxlen=_MOST_IDLE)
        self.aged: deque[tuple[Tensor, ...]] = deque(maxlen=_MOST_IDLE)
        with _lock:
            _plans.add(self)

    def kept(self) -> int:
        """Bytes that wait for the next call."""
        return self.nbytes * (len(self.idle) + len(self.aged))

    def arena(self) -> tuple[Tensor, ...]:
        """One for a call that finds none in ``idle``."""
        try:
            return self.aged.pop()
        except IndexError:
            pass
        with _lock:
            _make_room(self)
            _start_sweeping()
        with torch.inference_mode(False), torch.no_grad():  # the calls to come may be in any mode
            memory = torch.frombuffer(
                mmap.mmap(-1, self.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
            )
            storage = memory.untyped_storage()
            results = [
                torch.empty(0, dtype=f.dtype).set_(storage, offset // f.dtype.itemsize, f.shape, f.stride)
                for f, offset in self._places
            ]
            return memory[: self._workspace], *results

    def sweep(self) -> None:
        """Gives back what has waited since the last time."""
        self.aged.clear()
        while self.idle:
            try:
                self.aged.append(self.idle.popleft())
            except IndexError:
                break


_plans: weakref.WeakSet[Plan] = weakref.WeakSet()
_lock = threading.Lock()
_sweeper: threading.Thread | None = None


def _after_fork() -> None:
    """The thread that held the lock at the fork is not in the child, and would never let go."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _make_room(wanted: Plan) -> None:
    """Gives back waiting arenas of other plans, until few enough bytes wait beside a new one."""
    plans = list(_plans)
    kept = sum(p.kept() for p in plans) + wanted.nbytes
    for arenas, other in [*((p.aged, p) for p in plans), *((p.idle, p) for p in plans if p is not wanted)]:
        while kept > _MOST_IDLE_BYTES and arenas:
            try:
                arenas.popleft()
            except IndexError:
                break
            kept -= other.nbytes


def _start_sweeping() -> None:
    global _sweeper
    if _sweeper is None or not _sweeper.is_alive():
        _sweeper = threading.Thread(target=_sweep, name="pykernels arenas", daemon=True)
        _sweeper.start()


def _sweep() -> None:
    while True:
        time.sleep(_PATIENCE)
        with _lock:
            plans = list(_plans)
        for plan in plans:
            plan.sweep()
        del plans
