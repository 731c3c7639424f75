"""Memory for a program's intermediates: planned by liveness for the shapes of its inputs, borrowed by each call.

`Survey` watches the run that chooses the algorithms of the convolutions. That run shows which tensors share memory and
how the results of fused steps lie. A result gets a place in an arena if nobody outside can see it or a view of it. Two
results may have the same place if they do not live at the same time. The kernels write there, so a call allocates
memory only for torch's steps and for what it returns. Fused steps whose results torch.cat would only copy write into
slices of its result.

An arena belongs to one call at a time, and then waits for the next; a call that fails drops it. Arenas that have waited
for long go back to the system.
"""

from __future__ import annotations

import os
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pykernels._huge import memory
from pykernels.nn._phases import BoundTransposed
from pykernels.optimize._calls import OurCall
from pykernels.optimize._chains import needed
from pykernels.optimize._graph import Graph, Step, Value, is_torchs, storage_of, values_in
from pykernels.optimize._kinds import name_of
from pykernels.optimize._norms import is_join, is_norm
from pykernels.optimize._patterns import constant_norm
from pykernels.optimize._squeeze import is_squeeze
from pykernels.optimize._torchs import norm_into

#: The most arenas of one plan that wait, and the most bytes of all that wait when another one is made.
_MOST_IDLE = 8
_MOST_IDLE_BYTES = 256 << 20
#: An arena that waits for longer than this, and at most for twice as long, goes back to the system.
_PATIENCE = 30.0
_ALIGN = 64
_SLICES = frozenset(("chunk", "split", "narrow", "__getitem__"))
_BUILTIN = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a tensor lies in memory; ``address`` is that of its first element in the run that was watched."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    address: int = 0

    @property
    def nbytes(self) -> int:
        """From its first element to its last."""
        return (1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))) * self.dtype.itemsize

    def part(self, channels: int) -> Form:
        """The same with fewer channels, in the same memory."""
        return Form(torch.Size((self.shape[0], channels, *self.shape[2:])), self.stride, self.dtype)


