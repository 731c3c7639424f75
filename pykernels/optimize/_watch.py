"""What a program's result depends on besides its inputs, and whether that is as it was.

`Watch` walks over modules, plain containers, plain objects, functions' closures and defaults. It notes each container
with its contents, by identity. The tensors that it meets are a program's possible sources. It notes what it cannot look
into (iterators, locks, arrays) by the names that lead there: pykernels cannot follow code that uses such a name.

The comparison (`Watch.unchanged`) is native: one pass over pointers, a few microseconds for a thousand modules.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import TreeSpec

from pykernels import _native
from pykernels.optimize._int8_tensors import parts_of
from pykernels.optimize._keep import PackedWeight

#: Stands in a snapshot for any value (a module's own state that its stub keeps) and for a name that is not there.
ANY, MISSING = NotImplemented, Ellipsis

#: Keys of a module's dict that come and go without a meaning.
SKIPPED = ("_pack", "_compiled_call_impl")

_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range, slice, torch.dtype,
    torch.device, torch.Size, torch.layout, torch.memory_format, types.BuiltinFunctionType, types.CodeType,
    types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, types.MethodWrapperType,
    type(inspect.FullArgSpec.args),  # a field of a named tuple's class
    # Of exported graphs: torch's ops, and what says how arguments and results are nested.
    OpOverload, OpOverloadPacket, TreeSpec,
)  # fmt: skip
_DICTS = (dict, OrderedDict, defaultdict)
_PLAIN = (torch.Tensor, nn.Parameter, PackedWeight)

#: Hooks that run around every module of the process.
_GLOBAL_HOOKS = [
    value for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(value, dict)
]


def kind_of(module: nn.Module) -> type:
    """Its class; of an optimised model, the original's."""
    kind: type = type(module)
    return vars(kind).get("_pykernels_original", kind)


def plain(module: nn.Module) -> Any:
    """``module`` itself, or of an optimised model one of the original's class that shares all it has."""
    kind: Any = kind_of(module)
    if kind is type(module):
        return module
    made = kind.__new__(kind)
    vars(made).update({k: v for k, v in vars(module).items() if k not in SKIPPED})
    return made


def globally_hooked() -> bool:
    """Whether there are hooks that run around every module of the process."""
    return any(_GLOBAL_HOOKS)


def replaced_in_torch() -> str | None:
    """A name in torch.nn.functional that is not torch's own any more.

    Those functions hand themselves to a recorder by their names, so that a wrapper put there would be called twice.
    """
    for name, value in vars(torch.nn.functional).items():
        if isinstance(value, types.FunctionType):
            home = str(value.__globals__.get("__name__", ""))
        elif callable(value) and not isinstance(value, type):
            home = type(value).__module__
        else:
            continue
        if not home.startswith(("torch", "builtins", "typing")):
            return name
    return None


def is_own(kind: type) -> bool:
    """Whether this class is neither Python's, torch's nor ours."""
    return not (kind.__module__ or "").startswith(("torch.", "pykernels.")) and kind.__module__ != "builtins"


