"""What stands in front of a module's calls: finds the program for the arguments, makes one, or runs the module itself.

torch calls a module's ``_compiled_call_impl`` instead of its ``_call_impl`` if there is one. torch neither copies nor
pickles it, and no state_dict contains it. A `Stub` there leaves the module as it is: same class, same ``forward``, same
hooks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from pykernels.nn._packed import asked_backend, undisturbed
from pykernels.nn._replaceable import has_hooks
from pykernels.nn._unfolded import unfolded
from pykernels.optimize import _compile, _trace
from pykernels.optimize._graph import OF_STEPS
from pykernels.optimize._keep import PackedWeight, check_whole, release
from pykernels.optimize._kinds import runs_ours, unfolds
from pykernels.optimize._layout import FED, fed
from pykernels.optimize._program import Program
from pykernels.optimize._recall import CONTEXT, MISS, MODES, MOST, KnownCall, recall
from pykernels.optimize._record import NOTHING, Recorder, state
from pykernels.optimize._signatures import Unsuited, as_it_was, cast, contents, general_key, holds, mutable, signature
from pykernels.optimize._watch import globally_hooked, kind_of, replaced_in_torch

_MOST_PROGRAMS = 64
_MOST_CHANGES = 16

#: Modules that stand in a program as one call.
_WHOLE = (
    nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell, nn.RNN, nn.RNNCell, nn.MultiheadAttention, nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)  # fmt: skip
#: Modules of torch.nn that have something to gain by themselves.
_GAIN_ALONE = (nn.Conv2d, nn.LSTM, nn.LSTMCell)

_grad = torch.is_grad_enabled
_autocast = torch._C._is_any_autocast_enabled
_function_modes = torch._C._len_torch_function_stack


class Family:
    """What the stubs of one optimised model share."""

    def __init__(
        self, root: nn.Module, outside: torch.dtype, inside: torch.dtype, keep: str | None = None, plan: Any = None
    ) -> None:
        self.root, self.keep = root, keep
        #: Of a quantised model: what puts int8 steps into its graphs, and what watches its programs run.
        self.plan, self.watcher = plan, None
        self.outside, self.inside = outside, inside
        #: The root has no stub: it is a layer for which that would cost more than it could gain.
        self.is_bare = _is_torchs_layer(root) and outside is inside
        self.store: dict[Hashable, Any] = {}
        self.notes: list[tuple[str, str, str]] = []
        #: The modules that belong to nobody else.
        self.own: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.held: weakref.WeakValueDictionary[int, PackedWeight] = weakref.WeakValueDictionary()
        self.read: set[int] = set()
        self._releasing = threading.Lock()

    def note(self, where: str, what: str, why: str) -> None:
        """Tells the report, once."""
        if (where, what, why) not in self.notes:
            self.notes.append((where, what, why))

    def install(self) -> None:
        """Puts a stub on every module that has none and that may have something to gain."""
        for path, module in self.root.named_modules():
            # A copy of a recurrent layer has None there: their class says by itself what a copy gets.
            if vars(module).get("_compiled_call_impl") is not None or isinstance(module, torch.jit.ScriptModule):
                continue
            if self.is_bare and module is self.root:
                continue
            # A quantised linear layer gains where a program of all around it can't be had.
            alone = self.plan is not None and isinstance(module, nn.Linear)
            if module is self.root or alone or _is_of_interest(module):
                vars(module)["_compiled_call_impl"] = Stub(module, path, self)

    def forget(self) -> None:
        """Drops all programs; the next calls make new ones."""
        for stub in self.stubs():
            with stub.lock:
                stub.programs, stub.general, stub.known = {}, {}, ()
                stub.exact_only.clear()
                stub.ran[0] = None
        self.store.clear()

    def release(self, program: Program) -> None:
        """Keeps the weights that ``program`` has packed in that form alone, where nothing else reads them."""
        with self._releasing:
            programs = self.programs()
            if not program.is_new or program not in programs:
                return
            program.is_new = False
            own = {path: m for path, m in self.root.named_modules() if m in self.own}
            gone = release(own, program, programs, self.read, self.held)
            if not gone:
                return
            self.store.clear()
            for stub in self.stubs():
                with stub.lock:
                    for p in programs:
                        if any(id(v.tensor) in gone for v in p.sources):
                            p.let_go()
                            stub._forget(p)

    def programs(self) -> list[Program]:
        """All of its stubs, each once."""
        found = [p for s in self.stubs() for p in (*s.programs.values(), *s.general.values())]
        return list({id(p): p for p in found if isinstance(p, Program)}.values())

    def stubs(self) -> list[Stub]:
        """Those of the modules that are there now."""
        found = [vars(m).get("_compiled_call_impl") for m in self.root.modules()]
        return [s for s in found if isinstance(s, Stub) and s.family is self]


def _is_torchs_layer(module: nn.Module) -> bool:
    """Whether it is a layer of torch's that our kernels never run: a program would only cost more than its call."""
    kind = kind_of(module)
    has = vars(module)  # a copy has nothing as yet
    if kind in (*_GAIN_ALONE, *_WHOLE, nn.Linear) or has.get("_modules", True) or "forward" in has:
        return False
    return kind.__module__.startswith("torch.nn.modules.")