class Survey:
    """What a run shows of its tensors. ``bound`` are the constants of the fused steps, filled in as the run goes on."""

    def __init__(self, graph: Graph, fused: Sequence[Step], bound: Sequence[Any]) -> None:
        self.graph, self.bound = graph, bound
        self.number = {s: i for i, s in enumerate(fused)}
        self.owners: dict[Value, Value] = {}
        #: Of what steps give, on the CPU and not empty.
        self.forms: dict[Value, Form] = {}
        #: For the report.
        self.shapes: dict[Value, torch.Size] = {}
        #: The steps that turned what they were given to another memory format: conversions, and convolutions.
        self.turned: set[Step] = set()
        self.workspace = 0

    def see(self, at: int, read: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Step ``at`` has read these and given those."""
        step = self.graph.steps[at]
        pairs = [(v, t) for v, t in zip(step.reads(), read, strict=True) if isinstance(t, Tensor)]
        owners = {storage_of(t): self.owner(v) for v, t in pairs}
        self.shapes.update((v, t.shape) for v, t in pairs)
        for v, t in zip(step.results(), given, strict=True):
            if not isinstance(t, Tensor):  # a size, in a graph of Dynamo's
                continue
            self.owners[v] = owners.get(storage_of(t), v)
            self.shapes[v] = t.shape
            if t.is_cpu and t.layout is torch.strided and t.numel():
                self.forms[v] = Form(t.shape, t.stride(), t.dtype, t.data_ptr())
        if step.kind == "format":
            turns = storage_of(read[0]) != storage_of(given[0])
        else:
            last = step in self.number and step.function.channels_last
            turns = last and not read[0].is_contiguous(memory_format=torch.channels_last)
        if turns:
            self.turned.add(step)
        if self.is_ours(step) and step.outputs in self.forms:
            bound = self.bound[self.number[step]]
            self.workspace = max(self.workspace, step.function.workspace(read[0], bound, given[0]))

    def is_ours(self, step: Step) -> bool:
        """Whether our kernel runs this fused step."""
        return step in self.number and isinstance(self.bound[self.number[step]], Tensor | BoundTransposed)

    def owner(self, v: Value) -> Value:
        """The value that ``v`` is a view of, or itself."""
        return self.owners.get(v, v)


def write_call(step: Step) -> tuple[Any, tuple[Any, ...]] | None:
    """A function and its arguments that, with ``out``, do what ``step`` does; None where there is none."""
    if step.kind != "call" or step.writes or not isinstance(step.outputs, Value):
        return None
    if isinstance(step.function, OurCall):
        return step.function.into, (*step.args, step.function.numbers)
    values = all(isinstance(v, Value) and v.dtype is step.outputs.dtype for v in step.args)
    if is_torchs(step.function, "add", "__add__") and len(step.args) == 2 and values and not step.kwargs:
        return torch.add, step.args
    if is_norm(step):
        return torch.ops.pykernels.batch_norm_act_bound_out.default, step.args
    if is_squeeze(step):
        return torch.ops.pykernels.squeeze_excite_out.default, step.args
    if is_join(step):
        return torch.cat, (step.args[0], 1)
    norm = constant_norm(step)
    return None if norm is None else (norm_into, norm)


def plan(survey: Survey) -> Plan | None:
    """Where the results of the fused steps are to lie; None where each of them can be seen from outside."""
    steps = survey.graph.steps
    seen = {survey.owner(v) for v in values_in(survey.graph.result)}
    readers: dict[Value, list[tuple[int, Step]]] = {}
    for i, step in enumerate(steps):
        for v in step.reads():
            readers.setdefault(survey.owner(v), []).append((i, step))
            if _may_keep(step):
                seen.add(survey.owner(v))
    hidden: dict[Value, _Item] = {}
    for i, step in enumerate(steps):
        call = write_call(step)
        if not (survey.is_ours(step) or call) or step.outputs not in survey.forms:
            continue
        v = step.outputs
        if survey.owner(v) is not v or v in seen or v.dynamic:  # sizes that depend on values change from call to call
            continue
        users, form = readers.get(v, ()), survey.forms[v]
        hidden[v] = item = _Item(form, i, max([i, *(at for at, _ in users)]), [(step, form, 0)])
        item.joins = {s for _, s in users if is_join(s)}
        of_channels = step.function.rank == 4 if call is None else call[0] is torch.add or _is_kernel(step)
        item.moves = of_channels and all(_takes_slices(s, survey, v) for _, s in users)
    for v, last in needed(steps):
        if (owner := survey.owner(v)) in hidden:
            hidden[owner].last = max(hidden[owner].last, last)
    for step in steps:
        if is_join(step) and step.outputs in hidden:
            _write_at_once(step, survey, hidden)
    return Plan(list(hidden.values()), survey.workspace) if hidden else None


def _is_kernel(step: Step) -> bool:
    """Whether it is a call of a kernel of ours, and not a fused step."""
    return isinstance(step.function, OurCall) or is_norm(step) or is_squeeze(step)


def _may_keep(step: Step) -> bool:
    """Whether a reference to what it reads may outlive it."""
    if step.kind in ("fused", "format", "view") or _is_kernel(step):
        return False
    function = step.function.func if isinstance(step.function, partial) else step.function
    known = isinstance(function, types.FunctionType) and function.__module__.partition(".")[0] in ("torch", "pykernels")
    return step.kind != "call" or not (known or isinstance(function, _BUILTIN))


def _takes_slices(step: Step, survey: Survey, v: Value) -> bool:
    """Does it read slices of channels as fast as whole tensors, or make such slices of ``v``, or join them?"""
    if survey.is_ours(step) or _is_kernel(step) or is_join(step) or is_torchs(step.function, "add", "__add__"):
        return True
    return name_of(step.function) in _SLICES and all(survey.owner(x) is v for x in step.results())


def _write_at_once(step: Step, survey: Survey, hidden: dict[Value, _Item]) -> None:
    """Gives results that ``step`` joins a place in its own, where that is possible for any.

    Its arguments may be slices of such a result, if together they are all of it.
    """
    whole = hidden[step.outputs]
    if whole.form.stride[1] != 1:
        return
    starts: dict[Value, list[int]] = {}
    covered: dict[Value, int] = {}
    copies: list[tuple[Any, Form, int]] = []
    at = 0
    pieces: list[tuple[int, Value, int]] = []
    unfit: set[Value] = set()
    for position, v in enumerate(step.args[0]):
        owner, form = survey.owner(v), survey.forms.get(v)
        if form is None or form.dtype is not whole.form.dtype or len(form.shape) != 4:
            return
        pieces.append((position, v, at))
        if (item := hidden.get(owner)) is not None and form.stride == item.form.stride and form.stride[1] == 1:
            before = (form.address - item.form.address) // form.dtype.itemsize
            if (form.shape[0], form.shape[2:]) != (item.form.shape[0], item.form.shape[2:]):
                unfit.add(owner)  # a slice of other dimensions
            starts.setdefault(owner, []).append(at - before)
            covered[owner] = covered.get(owner, 0) + form.shape[1]
        at += form.shape[1]
    mine = {
        v
        for v, where in starts.items()
        # Later readers would keep all of the joined tensor, and torch.cat is slow to read slices.
        if (item := hidden[v]).moves and item.last <= whole.last and item.joins == {step}
        if v not in unfit and len(set(where)) == 1 and covered[v] == item.form.shape[1]
    }
    if 3 * sum(covered[v] for v in mine) < at:
        return  # most would be copied all the same, and all of it be needed earlier
    for position, v, channel in pieces:
        if survey.owner(v) not in mine:
            copies.append(((step, position), whole.form.part(survey.forms[v].shape[1]), channel))
    for v in mine:
        item = hidden.pop(v)
        whole.first, whole.last = min(whole.first, item.first), max(whole.last, item.last)
        whole.parts += [(key, whole.form.part(f.shape[1]), starts[v][0] + c) for key, f, c in item.parts]
    whole.parts += copies
    whole.parts[0] = ((step, "at once"), whole.form, 0)


@dataclass(eq=False)
class _Item:
    """A piece of memory that is needed from step ``first`` to ``last``, and the tensors that lie in it.

    ``parts`` are these: what for, how, and by how many elements behind the beginning.
    """

    form: Form
    first: int
    last: int
    parts: list[tuple[Any, Form, int]] = field(default_factory=list)
    #: May it become a slice of a larger one, as fast to write and to read?
    moves: bool = False
    #: Who joins it to others.
    joins: set[Step] = field(default_factory=set)
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
    """The places of results, and the arenas made by it that wait in ``idle`` or, longer, in ``aged``.

    An arena is a tuple of tensors: the workspace, then one for each of ``keys``. A key is the step that gives it, or a
    step and what for: a cat that is written "at once", the position of an argument of such a cat that is copied there.
    """

    def __init__(self, items: list[_Item], workspace: int) -> None:
        self.keys = tuple(key for x in items for key, _, _ in x.parts)
        self.workspace = workspace
        self.nbytes = _place(items, _aligned(workspace))
        self._places = [(f, x.offset // f.dtype.itemsize + at) for x in items for _, f, at in x.parts]
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
            whole = memory(self.nbytes)
            storage, start = whole.untyped_storage(), whole.storage_offset()
            results = [
                torch.empty(0, dtype=f.dtype).set_(storage, start // f.dtype.itemsize + at, f.shape, f.stride)
                for f, at in self._places
            ]
            return whole[: self.workspace], *results

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