class Watch:
    """Containers, their snapshots, and single entries (of globals, classes, cells), or what class an object is of."""

    def __init__(self) -> None:
        self.containers: dict[int, Any] = {}
        self.snapshots: dict[int, tuple[Any, ...]] = {}
        self.entries: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self.sets: list[tuple[Any, frozenset[Any]]] = []
        self.tensors: dict[int, torch.Tensor] = {}
        #: Those of them that were asked for their sizes, dtype or the like, with what they said.
        self.asked: dict[int, tuple[torch.Tensor, tuple[Any, ...]]] = {}
        self.modules: dict[int, nn.Module] = {}
        self.classes: dict[type, None] = {}
        self.pymodules: dict[int, types.ModuleType] = {}
        #: Names that lead to what can't be inspected.
        self.opaque: set[str] = set()
        self.opaque_things: list[Any] = []
        #: Code of functions whose closure is watched.
        self.closures: set[types.CodeType] = set()
        #: Which module an attribute container belongs to, and under which name it is found there.
        self.owners: dict[int, tuple[nn.Module | None, str]] = {}
        self._seen: dict[int, Any] = {}
        self._flat: tuple[tuple, tuple, tuple, bytearray] | None = None
        for hooks in _GLOBAL_HOOKS:
            self._container(hooks, None, "")

    def add(self, value: Any, owner: nn.Module | None = None, name: str = "") -> None:
        """Watches ``value`` and what it leads to; ``owner`` has it under ``name``."""
        todo = [(value, owner, name)]
        while todo:
            value, owner, name = todo.pop()
            if isinstance(value, _ATOMS):
                continue
            if id(value) in self._seen:
                _, first = self._seen[id(value)]
                if first is owner or first is None or isinstance(value, nn.Module | torch.Tensor):
                    continue
                owner = None  # two lead to it: it is nobody's own, nor is what it leads to
            self._seen[id(value)] = value, owner
            todo.extend(self._one(value, owner, name))
        self._flat = None

    def _one(self, value: Any, owner: nn.Module | None, name: str) -> Iterable[tuple[Any, nn.Module | None, str]]:
        kind = type(value)
        if isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            self._opaque(value, name)
        elif isinstance(value, torch.Tensor):
            if kind in _PLAIN:
                self.tensors[id(value)] = value
                # Somebody's attributes on a parameter; a packed weight's are ours.
                return () if kind is PackedWeight else self._container(value.__dict__, owner, name)
            parts = parts_of(value)
            if parts is not None:
                self._container(value.__dict__, owner, name)
                return [(t, owner, name) for t in parts]
            self._opaque(value, name)
        elif isinstance(value, nn.Module):
            return self._module(value)
        elif kind in _DICTS or (isinstance(value, dict) and is_own(kind)) or kind is list:
            return self._container(value, owner, name)
        elif isinstance(value, tuple):
            return [(v, owner, name) for v in value]
        elif kind in (set, frozenset):
            if kind is set:
                self.sets.append((value, frozenset(value)))
            return [(v, owner, name) for v in value]
        elif isinstance(value, types.FunctionType):
            return self._function(value, owner)
        elif isinstance(value, types.MethodType):
            return [(value.__func__, owner, name), (value.__self__, owner, name)]
        elif isinstance(value, functools.partial):
            return [(v, owner, name) for v in (value.func, value.args, value.keywords)]
        elif isinstance(value, type):
            self.classes[value] = None
        elif isinstance(value, types.ModuleType):
            self.pymodules[id(value)] = value
        elif isinstance(value, enum.Enum):
            pass
        elif isinstance(value, staticmethod | classmethod):
            return [(value.__func__, owner, name)]
        elif isinstance(value, property):
            return [(f, owner, name) for f in (value.fget, value.fset) if f is not None]
        else:
            return self._object(value, owner, name)
        return ()

    def _module(self, module: nn.Module) -> Iterable[tuple[Any, nn.Module | None, str]]:
        self.modules[id(module)] = module
        self.classes[type(module)] = None
        self.entry(module, "__class__", type(module))
        attributes = vars(module)
        self._container(attributes, module, "")
        for key, value in attributes.items():
            if key not in SKIPPED:
                yield value, module, key
        for key in ("forward", "_conv_forward", "__call__", "_call_impl", "__getattr__"):
            for kind in type(module).__mro__:  # up to where it is found: nearer ones may get it later
                self.entry(kind, key, vars(kind).get(key, MISSING))
                if key in vars(kind):
                    break
        for kind in type(module).__mro__:
            if is_own(kind):
                yield from ((f, None, key) for key, f in vars(kind).items() if _may_close_over(f))

    def _function(
        self, function: types.FunctionType, owner: nn.Module | None
    ) -> Iterable[tuple[Any, nn.Module | None, str]]:
        self.closures.add(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                value = MISSING
            self.entries[id(cell), ""] = cell, name, value
            if name != "__class__":
                yield value, owner, name
        yield from ((v, None, function.__name__) for v in function.__defaults__ or ())
        yield from ((v, None, k) for k, v in (function.__kwdefaults__ or {}).items())
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            yield wrapped, None, function.__name__

    def _object(self, value: Any, owner: nn.Module | None, name: str) -> Iterable[tuple[Any, nn.Module | None, str]]:
        kind = type(value)
        attributes: Any = getattr(value, "__dict__", None)
        plain = type(attributes) is dict and kind.__basicsize__ <= object.__basicsize__ + 16
        if not plain or any("__slots__" in vars(k) for k in kind.__mro__[:-1]):
            self._opaque(value, name)
            return
        self.classes[kind] = None
        self.entry(value, "__class__", kind)
        self._container(attributes, owner, name)
        for key, held in attributes.items():
            yield held, owner, key
        yield from ((f, None, key) for k in kind.__mro__ if is_own(k) for key, f in vars(k).items())

    def _opaque(self, value: Any, name: str) -> None:
        self.opaque.add(name)
        self.opaque_things.append(value)

    def _container(self, value: Any, owner: nn.Module | None, name: str) -> list[tuple[Any, nn.Module | None, str]]:
        if id(value) not in self.containers:
            self.containers[id(value)] = value
            self.snapshots[id(value)] = snapshot(value)
        self.owners[id(value)] = owner, name
        if isinstance(value, dict):
            return [(v, owner, k if type(k) is str and not name else name) for k, v in value.items()]
        return [(v, owner, name) for v in value]

    def knows(self, value: Any) -> bool:
        """Whether the model holds this object."""
        return id(value) in self._seen

    def entry(self, owner: Any, name: str, value: Any) -> None:
        """Watches one name of a dict or class, or the class of another object; ``value`` is what it is now."""
        self.entries.setdefault((id(owner), name), (owner, name, value))
        self._flat = None

    def asks(self, t: torch.Tensor) -> None:
        """Watches what the model's tensor ``t`` says of itself."""
        self.asked[id(t)] = t, traits(t)

    def flat(self) -> tuple[Any, ...]:
        """What the comparison takes."""
        if self._flat is None:
            containers = (*self.containers.values(), *(live for live, _ in self.sets))
            snapshots = (*self.snapshots.values(), *(then for _, then in self.sets))
            entries = tuple(x for e in self.entries.values() for x in e)
            self._flat = containers, snapshots, entries, bytearray(8 * (len(containers) + len(self.entries)))
        return self._flat

    def is_flat(self) -> bool:
        """Whether the comparison of `flat` is all."""
        return not self.asked

    def unchanged(self) -> bool:
        """Whether all of it is as it was."""
        return compare()(*self.flat()) and (not self.asked or all(traits(t) == then for t, then in self.asked.values()))

    def changes(self) -> list[tuple[nn.Module | None, str]]:
        """Whose attributes are not as they were: the module that has them (or None) and their names."""
        found: list[tuple[nn.Module | None, str]] = []
        for key, container in self.containers.items():
            owner, name = self.owners[key]
            now, then = snapshot(container), self.snapshots[key]
            if same(now, then):
                continue
            found += [(owner, n) for n in ([name] if name else _changed_keys(now, then))]
        for owner, name, value in self.entries.values():
            if looked_up(owner, name) is not value:
                found.append((None, name))
        found += [(None, "a set") for live, then in self.sets if live != then]
        return found

    def forgive(self, modules: set[int]) -> set[str]:
        """Stops watching what has changed in these modules, which answer for it; returns the names."""
        names: set[str] = set()
        for key, container in list(self.containers.items()):
            owner, name = self.owners[key]
            now, then = snapshot(container), self.snapshots[key]
            if owner is None or id(owner) not in modules or same(now, then):
                continue
            if name:
                names.add(name)
                del self.containers[key], self.snapshots[key]
                continue
            changed = _changed_keys(now, then)
            names |= changed
            self.snapshots[key] = tuple(
                x for k, v in zip(now[::2], now[1::2], strict=True) for x in (k, ANY if k in changed else v)
            )
        self._flat = None
        return names


def traits(t: torch.Tensor) -> tuple[Any, ...]:
    strides = t.stride() if t.layout is torch.strided else ()
    return t.shape, strides, t.dtype, t.device, t.requires_grad


def _may_close_over(value: Any) -> bool:
    return isinstance(value, types.FunctionType | staticmethod | classmethod | property)


def snapshot(container: Any) -> tuple[Any, ...]:
    """The contents, as `Watch.unchanged` compares them."""
    if isinstance(container, dict):
        return tuple(x for k, v in list(container.items()) if k not in SKIPPED for x in (k, v))
    return tuple(container)


def same(now: tuple[Any, ...], then: tuple[Any, ...]) -> bool:
    """Are the two snapshots of the very same objects?"""
    return len(now) == len(then) and all(a is b or b is ANY for a, b in zip(now, then, strict=True))


def _changed_keys(now: tuple[Any, ...], then: tuple[Any, ...]) -> set[str]:
    a, b = (dict(zip(s[::2], s[1::2], strict=False)) for s in (now, then))
    return {str(k) for k in {*a, *b} if a.get(k, MISSING) is not b.get(k, MISSING) and b.get(k) is not ANY} or {"order"}


def looked_up(owner: Any, name: str) -> Any:
    """What a dict, class or cell has under ``name``; `MISSING` for nothing. Of another object, its class."""
    if isinstance(owner, types.CellType):
        try:
            return owner.cell_contents
        except ValueError:
            return MISSING
    if not isinstance(owner, dict | type | types.MappingProxyType):
        return type(owner)
    return (vars(owner) if isinstance(owner, type) else owner).get(name, MISSING)


def _compare_slowly(containers: tuple, snapshots: tuple, entries: tuple, _: bytearray) -> bool:
    """What the native `unchanged` does, for where it is not built."""
    for now, then in zip(containers, snapshots, strict=True):
        if now != then if isinstance(now, set) else not same(snapshot(now), then):
            return False
    return all(looked_up(o, n) is v for o, n, v in zip(entries[::3], entries[1::3], entries[2::3], strict=True))


@functools.cache
def compare() -> Callable[[tuple, tuple, tuple, bytearray], bool]:
    """The native comparison, or Python's."""
    return _compare_slowly if _native.error is not None else _native.guard().unchanged
