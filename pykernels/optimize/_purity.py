"""Sees which Python code and which C functions a model runs, and says which of them pykernels cannot follow.

`Onlooker` is a profile function of the thread that captures. It trusts Torch's own Python code, NumPy's and ours if the
model calls them by the names in the lists below. It scans a model's code for the globals, attributes and closures that
it reads, and `_watch` watches these from before the code runs. It knows C functions by name. All else may depend on
more than the model's arguments.
"""

from __future__ import annotations

import builtins
import dis
import functools
import os
import sys
import sysconfig
import types
from collections.abc import Callable
from typing import Any

import numpy
import torch

from pykernels.optimize._graph import OF_STEPS
from pykernels.optimize._watch import MISSING, Watch, is_own

_TRUSTED = tuple(
    os.path.dirname(p) + os.sep
    for p in (torch.__file__, numpy.__file__, os.path.dirname(os.path.abspath(__file__)))  # the last one: pykernels
)
_RECORDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_record.py")
_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
_INSTALLED = tuple({sysconfig.get_paths()[k] + os.sep for k in ("purelib", "platlib")})
#: What of torch and NumPy a model may call; more is refused by name.
_CALLABLE = (
    "torch.nn.", "torch.functional", "torch._tensor", "torch.overrides", "torch._jit_internal",
    "torch.autograd.grad_mode",
    "torch._VF", "torch.jit", "torch.compiler", "torch._dynamo", "torch.onnx", "torch.utils._pytree",
    "torch.fx._pytree",
    "torch.utils._contextlib",
    "torch.utils.checkpoint", "torch._utils", "torch._classes", "torch._ops", "torch.special", "torch.fft",
    "torch.linalg",
    "torch.types", "torch.return_types", "numpy._core", "numpy.core", "numpy.lib._function_base_impl", "pykernels.",
)  # fmt: skip
_REFUSED_OF_TORCH = (
    "set_",
    "use_",
    "manual_seed",
    "seed",
    "initial_seed",
    "get_rng",
    "_set",
    "save",
    "load",
    "compile",
)
_STATE_OF_TORCH = ("get_", "_get", "are_", "is_", "_is_", "initial_", "default_generator")
_KNOWN_STATE = frozenset(
    ["is_tensor", "is_storage", "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled",
    "is_autocast_cpu_enabled", "get_default_dtype", "is_floating_point", "is_complex", "is_nonzero", "is_conj",
    "is_neg", "get_device", "is_same_size", "is_signed", "is_scripting", "is_tracing", "is_compiling",
    "is_in_onnx_export", "is_autocast_cache_enabled", "_is_any_autocast_enabled"]
)  # fmt: skip
_REFUSED_MODULES = ("torch.nn.init", "torch.nn.parallel")
_BUILTINS = frozenset(
    ["abs", "all", "any", "bin", "callable", "chr", "divmod", "filter", "format", "getattr", "hasattr", "hex",
    "isinstance", "issubclass", "iter", "len", "max", "min", "next", "oct", "ord", "pow", "range", "repr",
    "reversed", "round", "sorted", "sum", "zip", "map", "__build_class__"]
)  # fmt: skip
_PURE_MODULES = frozenset(
    (
        "math",
        "_operator",
        "operator",
        "itertools",
        "functools",
        "_functools",
        "collections",
        "_collections",
        "cmath",
        "_abc",
    )
)
_VALUES: tuple[Any, ...] = (
    type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, slice, torch.Tensor,
    torch.dtype, torch.device, types.MappingProxyType, types.GeneratorType, type({}.keys()), type({}.values()),
    type({}.items()),
)  # fmt: skip
#: The files of the code that `torch.fx` writes.
_WRITTEN_BY_FX = "<eval_with_key>"
#: They may name any attribute.
_BY_ANY_NAME = frozenset(("getattr", "vars", "__dict__", "hasattr", "attrgetter", "__getattribute__"))


class Findings:
    """What one part of a model has run."""

    def __init__(self) -> None:
        self.codes: set[types.CodeType] = set()
        self.names: set[str] = set()
        self.reason: str | None = None

    def refuse(self, reason: str) -> None:
        """Notes the first reason only."""
        if self.reason is None:
            self.reason = reason