def _is_of_interest(module: nn.Module) -> bool:
    kind = type(module)
    if kind in _WHOLE or isinstance(module, _GAIN_ALONE) or "forward" in vars(module) or has_hooks(module):
        return True
    return bool(module._modules) or not kind.__module__.startswith("torch.nn.")


class Stub:
    """Calls ``module``. ``programs`` are by exact arguments, ``general`` by what a program may hold for, ``known`` are
    the last calls, for `recall`.

    For the report: ``ran`` holds the program that ran last, and ``plainly`` counts the calls that ran no program.
    """

    __slots__ = (
        "changes", "exact_only", "family", "feeds", "general", "known", "lock", "looked_again", "module", "path",
        "plainly", "programs", "ran", "why",
    )  # fmt: skip

    def __init__(self, module: nn.Module, path: str, family: Family) -> None:
        self.module, self.path, self.family = module, path, family
        self.programs: dict[Hashable, Program | str] = {}
        self.general: dict[Hashable, Program] = {}
        self.exact_only: set[Hashable] = set()
        self.changes, self.looked_again = 0, False
        self.known: tuple[KnownCall, ...] = ()
        self.ran: list[Program | None] = [None]
        self.plainly: dict[str, int] = {}
        itself = runs_ours(module) and not (family.plan is not None and unfolds(module))
        self.why: str | None = "runs the package's kernels by itself" if itself else None
        kind = kind_of(module)
        if (kind in _WHOLE and kind not in _GAIN_ALONE) or (module is family.root and _is_torchs_layer(module)):
            self.why = "pykernels has no kernel for it"
        self.feeds = kind in FED and bool(vars(module).get("batch_first"))
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return _nothing, ()

    def __deepcopy__(self, memo: Any) -> None:
        return None

    @property
    def last(self) -> Program | None:
        """The program that ran last."""
        return self.ran[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``module(*args, **kwargs)``."""
        if is_compiling():
            return self._traced(args, kwargs)
        try:
            result = recall(CONTEXT, self.known, self.ran, args, kwargs)
        except OF_STEPS:
            pass  # it runs once more below, to raise the module's own error
        else:
            if result is not MISS:
                return result
        family = self.family
        if self.module is not family.root or family.outside is family.inside or state.recorder is not None:
            return self._call(args, kwargs)
        args, kwargs = cast(args, family.outside, family.inside), cast(kwargs, family.outside, family.inside)
        return cast(self._call(args, kwargs), family.inside, family.outside)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call where it becomes part of a graph."""
        family = self.family
        if torch.compiler.is_exporting() and family.held:
            check_whole(family.held.values(), "torch.export")
        if _trace.may_break() and not (_grad() and _trace.any_requires_grad(args, kwargs)):
            return _trace.apart(self, *args, **kwargs)
        casts = self.module is family.root and family.outside is not family.inside
        if casts:
            args, kwargs = cast(args, family.outside, family.inside), cast(kwargs, family.outside, family.inside)
        found = None
        if torch.compiler.is_exporting() and not _trace.by_dynamo():
            from pykernels.optimize._export import exported

            found = exported(self, args, kwargs)
        result = self.module._call_impl(*args, **kwargs) if found is None else found[0]
        return cast(result, family.inside, family.outside) if casts else result

    def program_for(self, args: Any, kwargs: Any, grad: bool) -> tuple[list[Tensor], Program | None]:
        """The arguments' tensors, and a program for these arguments that holds with gradients or without."""
        tensors: list[Tensor] = []
        try:
            parts = signature(args, tensors), signature(kwargs, tensors) if kwargs else ()
        except Unsuited:
            return tensors, None
        *_, dtype = _modes()
        for modes in ((grad, False), (grad, True), (not grad, False), (not grad, True)):
            key = (*parts, *modes, dtype)
            found = self.programs.get(key) or self.general.get(general_key(key, tensors))
            if isinstance(found, Program) and (modes[0] is grad or not found.asks_modes):
                return tensors, found
        return tensors, None

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        recorder = state.recorder
        if recorder is not None:
            return self._inside(recorder, args, kwargs)
        if self.why is not None:
            return self._as_it_is(args, kwargs)
        if not undisturbed() or _function_modes() or _autocast() or asked_backend() != "auto":
            return self._plainly(_disturbance(), args, kwargs)
        tensors: list[Tensor] = []
        try:
            key: Hashable = (signature(args, tensors), signature(kwargs, tensors) if kwargs else (), *_modes())
            found = self.programs.get(key)
        except Unsuited as problem:
            return self._plainly(f"there is {problem} among the arguments", args, kwargs)
        grad = _grad()
        if grad and any(t.requires_grad for t in tensors):
            return self._plainly("an input requires gradients", args, kwargs)
        if found is None:
            found = self._general(key, tensors)
            if found is not None and found.unsure:
                # Of what it leaves out, something may raise for these sizes: the module itself would tell.
                state.recorder = NOTHING
                try:
                    result = self.module._call_impl(*args, **kwargs)
                finally:
                    state.recorder = None
                self._keep(key, found)
                return result
        if type(found) is str:
            return self._as_it_is(args, kwargs)
        if isinstance(found, Program):
            if not found.watch.unchanged():
                self._changed(key, found)
            elif grad and found.wants_gradients():
                return self._plainly("its weights require gradients", args, kwargs)
            elif found.writes_inputs and found.shares(tensors):
                return self._plainly("an argument that is written to lies in the model's own memory", args, kwargs)
            else:
                return self._run(found, key, args, kwargs, tensors)
        return self._capture(key, args, kwargs, tensors)

    def _as_it_is(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.feeds and undisturbed() and not has_hooks(self.module):
            args, kwargs = fed(self.module, args, kwargs)
        return self.module._call_impl(*args, **kwargs)

    def _plainly(self, why: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the module as it is, and counts that for the report."""
        self.plainly[why] = self.plainly.get(why, 0) + 1
        return self.module._call_impl(*args, **kwargs)

    def _inside(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.module
        if recorder is NOTHING:
            return module._call_impl(*args, **kwargs)
        if module is recorder.module and len(recorder.scopes) == 1 and not recorder.steps:
            return module._call_impl(*args, **kwargs)
        ours = type(module).__module__.startswith(("pykernels.nn.", "pykernels.models.")) and self.why is not None
        if (ours or type(module) in _WHOLE) and "forward" not in vars(module) and not has_hooks(module):
            return recorder.whole(module, args, kwargs, self.path)
        why = "has hooks" if has_hooks(module) else self.why
        return recorder.scope(module, args, kwargs, self.path, why)

    def _run(self, program: Program, key: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        self.changes, self.ran[0] = 0, program
        watcher = self.family.watcher
        try:
            if watcher is not None:
                return watcher.run(program, tensors)
            result = program(tensors)
            if program.is_new and self.family.keep is not None:
                self.family.release(program)
            self._remember(program, key, tensors)
            return result
        except OF_STEPS:
            if not program.again:
                raise
            # The module reports in its own words what is wrong. If nothing is, the program was not for these sizes.
            result = self.module._call_impl(*args, **kwargs)
            with self.lock:
                self.exact_only.add(general_key(key, tensors))
                self._forget(program)
            return result

    def _general(self, key: Any, tensors: list[Tensor]) -> Program | None:
        program = self.general.get(general_key(key, tensors))
        if program is not None and not program.unsure:
            self._keep(key, program)
        return program

    def _keep(self, key: Hashable, program: Program | str) -> None:
        with self.lock:
            while len(self.programs) >= _MOST_PROGRAMS:
                self.programs.pop(next(iter(self.programs)), None)
            self.programs[key] = program

    def _remember(self, program: Program, key: Any, tensors: list[Tensor]) -> None:
        """Remembers this call from now on, if that is possible."""
        family = self.family
        if self.module is family.root and family.outside is not family.inside:
            return  # it casts first
        if family.plan is not None and not family.plan.is_on:
            return  # it may be watched next
        args, kwargs, *modes = key
        entry = program.entry(tuple(modes), args, kwargs or (dict, ()), tensors)
        if entry is None:
            return
        with self.lock:
            kept = [e for e in self.known if e.program.is_of(e.bound) and e[:3] != entry[:3]]
            self.known = (entry, *kept[: MOST - 1])

    def _forget(self, program: Program) -> None:
        self.programs = {k: p for k, p in self.programs.items() if p is not program}
        self.general = {k: p for k, p in self.general.items() if p is not program}
        self.known = tuple(e for e in self.known if e.program is not program)
        if self.ran[0] is program:
            self.ran[0] = None

    def _changed(self, key: Hashable, program: Program) -> None:
        with self.lock:
            self._forget(program)
            self.family.store.clear()
            self.changes += 1
            if self.changes > _MOST_CHANGES:
                self.why = "changes what it depends on at every call"

    def _capture(self, key: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """Runs the module itself, once, and keeps what it did."""
        self.family.install()
        watcher = self.family.watcher
        if watcher is not None:
            watcher.missed += 1
        module = self.module
        if has_hooks(module) or globally_hooked():
            return self._plainly("there are hooks, its own or on every module", args, kwargs)
        name = replaced_in_torch()
        if name is not None:
            self.family.note("the model", "call", f"finds torch.nn.functional.{name} replaced")
            return module._call_impl(*args, **kwargs)
        recorder = Recorder(module, self.path)
        held = [(c, contents(c)) for c in mutable((args, kwargs))]
        with unfolded(self.family.plan is not None):
            result = recorder.run(args, kwargs, tensors)
        if any(not as_it_was(c, then) or holds(result, c) for c, then in held):
            recorder.refuse("changes or returns a list or dict that it is given")
        self.family.read |= recorder.read
        general = general_key(key, tensors)
        recorder.exact |= general in self.exact_only
        graph, names = recorder.graph(result), recorder.scopes[0].findings.names
        recorder.let_go()
        if graph is None:
            # What a first call changed may stay from then on, as caches of attention's biases do.
            again = recorder.keeps_state and not self.looked_again
            self.looked_again |= again
            if recorder.reason != "runs under a profiler" and not again:
                self._keep(key, str(recorder.reason))
            return result
        program = _compile.compiled(graph, recorder, self.family.store, self.family.plan)
        program.asks_modes = "is_grad_enabled" in names or "_is_grad_enabled" in names
        if any(s.function is module for s in program.graph.steps):  # it would come back here
            self._keep(key, "is of a kind that our kernels don't take")
            return result
        self._keep(key, program)
        self.ran[0] = program
        if not program.exact:
            with self.lock:
                if len(self.general) >= _MOST_PROGRAMS:
                    self.general.clear()
                self.general[general] = program
        if self.family.plan is None or not program.again:
            return result
        if watcher is not None:
            watcher.missed -= 1
        return self._run(program, key, args, kwargs, tensors)  # the first result is to be in int8 too


def _nothing() -> None:
    """What a stub becomes in a pickle."""


def _disturbance() -> str:
    """Why no program runs, where something observes the call."""
    if _autocast():
        return "autocast is on"
    if asked_backend() != "auto":
        return f"the backend {asked_backend()} was requested"
    return "a function mode is active" if _function_modes() else "a transform, a trace or a dispatch mode is active"


def _modes() -> tuple[Any, ...]:
    return tuple([mode() for mode in MODES])
