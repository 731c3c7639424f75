"""The optimised model: a twin of the original, whose class is the original's except for a few methods."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from pykernels.optimize._keep import PackedWeight, check_whole
from pykernels.optimize._report import Report
from pykernels.optimize._stub import Family, Stub
from pykernels.optimize._tell import report_of
from pykernels.optimize._watch import Watch, is_own

if TYPE_CHECKING:
    from typing import Generic

    from typing_extensions import ParamSpec, TypeVar

    P = ParamSpec("P", default=...)
    R = TypeVar("R", covariant=True, default=Any)

    class Callee(Protocol[P, R]):
        """What is called as its ``forward`` is: every module."""

        @property
        def forward(self) -> Callable[P, R]:
            """From the model's arguments to its result."""

    class _Module(nn.Module, Generic[P, R]):
        pass

else:
    P = R = None

    class _Module:
        """torch.nn.Module: a base that is generic to Python too might not fit the bases of an original."""

        def __class_getitem__(cls, of: Any) -> Any:
            return nn.Module


class Optimized(_Module[P, R]):
    """An optimised model, which `pykernels.optimize` returns. It is an instance of the original's class too.

    For a type checker, ``Optimized[P, R]`` is a module whose calls take the arguments of the original's ``forward`` and
    return what that returns. The checker does not know that the model is of the original's class. Where you need
    that, write ``typing.cast(Net, fast)``.
    """

    def __class_getitem__(cls, of: Any) -> GenericAlias:
        return GenericAlias(cls, of)

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

        def __getattr__(self, name: str) -> Any: ...  # the original's, whatever they are

    def report(self, time: bool = False) -> Report:
        """Says what ran in the calls so far, what pykernels left to torch, and why.

        Args:
            time: Whether to time each step too: a few times, on random inputs of the last call's sizes.
        """
        return report_of(family_of(self), time)

    def train(self, mode: bool = True) -> Any:
        """Stays in evaluation mode, so that a larger model that contains this one may train.

        Args:
            mode: Has no effect.
        """
        for module in self.modules():
            module.training = False
        return self

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict, as `torch.nn.Module.load_state_dict` does.

        Args:
            state_dict: The original's, or this model's own.
            strict: Whether the keys have to be those of the model.
            assign: Whether to put the tensors in the parameters' places, and not to copy them.

        Raises:
            RuntimeError: The model keeps weights in packed form alone, and ``assign`` is False.
        """
        if not assign:
            check_whole(self.parameters(), "a state_dict to be copied into it (assign=True would take its place)")
        return super().load_state_dict(state_dict, strict, assign)

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module._call_impl`. Dynamo, if it sees only that, would go to ``forward`` and miss the stub."""
        return super()._call_impl(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        family = family_of(self)
        above = getattr(super(), "__getstate__", None)
        kept = dict(above() if callable(above) else vars(self))
        kept.pop("_compiled_call_impl", None)
        kind: Any = type(self)
        made = kind._pykernels_face, kind._pykernels_original
        return _restored, (*made, family.outside, family.inside, family.keep, family.plan), kept

    def __setstate__(self, kept: Any) -> None:
        made = family_of(self)  # when there was nothing as yet
        super().__setstate__(kept)
        vars(self).pop("_compiled_call_impl", None)
        family = _family_of(self, made.outside, made.inside, made.keep, made.plan)
        family.own.update(self.modules())
        family.held.update({id(p): p for p in self.parameters() if isinstance(p, PackedWeight)})
        family.install()


def family_of(model: nn.Module) -> Family:
    """A part that was cut out of an optimised model, such as ``fast[1:]``, has one of its own."""
    stub = vars(model).get("_compiled_call_impl")
    found = stub.family if isinstance(stub, Stub) else vars(type(model)).get("_pykernels_family")
    return found if found is not None and found.root is model else Family(model, torch.float32, torch.float32)


def _restored(
    above: type, kind: type, outside: torch.dtype, inside: torch.dtype, keep: str | None = None, plan: Any = None
) -> Any:
    made: Any = _class_of(kind, above)
    # fx's own makes another class at each call.
    new = object.__new__(made) if issubclass(kind, fx.GraphModule) else made.__new__(made)
    _family_of(new, outside, inside, keep, plan)
    return new


def _class_of(kind: type, above: type = Optimized) -> type:
    """The class of a twin: that of the original, with the methods of ``above``."""
    meta: Any = type(kind)
    bases: tuple[type, ...] = (above, kind)
    if not _is_laid_out_as_module(kind):
        meta, bases = type("Meta", (meta,), {"mro": _twins_first}), (kind, above)
    members: dict[str, Any] = {"_pykernels_original": kind, "_pykernels_face": above}
    if issubclass(kind, fx.GraphModule):
        members["__deepcopy__"] = _copied_graph  # its own would leave out what is not of the graph
    made: type = meta(kind.__name__, bases, members)
    made.__module__, made.__qualname__, made.__doc__ = kind.__module__, kind.__qualname__, kind.__doc__
    return made


def _copied_graph(twin: Any, memo: dict[int, Any]) -> Any:
    make, given, kept = twin.__reduce_ex__(4)
    new = memo[id(twin)] = make(*given)
    new.__setstate__(copy.deepcopy(kept, memo))
    return new


def _is_laid_out_as_module(kind: type) -> bool:
    """Not where its first base is another class, such as ``Generic[T]``; an object keeps the layout of its first."""
    base: type | None = kind
    while base is not None and base is not nn.Module:
        base = base.__base__
    return base is not None


def _twins_first(cls: type) -> list[type]:
    """The ``mro`` of a class whose first base is the original's, for the layout."""
    made, *rest = type.mro(cls)
    return sorted((made, *rest), key=lambda kind: 0 if kind is made else 1 if issubclass(kind, Optimized) else 2)


def _family_of(model: Any, outside: torch.dtype, inside: torch.dtype, keep: str | None, plan: Any = None) -> Family:
    """A new one, with a stub on ``model`` or, where that is to have none, known to its class, which is its alone."""
    family = Family(model, outside, inside, keep, plan)
    if family.is_bare:
        kind = type(model)
        kind._pykernels_family, kind._call_impl = family, kind._pykernels_original._call_impl
    else:
        vars(model)["_compiled_call_impl"] = Stub(model, "", family)
    return family


def face(
    model: nn.Module, outside: torch.dtype, inside: torch.dtype, keep: str | None = None, above: type = Optimized,
    plan: Any = None,
) -> Any:  # fmt: skip
    """The twin of ``model``, with stubs on its modules; its class has the methods of ``above``."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "pykernels.optimize: model: expected a torch.nn.Module with a forward in Python, got TorchScript; optimise "
            "the module that it was made of"
        )
    if any(is_lazy(t) for m in model.modules() for t in _tensors(m)):
        raise ValueError(
            "pykernels.optimize: model: expected initialised parameters, got lazy ones; call the model once first"
        )
    with torch.inference_mode(False), torch.no_grad():
        twin, copied = _shared_copy(model, outside, inside)
        written = _to_evaluation(twin)
    twin.__class__ = _class_of(type(twin), above)
    family = _family_of(twin, outside, inside, keep, plan)
    if copied:
        family.note("the model", f"{copied} tensors", "are made in inference mode: copied, not shared")
    if written:
        family.note("the model", f"{written} tensors", "are written to by train() or eval(): copied, not shared")
    family.own.update(twin.modules())
    family.install()
    return twin


def _shared_copy(model: nn.Module, outside: torch.dtype, inside: torch.dtype) -> tuple[nn.Module, int]:
    """A deep copy of the modules whose tensors are the original's: same storage, same version counter.

    Where the dtype changes they are converted; batch norm keeps its own, because its scale and shift are folded in
    float32. Tensors made in inference mode count no versions and are copied; their number is returned.
    """
    stay = {id(t) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for t in _tensors(m)}
    own = {id(t): t for m in model.modules() for t in _tensors(m)}
    watch = Watch()
    watch.add(model)
    memo: dict[int, Any] = {}
    copied = 0
    for key, t in {**watch.tensors, **own}.items():
        if type(t) not in (torch.Tensor, nn.Parameter):
            continue
        data = t.detach()
        if t.is_inference():
            data, copied = t.clone(), copied + 1
        if key in own and t.dtype == outside and outside != inside and key not in stay:
            data = data.to(inside)
        memo[key] = nn.Parameter(data, requires_grad=False) if isinstance(t, nn.Parameter) else data
    for thing in watch.opaque_things:
        if isinstance(thing, torch.jit.ScriptModule | torch.jit.ScriptFunction) or not _copies(thing, memo):
            memo[id(thing)] = thing
    return copy.deepcopy(model, memo), copied


def _to_evaluation(twin: nn.Module) -> int:
    """Calls ``eval``, which must not change what the twin shares with the original.

    A model's own ``train`` and ``eval`` may merge adapters into weights and take them out again, through ``data``,
    which counts no version. So they are tried on copies, and the twin keeps its own copy of what they write to. Returns
    the number of these.
    """
    seen = {id(t): t for m in twin.modules() if _has_own_modes(m) for part in m.modules() for t in _tensors(part)}
    shared = {key: t.data for key, t in seen.items()}
    for t in seen.values():
        t.data = t.data.clone()
    twin.eval()
    if not seen:
        return 0
    evaluated = {key: t.data.clone() for key, t in seen.items()}
    twin.train()
    trained = {key: t.data.clone() for key, t in seen.items()}
    twin.eval()
    written = 0
    for key, t in seen.items():
        if _are_equal(shared[key], evaluated[key]) and _are_equal(evaluated[key], trained[key]):
            t.data = shared[key]
        else:
            t.data = evaluated[key]
            written += 1
    return written


def _has_own_modes(module: nn.Module) -> bool:
    names = ("train", "eval")
    return any(n in vars(k) for k in type(module).__mro__ if is_own(k) for n in names) or any(
        n in vars(module) for n in names
    )


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0, 0, equal_nan=True))


def _copies(thing: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(thing, dict(memo))
    except Exception:
        return False
    return True


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