@functools.cache
def _is_trusted(filename: str) -> bool:
    return filename.startswith(_TRUSTED)


@functools.cache
def _is_standard(filename: str) -> bool:
    return filename.startswith((_STANDARD, "<frozen ")) and not filename.startswith(_INSTALLED)


def _is_for_trusted(frame: types.FrameType | None) -> bool:
    """Whether this frame is torch's, NumPy's or ours, or the standard library's on their behalf."""
    while frame is not None and _is_standard(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and _is_trusted(frame.f_code.co_filename)


@functools.cache
def _scan(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The names that ``code`` reads from its globals, those that it imports, and all that it mentions."""
    reads: set[str] = set()
    imports: set[str] = set()
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
            reads.add(str(i.argval))
        elif i.opname == "IMPORT_NAME":
            imports.add(str(i.argval))
    mentioned = {*code.co_names, *code.co_freevars, *_strings(code.co_consts)}
    if code.co_filename.startswith(_WRITTEN_BY_FX):  # as in getattr(self.layer, "0"): it gets literals alone
        mentioned.discard("getattr")
    return frozenset(reads), frozenset(imports), frozenset(mentioned)


def _strings(constants: tuple[Any, ...]) -> set[str]:
    found = {c for c in constants if type(c) is str}
    return found.union(*(_strings(c) for c in constants if type(c) is tuple))


def place_in_model(frame: types.FrameType | None = None) -> str:
    """File and line of the model's code that is being run (in ``frame`` or what called it), to end a sentence."""
    frame = sys._getframe(1) if frame is None else frame
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if name == "run" and file == _RECORDER:  # what called the model is not part of it
            break
        if not _is_trusted(file) and not _is_standard(file):
            return f", {os.path.basename(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


class Onlooker:
    """`sys.setprofile`'s function for one capture; ``part`` says whose findings an event belongs to."""

    def __init__(self, watch: Watch, part: Callable[[], list[Findings]]) -> None:
        self.watch, self.part = watch, part
        self.asleep = False
        #: The frame of an import that goes on. What a module runs when it is loaded is nothing of the model's, and
        #: there may be thousands of functions.
        self._importing: types.FrameType | None = None
        #: What may still run on somebody else's behalf after a sleep.
        self._others: set[types.CodeType] = set()
        self._resolved: set[str] = set()
        self._names_done: dict[int, set[str]] = {}

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        """Never raises: what goes wrong here is a reason not to capture."""
        if self._importing is not None:
            if event == "return" and frame is self._importing:
                self._importing = None
            return
        if self.asleep or (self._others and self._is_of_others(frame)):
            return
        try:
            if event == "call":
                self._python(frame)
            elif event == "c_call" and not _is_for_trusted(frame):
                self._native(argument, frame)
        except OF_STEPS as problem:
            self.part()[-1].refuse(f"{frame.f_code.co_name} can't be inspected ({type(problem).__name__})")

    def wake(self, callbacks: list[Any]) -> None:
        """Looks on again, but not at these functions, which are called before the model goes on."""
        functions = [getattr(c, "__func__", c) for c in callbacks]
        self._others = {f.__code__ for f in functions if isinstance(f, types.FunctionType)}
        self.asleep = False

    def _is_of_others(self, frame: types.FrameType | None) -> bool:
        while frame is not None and frame.f_code not in self._others:
            frame = frame.f_back
        if frame is None:
            self._others = set()
        return frame is not None

    def _python(self, frame: types.FrameType) -> None:
        code, caller = frame.f_code, frame.f_back
        if code.co_name == "_find_and_load" and code.co_filename == "<frozen importlib._bootstrap>":
            name = frame.f_locals.get("name")
            if name not in sys.modules:
                if not _is_for_trusted(caller):
                    self.part()[-1].refuse(f"imports {name}{place_in_model(caller)}")
                self._importing = frame
                return
        if _is_trusted(code.co_filename):
            if caller is not None and not _is_for_trusted(caller):
                self._into_trusted(frame)
            return
        if _is_standard(code.co_filename) and _is_for_trusted(caller):
            return
        parts = self.part()
        if any(code in p.codes for p in parts):
            return
        here = parts[-1]
        nested = any(code in p.co_consts for part in parts for p in part.codes)
        here.codes.add(code)
        place = f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
        if set(code.co_freevars) - {"__class__"} and code not in self.watch.closures and not nested:
            here.refuse(f"{code.co_name} ({place}) reads variables of a function that has returned")
        reads, imports, mentioned = _scan(code)
        here.names |= mentioned
        for name in reads:
            space = frame.f_globals
            value = space.get(name, MISSING)
            self.watch.entry(space, name, value)
            if value is MISSING:
                value = getattr(builtins, name, None)
            self.watch.add(value, None, name)
        for name in imports:
            module = sys.modules.get(name)
            if module is None:
                here.refuse(f"{code.co_name} ({place}) imports {name}")
            for prefix in (name.split(".")[0], name):
                self.watch.add(sys.modules.get(prefix), None, name)
        self._resolve(here.names.union(*(p.names for p in parts)))

    def _resolve(self, names: set[str]) -> None:
        """Watches what ``names`` are in the classes and Python modules that are met; these may lead to more."""
        again = True
        while again:
            again = False
            for owner in (*self.watch.classes, *self.watch.pymodules.values()):
                done = self._names_done.setdefault(id(owner), set())
                fresh = names - done
                if not fresh:
                    continue
                again = True
                done |= fresh
                spaces = [vars(owner)] if isinstance(owner, types.ModuleType) else []
                kinds = [k for k in owner.__mro__ if is_own(k)] if isinstance(owner, type) else []
                for name in fresh:
                    for space in spaces:
                        if name in space:
                            self.watch.entry(space, name, space[name])
                            self.watch.add(space[name], None, name)
                    for kind in kinds:
                        if name in vars(kind):
                            self.watch.entry(kind, name, vars(kind)[name])
                            self.watch.add(vars(kind)[name], None, name)

    def _into_trusted(self, frame: types.FrameType) -> None:
        module, name = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        here = self.part()[-1]
        if module == "torch":
            if not _may_ask_torch(name):
                here.refuse(f"calls torch.{name}{place_in_model(frame)}")
        elif not module.startswith(_CALLABLE) or module.startswith(_REFUSED_MODULES):
            here.refuse(f"calls {module}.{name}{place_in_model(frame)}")
        elif module == "torch.autograd.grad_mode" and isinstance(frame.f_locals.get("self"), torch.inference_mode):
            here.refuse(f"enters or leaves inference mode{place_in_model(frame)}")

    def _native(self, function: Any, frame: types.FrameType) -> None:
        owner, name = getattr(function, "__self__", None), function.__name__
        module = function.__module__ or (owner.__name__ if isinstance(owner, types.ModuleType) else "")
        if module == "builtins" and isinstance(owner, types.ModuleType):
            allowed = name in _BUILTINS
        elif isinstance(owner, types.ModuleType) or owner is None:
            of_torch = str(module).split(".")[0] == "torch"
            allowed = module in _PURE_MODULES or (of_torch and _may_ask_torch(name))
        elif isinstance(owner, type):
            allowed = owner in _VALUES or issubclass(owner, tuple | torch.Tensor | torch.nn.Module) or owner is object
            allowed = allowed or str(module).startswith("torch")
        elif str(getattr(owner, "__module__", "")).startswith(("torch._C", "torch._ops", "pykernels")):
            allowed = _may_ask_torch(name)
        else:
            allowed = isinstance(owner, _VALUES) or type(owner).__name__.endswith("iterator") or name in (
                "__init__", "__init_subclass__", "__new__", "__getattribute__",
            )  # fmt: skip
            allowed = allowed or str(getattr(type(owner), "__module__", "")).startswith("torch")
        if not allowed:
            whose = module or type(owner).__name__
            place = place_in_model(frame)
            self.part()[-1].refuse(f"calls {whose}.{name}, whose result depends on more than its arguments{place}")


def _may_ask_torch(name: str) -> bool:
    """Does torch's function ``name`` neither change nor ask for what lies outside its arguments?

    What it says of gradient mode, autocast and the default dtype is part of a program's key.
    """
    if name.startswith(_REFUSED_OF_TORCH):
        return False
    return name in _KNOWN_STATE or not name.startswith(_STATE_OF_TORCH)


def names_any(names: set[str]) -> bool:
    """May code that mentions these read an attribute of any name?"""
    return not _BY_ANY_NAME.isdisjoint(names)
