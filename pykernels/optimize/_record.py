"""Runs a model once, for real, and writes down which torch functions it called.

`Recorder` never raises into the model's code. What it cannot write down becomes a reason of the innermost module that
is running (`Scope`): that module's steps are cut off, and it stands as one opaque step. Only the root's own code can
make it give up the root.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from pykernels.optimize import _kinds
from pykernels.optimize._aten import torchs
from pykernels.optimize._graph import Graph, Step, Value, mapped, storage_of
from pykernels.optimize._int8_tensors import dequantize_rows, parts_of_call, rows_of
from pykernels.optimize._keep import PackedWeight, read_by
from pykernels.optimize._purity import Findings, Onlooker, names_any, place_in_model
from pykernels.optimize._results import SCALARS, Unrecordable, described, has_dicts, leaves
from pykernels.optimize._watch import Watch, kind_of

_PLAIN = (torch.Tensor, nn.Parameter)
_CALL = nn.Module._call_impl.__code__
#: The name of a module: not that of an expression, as Dynamo's are.
_PATH = re.compile(r"\w+(\.\w+)*")


class _State(threading.local):
    recorder: Recorder | None = None


state = _State()


@dataclasses.dataclass
class Scope:
    """A module that is being run under the recorder."""

    module: nn.Module
    path: str
    first: int  # step
    known: int  # values
    findings: Findings


class _Mode(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.call(func, args, kwargs or {})


def _exported_as(graph: fx.GraphModule, line: int) -> str:
    """The module that a line of the graph's code was a call of, when it was exported; "" where nobody knows."""
    at = getattr(graph, "_lineno_map", {}).get(line - getattr(graph, "_prologue_start", 0))
    node = None if at is None else next(itertools.islice(graph.graph.nodes, at, None), None)
    stack = () if node is None else tuple(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack and type(stack[-1]) is tuple else ""
    return path if isinstance(path, str) and _PATH.fullmatch(path) else ""


class Recorder:
    """One capture of ``module``; `run` gives its result, `graph` what was written down or None with a `reason`."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module = module
        self.watch = Watch()
        self.watch.add(module)
        self.steps: list[Step] = []
        self.values: list[Value] = []
        # Parallel to values. Weak, so that recording takes no more memory than the model does.
        self.tensors: list[Callable[[], torch.Tensor | None]] = []
        self.versions: list[int] = []
        self.ids: dict[int, Value] = {}
        self.exact = False
        #: Was it refused because it changed what the model holds?
        self.keeps_state = False
        self.opaque: list[tuple[str, str, str]] = []
        self.opaque_modules: list[nn.Module] = []
        self.scopes = [Scope(module, path, 0, 0, Findings())]
        self.onlooker: Any = None
        self.inputs: list[Value] = []
        self.input_storages: set[int] = set()
        # By address: a number, for an address may be used again, and the tensors that have been there.
        self.storages: dict[int, tuple[int, list[Callable[[], torch.Tensor | None]]]] = {}
        self.volatile: set[str] = set()
        #: Parameters, by their ids, that something but a convolution or linear layer was given.
        self.read: set[int] = set()
        self.paused = 0
        self.names = {id(m): f"{path}.{name}".strip(".") for name, m in module.named_modules()}

    @property
    def reason(self) -> str | None:
        """Why there is no graph."""
        return self.scopes[0].findings.reason

    def refuse(self, reason: str) -> None:
        """Notes that pykernels cannot follow what is running."""
        self.scopes[-1].findings.refuse(f"{reason}{place_in_model() if state.recorder is self else ''}")

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
        """The module's own result; ``tensors`` are those among the arguments, without repetition."""
        for t in tensors:
            if id(t) in self.watch.tensors:
                self.refuse("gets one of its own tensors as an argument")
            self.inputs.append(self._new(t, "input"))
        before = sys.getprofile()
        if before is not None:
            self.refuse("runs under a profiler")
        self.onlooker = Onlooker(self.watch, lambda: [s.findings for s in self.scopes])
        _come_first()
        state.recorder = self
        try:
            with _Mode(self):
                if before is None:
                    sys.setprofile(self.onlooker)
                try:
                    if kind_of(self.module) in (nn.LSTM, nn.LSTMCell):
                        result = self.whole(self.module, args, kwargs, self.scopes[0].path)
                    else:
                        result = self.module._call_impl(*args, **kwargs)
                finally:
                    if before is None:
                        sys.setprofile(None)
        finally:
            state.recorder = self.onlooker = None
        return result

    def graph(self, result: Any) -> Graph | None:
        """What was recorded; None where the root has a `reason`."""
        root = self.scopes[0].findings
        if root.reason is None:
            try:
                nest = described(result, self._value, self.watch)
            except Unrecordable as problem:
                root.refuse(str(problem))
        if root.reason is None:
            self._check_state(root)
        if root.reason is not None:
            return None
        if self._has_effects():
            self.exact = True
        self._watch_torch()
        return Graph(self.inputs, self.steps, nest, self.exact, self.opaque)

    def let_go(self) -> None:
        """Holds no tensor by a weak reference any more, with which torch would not swap it."""
        self.tensors, self.storages = [], {}

    def _watch_torch(self) -> None:
        """Keeps a function that somebody put into torch's namespaces, where torch's modules would find it."""
        used = {id(s.function) for s in self.steps}
        for space in (vars(torch), vars(torch.nn.functional)):
            for name, value in list(space.items()):
                if id(value) in used:
                    self.watch.entry(space, name, value)

    def _has_effects(self) -> bool:
        """Whether something must not happen twice, so that the twin could not repeat a program that fails."""
        return any(s.kind == "opaque" or any(v.storage == -1 for v in s.writes) for s in self.steps)

    def _check_state(self, root: Findings) -> None:
        inside = {id(m) for o in self.opaque_modules for m in o.modules()}
        changes = self.watch.changes()
        mine = [(m, n) for m, n in changes if m is None or id(m) not in inside]
        if mine:
            names = sorted({n for _, n in mine} - {"order"})
            root.refuse(f"keeps state ({', '.join(names)}) from call to call")
            self.keeps_state = True
            return
        if changes:
            self.volatile = self.watch.forgive(inside) - {"order"}
        hidden = (self.volatile | self.watch.opaque) & root.names
        if hidden:
            root.refuse(f"uses {', '.join(sorted(hidden))}, which can't be watched")
        elif (self.volatile | self.watch.opaque - {""}) and names_any(root.names):
            root.refuse("reads attributes by computed names beside ones that can't be watched")

    def _new(self, t: torch.Tensor, kind: str, dynamic: bool = False) -> Value:
        value, tensor = Value(len(self.values), kind, t, dynamic), weakref.ref(t)
        if kind == "input":
            self.input_storages.add(storage_of(t))
        elif value.storage in self.input_storages:
            value.storage = -1
        else:
            number, tensors = self.storages.get(value.storage, (0, []))
            if not any(other() is not None for other in tensors):
                number, tensors = len(self.values), []
            self.storages[value.storage] = number, [*tensors, tensor]
            value.storage = number
        self.values.append(value)
        self.tensors.append(tensor)
        self.versions.append(_version(t))
        self.ids[id(t)] = value
        return value

    def _found(self, t: torch.Tensor) -> Value | None:
        found = self.ids.get(id(t))
        return found if found is not None and self.tensors[found.index]() is t else None

    def _value(self, t: torch.Tensor) -> Value | None:
        found = self._found(t)
        if found is not None:
            return found
        if id(t) in self.watch.tensors and type(t) in (*_PLAIN, PackedWeight):
            return self._new(t, "source")
        return None

    def _argument(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            value = self._value(x)
            if value is None:
                raise Unrecordable("uses a tensor that is neither an argument nor on the model")
            return value
        if isinstance(x, SCALARS) or x is Ellipsis or type(x) in (torch.Size, range, torch.finfo, type):
            return x
        if isinstance(x, torch.Generator):
            raise Unrecordable("uses a random generator")
        raise Unrecordable(f"hands a {type(x).__name__} to a torch function")

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a torch function for the model, and writes it down."""
        func, args, kwargs = torchs(func, args, kwargs)
        name = _kinds.name_of(func)
        if not _kinds.is_metadata(func, name, args):
            self.read |= read_by(func, args, kwargs)
        if self.paused or self.scopes[-1].findings.reason is not None:
            return func(*args, **kwargs)
        if name == "__iter__":
            return iter(self.call(torch.Tensor.unbind, args, {}))
        parts = parts_of_call(func, args, kwargs)
        if parts is not None:
            return self._linear_of_parts(func, args, parts)
        try:
            given = mapped(args, self._argument), mapped(kwargs, self._argument)
        except Unrecordable as problem:
            self.refuse(str(problem))
            return func(*args, **kwargs)
        if _kinds.is_metadata(func, name, args):
            self._reads_metadata(name, given)
            return func(*args, **kwargs)
        if name == "_assert" and args and type(args[0]) is bool:
            return func(*args, **kwargs)
        if name == "_set_grad_enabled":
            if args and args[0] is not torch.is_grad_enabled():
                self.refuse("changes the gradient mode")
            return func(*args, **kwargs)
        if name.split(".")[0] in _kinds.STRIDED and (len(args) > 3 or kwargs.get("storage_offset") is not None):
            # Of the memory that the tensor has now. A program gives it other memory.
            self.refuse(f"{name} with a storage_offset")
            return func(*args, **kwargs)
        read = Step(func, given[0], given[1], None, (), "call", self._where())
        if _kinds.is_refused(name):
            self.refuse(f"calls {name}")
            return func(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.refuse(f"{name} raises")
            raise
        self._wrote_down(read, name, result)
        return result

    def _linear_of_parts(self, func: Any, args: tuple[Any, ...], parts: tuple[torch.Tensor, torch.Tensor]) -> Any:
        """Runs a linear layer whose weight is of such parts, and writes down what that means."""
        with torch._C.DisableTorchFunction():
            rows = rows_of(args[1])
            x, weight = rows(args[0]), dequantize_rows(*parts)
            result = func(x, weight, *args[2:])  # none of torchao's own code, which nobody can follow
        try:
            for function, given, made in (
                (rows, args[:1], x),
                (dequantize_rows, parts, weight),
                (func, (x, weight, *args[2:]), result),
            ):
                step = Step(function, mapped(given, self._argument), {}, None, (), "call", self._where())
                self._wrote_down(step, _kinds.name_of(function), made)
        except Unrecordable as problem:
            self.refuse(str(problem))
        return result

    def _where(self) -> str:
        """The name of the innermost module that is being called."""
        frame, inner = sys._getframe(1), None
        while frame is not None and frame.f_code is not _CALL:
            frame, inner = frame.f_back, frame  # type: ignore[assignment]
        module = None if frame is None else frame.f_locals.get("self")
        name = self.names.get(id(module), self.scopes[-1].path)
        if isinstance(module, fx.GraphModule) and inner is not None:
            return ".".join(filter(None, (name, _exported_as(module, inner.f_lineno))))
        return name

    def _reads_metadata(self, name: str, given: Any) -> None:
        values = list(Step(len, given[0], given[1], None).reads())
        for v in values:
            if v.kind == "source" and v.tensor is not None:
                with torch._C.DisableTorchFunction():
                    self.watch.asks(v.tensor)
        if name in _kinds.SIZES:
            self.exact = True
        if (name in _kinds.SIZES or name in ("dim", "ndim", "ndimension")) and any(v.dynamic for v in values):
            self.refuse(f"reads a size ({name}) that depends on values")

    def _wrote_down(self, step: Step, name: str, result: Any) -> None:
        reads = list(step.reads())
        named = _kinds.written_by_name(step.function, name, step.args, step.kwargs)
        written = [v for v in dict.fromkeys(reads) if v in named or self._is_newer(v)]
        if any(v.kind == "source" or self._aliases_source(v) for v in written):
            self.refuse(f"writes to its own tensors ({name})")
            return
        step.writes = tuple(written)
        for v in written:  # views count the same versions
            for w in self.values:
                tensor = self.tensors[w.index]() if w.storage == v.storage else None
                if tensor is not None:
                    self.versions[w.index] = _version(tensor)
        passed = [v for v in dict.fromkeys(reads) if result is not None and result is self.tensors[v.index]()]
        if passed and not written:
            if name in _kinds.PASSES_BY_LAYOUT:
                self.exact = True
            elif name not in _kinds.PASSES:
                self.refuse(f"{name} returns its own argument")
            return
        self.exact |= name == "squeeze"  # then the rank depends on sizes
        if name in _kinds.PARTS and any(v.dynamic for v in reads):
            self.refuse(f"has parts ({name}) whose number depends on values")
            return
        dynamic = any(v.dynamic for v in reads) or _kinds.depends_on_values(name, step)
        try:
            step.outputs = self._outputs(result, dynamic)
        except Unrecordable:
            self.refuse(f"reads a value ({name})")
            return
        self.exact |= name not in _kinds.TO_ONE_PIXEL and _becomes_a_pixel(step)
        if step.outputs is None and not written:
            self.refuse(f"reads a value ({name})")
            return
        self.steps.append(step)

    def _is_newer(self, v: Value) -> bool:
        tensor = self.tensors[v.index]()
        return tensor is not None and _version(tensor) != self.versions[v.index]

    def _aliases_source(self, v: Value) -> bool:
        return any(w.kind == "source" and w.storage == v.storage for w in self.values)

    def _outputs(self, result: Any, dynamic: bool = False) -> Any:
        if isinstance(result, torch.Tensor):
            if type(result) not in _PLAIN:
                raise Unrecordable
            return self._new(result, "step", dynamic)
        if result is None:
            return None
        if isinstance(result, tuple | list) and type(result) is not torch.Size:
            nest = tuple(self._outputs(x, dynamic) for x in result)
            if result and any(x is not None for x in nest):
                return nest
        raise Unrecordable

    def whole(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> Any:
        """Runs a module of a kind that is one step."""
        self.paused += 1
        try:
            with torch._C.DisableTorchFunction():
                result = module._call_impl(*args, **kwargs)
        finally:
            self.paused -= 1
        if self.scopes[-1].findings.reason is None and not self.paused:
            with torch._C.DisableTorchFunction():
                self._one_step(module, args, kwargs, path, result, "module")
        return result

    def scope(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str, why: str | None
    ) -> Any:
        """Runs a child: its steps become part of the recording, or it becomes one opaque step."""
        if self.paused or self.scopes[-1].findings.reason is not None:
            return module._call_impl(*args, **kwargs)
        scope = Scope(module, path, len(self.steps), len(self.values), Findings())
        scope.findings.reason = why
        self.scopes.append(scope)
        exact = self.exact
        try:
            result = module._call_impl(*args, **kwargs)
        except Exception:
            self.scopes.pop()
            self.refuse(f"{path} raises")
            raise
        self.scopes.pop()
        outer = self.scopes[-1].findings
        if scope.findings.reason is None:
            outer.codes |= scope.findings.codes
            outer.names |= scope.findings.names
            return result
        self.exact = exact
        with torch._C.DisableTorchFunction():
            self._make_opaque(scope, args, kwargs, result)
        return result

    def _make_opaque(self, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = type(scope.module).__name__
        changed = [v for v in self.values[: scope.known] if self._is_newer(v)]
        early = any(w.index < scope.known or w.storage == -1 for s in self.steps[scope.first :] for w in s.writes)
        del self.steps[scope.first :]
        self.ids = {k: v for k, v in self.ids.items() if v.index < scope.known or v.kind == "source"}
        if changed or early:
            self.refuse(f"{scope.path} ({name}) writes to its arguments: {scope.findings.reason}")
            return
        self._one_step(scope.module, args, kwargs, scope.path, result, "opaque")
        self.opaque.append((scope.path, name, str(scope.findings.reason)))
        self.opaque_modules.append(scope.module)

    def _one_step(self, module: Any, args: Any, kwargs: Any, path: str, result: Any, kind: str) -> None:
        try:
            step = Step(module, mapped(args, self._argument), mapped(kwargs, self._argument), None, (), kind, path)
        except Unrecordable as problem:
            self.refuse(f"{path} ({type(module).__name__}) gets arguments that can't be followed: {problem}")
            return
        if any(isinstance(x, torch.Tensor) and self._found(x) is not None for x in leaves(result)):
            packed = any(isinstance(x, PackedSequence) for x in (*args, *kwargs.values()))
            why = "takes a PackedSequence, whose sizes depend on values" if packed else "returns its own argument"
            self.refuse(f"{path or 'the model'} ({type(module).__name__}) {why}")
            return
        if not all(isinstance(x, torch.Tensor | None) for x in leaves(result)) or has_dicts(result):
            self.refuse(f"{path} ({type(module).__name__}) returns something other than tensors")
            return
        dynamic = kind == "opaque" or any(v.dynamic for v in step.reads())
        try:
            step.outputs = self._outputs(result, dynamic)
        except Unrecordable:
            self.refuse(f"{path} ({type(module).__name__}) returns something other than tensors")
            return
        self.steps.append(step)


class _Nothing:
    onlooker = None


#: In a recorder's place: the module and its children are to run as they are.
NOTHING: Any = _Nothing()


def _around_collections(phase: str, _: dict[str, int]) -> None:
    """What the garbage collector runs is not the model's doing, in whichever thread it runs."""
    recorder = state.recorder
    if recorder is None or recorder.onlooker is None:
        return
    started = phase == "start"
    recorder.paused += 1 if started else -1
    if started:
        recorder.onlooker.asleep = True
    else:
        recorder.onlooker.wake(gc.callbacks)


def _come_first() -> None:
    """Those that others put in front would be seen before this one says that they are not the model's doing."""
    if gc.callbacks[:1] != [_around_collections]:
        gc.callbacks[:] = [_around_collections, *(c for c in gc.callbacks if c is not _around_collections)]


def _becomes_a_pixel(step: Step) -> bool:
    """Is its result an image of one pixel, in both memory formats at once, which it need not be of other inputs?"""
    pixels = [v for v in step.results() if len(v.shape) == 4 and v.shape[2:] == (1, 1)]
    return bool(pixels) and any(len(v.shape) == 4 and v.shape[2:] != (1, 1) for v in step.reads())


def _version(t: torch.Tensor) -> int:
    return -1 if t.is_inference() else t._version
