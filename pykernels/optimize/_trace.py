"""Symbolic tracing that refuses where torch.fx would guess.

``torch.fx.symbolic_trace`` records one path through ``forward``. Where Python code asks a traced value what it is,
keeps state on the module or makes new tensors, the recorded path may be another one than a call would take, and nothing
says so. `trace` notices these cases and names the innermost module whose ``forward`` is to blame; the caller then keeps
that module whole and traces the rest.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from pykernels.nn._replaceable import has_hooks as has_hooks

#: Packages whose modules stand in the graph as they are.
_LEAF_PACKAGES = ("torch.nn.", "torch.ao.nn.", "pykernels.nn.")


class Untraceable(Exception):
    """``path`` (a module's name, "" for the root) has a ``forward`` that one graph can't stand for."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path or 'the model'}: {reason}")
        self.path, self.reason = path, reason


class _Guess(Exception):
    """Raised inside the traced forward where plain torch.fx would go on with a guess."""


class _Proxy(fx.Proxy):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # isinstance(value, T) comes here when the value's real type, fx.Proxy, is no T. torch's own code may ask (it
        # knows proxies); the model's code would take the branch for "not a tensor".
        caller = sys._getframe(1)
        module = str(caller.f_globals.get("__name__", ""))
        if caller.f_code.co_name == "is_tensor" or not (
            module.startswith(("torch.", "_operator")) or module == "torch"
        ):
            raise _Guess("asks a value for its type")
        return _Proxy

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        # fx.Proxy has every attribute; the tensor that it stands for hasn't, and hasattr or except may ask.
        if not hasattr(torch.Tensor, k):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return super().__getattr__(k)


def _in_place(name: str) -> Callable[[_Proxy, Any], fx.Proxy]:
    function = getattr(operator, name)

    def record(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


# Without these, `a += b` is recorded as `a = a + b`, and other names of a's tensor would miss the update.
for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


@contextmanager
def _ambient_state_refused() -> Iterator[None]:
    """While tracing, asking for or changing what lies outside the model's arguments is an error."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _Guess("asks for or changes torch's global state")

    targets = [(torch, "is_grad_enabled"), (torch, "is_inference_mode_enabled"), (torch, "is_autocast_enabled"),
               (torch, "manual_seed"), (torch.autocast, "__enter__")]  # fmt: skip
    saved = [getattr(owner, name) for owner, name in targets]
    for owner, name in targets:
        setattr(owner, name, refuse)
    try:
        yield
    finally:
        for (owner, name), value in zip(targets, saved, strict=True):
            setattr(owner, name, value)


class _Tracer(fx.Tracer):
    #: A buffer that forward reads is a value of the graph, not a constant; one that it writes can't be traced.
    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, keep: set[str]) -> None:
        super().__init__()
        self.keep = keep
        self.known = {id(t) for t in (*module.parameters(), *module.buffers())}
        self.culprit = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.keep or has_hooks(m):
            return True
        package = type(m).__module__ + "."
        return package.startswith(_LEAF_PACKAGES) and not isinstance(m, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        path = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost frame comes first; the outer ones find it set.
            self.culprit = self.culprit or path
            raise

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        is_new = not issubclass(type(a), fx.Proxy) and isinstance(a, torch.Tensor) and id(a) not in self.known
        if is_new:
            raise _Guess("uses tensors that are neither arguments, parameters nor buffers")
        return super().create_arg(a)


def _optional_arguments(module: nn.Module) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    flexible = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is not p.empty or p.kind in flexible]


def _fingerprint(value: Any) -> Any:
    """Changes when ``value`` is replaced, a tensor written to, or a plain container filled or emptied."""
    if issubclass(type(value), fx.Proxy):
        return id(value)
    if isinstance(value, torch.Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, dict):
        return id(value), tuple(value), tuple(map(id, value.values()))
    if isinstance(value, list | set | tuple):
        return id(value), tuple(map(id, value))
    return id(value)


def _state(module: nn.Module) -> dict[str, dict[str, Any]]:
    tensors = {name: {f"_{k}": _fingerprint(t) for k, t in m._buffers.items()} for name, m in module.named_modules()}
    return {
        name: {**tensors[name], **{k: _fingerprint(v) for k, v in vars(m).items()}}
        for name, m in module.named_modules()
    }


def _keep_state(module: nn.Module) -> Callable[[], None]:
    saved = [(m, {k: (v, _contents(v)) for k, v in vars(m).items()}) for m in module.modules()]

    def restore() -> None:
        for m, attributes in saved:
            vars(m).clear()
            for k, (value, contents) in attributes.items():
                if contents is not None:
                    value.clear()
                    value.extend(contents) if isinstance(value, list) else value.update(contents)
                vars(m)[k] = value

    return restore


def _contents(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict, set) else None


def trace(module: nn.Module, keep: set[str]) -> fx.Graph:
    """The graph of ``module``, with the modules named in ``keep`` left whole.

    Raises:
        Untraceable: with the innermost module that can't be part of a graph, and the reason.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise Untraceable("", "is TorchScript")
    optional = _optional_arguments(module)
    if optional:
        raise Untraceable("", f"forward has optional arguments ({', '.join(optional)})")
    tracer = _Tracer(module, keep)
    restore = _keep_state(module)
    before = _state(module)
    try:
        with _ambient_state_refused():
            graph = tracer.trace(module)
    except Exception as problem:
        restore()
        reason = str(problem).strip().split("\n")[0] or type(problem).__name__
        raise Untraceable(tracer.culprit, reason) from problem
    after = _state(module)
    for path in sorted(after, key=len, reverse=True):
        if before.get(path) != after[path]:
            restore()
            raise Untraceable(path, "forward keeps state on the module")
    graph._tracer_cls = fx.Tracer  # unpickling traces the generated code once more, which needs no guard
    return graph
