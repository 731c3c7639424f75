"""What `torch.export` gets from an optimised model: the steps of its program, on weights that are packed already.

They are packed for the ISA in force and become constants of the exported program, and so of an AOTInductor package. An
export makes fakes of parameters and inputs and calls the model. There must be a program for inputs of this kind, and
all that it depends on must be as it was: each tensor itself, or the fake that stands for it. Otherwise torch exports
its own layers. It also does so if sizes are to stay open that the model has read.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from pykernels.nn._packed import PacksWeights
from pykernels.ops._dispatch import asked_backend, is_for_onnx
from pykernels.optimize._calls import OurCall
from pykernels.optimize._conv1d import FusedConv1d
from pykernels.optimize._fused import FusedConv, Traceable
from pykernels.optimize._graph import OF_STEPS, Made, Step, Value, mapped
from pykernels.optimize._layout import FIXES, as_channels_last, as_contiguous, as_time_major
from pykernels.optimize._linear import FusedLinear, on_rows
from pykernels.optimize._program import Program
from pykernels.optimize._torchs import batch_norm_, norm_into
from pykernels.optimize._watch import ANY, Watch, looked_up, snapshot, traits

if TYPE_CHECKING:
    from pykernels.optimize._stub import Stub

_PLAIN = int, float, bool, str
#: Of a fused step: what runs it, from x and the residual.
Run = Callable[[Tensor, "Tensor | None"], Tensor]
TURNS = {
    **{fix: layout for layout, fix in FIXES.items()}, as_contiguous: "contiguous", as_time_major: "time_major",
    as_channels_last: "channels_last",
}  # fmt: skip


def exported(stub: Stub, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    """The result of the call as part of the export, in a tuple; None if it has to be the model's own layers.

    Of a quantised model these would be float ones: a warning says so.
    """
    fakes: list[Any] = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if not fakes or not all(type(t) is FakeTensor for t in fakes) or None in [n for t in fakes for n in _sizes(t)]:
        return None
    plan, for_onnx = stub.family.plan, is_for_onnx()
    if for_onnx and plan is None:
        return None
    grad = torch.is_grad_enabled()
    with for_real():
        real: dict[int, Tensor] = {id(t): _real(t) for t in fakes}
        inputs = {id(real[id(t)]): t for t in fakes}
        given = pytree.tree_map_only(Tensor, lambda t: real[id(t)], (args, kwargs))
        tensors, program = stub.program_for(given[0], given[1], grad)
        stands_for = _Fakes(fakes[0].fake_mode)
        why = _why_not(program, fakes, stands_for)
    warns = plan is not None and plan.is_active() and stub.module is stub.family.root
    if why or program is None:
        if warns:
            _warn(for_onnx, why)
        return None
    read = [inputs[id(t)] for t in tensors]
    if for_onnx:
        try:
            written: tuple[Any] | None = program.graph.rewritten.in_onnx(program, read)
        except OF_STEPS as problem:  # torch would try again, without the program, and tell nobody
            _warn(for_onnx, f"a step cannot be written in ONNX: {problem}")
            return None
        return written
    with for_real():
        runs = _chosen(program)
        constants = {v: t for v, t in program.current().values.items() if isinstance(t, Tensor)}
    return (_evaluated(program, read, constants, stands_for.fakes, runs),)


def _warn(for_onnx: bool, why: str) -> None:
    who = "torch.onnx.export" if for_onnx else "torch.export"
    warnings.warn(f"pykernels.quantize: {who} writes float layers, because {why}", stacklevel=3)


def _why_not(program: Program | None, fakes: list[Any], stands_for: _Fakes) -> str:
    """Why a program's steps can't be exported; "" where they can."""
    if torch._C._is_any_autocast_enabled() or asked_backend() != "auto":
        return "autocast is on, or a backend was requested"
    if program is None:
        return "the model was not called before with inputs of this kind; call it once with those of the export"
    if not _can_be_exported(program):
        return "the model cannot be followed as a whole, or writes to its inputs"
    if program.exact and any(isinstance(n, torch.SymInt) for t in fakes for n in t.shape):
        return "the model reads sizes that are to stay open"
    stale = any(getattr(s.function, "is_stale", bool)() for s in program.graph.steps)
    if stale or not stands_for.all_is_as_in(program.watch):
        return "the model has changed since its last call; call it again"
    return ""


@contextmanager
def for_real() -> Iterator[None]:
    """Computes with tensors as they are, whoever traces."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
        yield


def _sizes(t: Tensor) -> list[int | None]:
    """Sizes and strides that the example has; None for what is known at a call alone."""
    return [n.node.hint if isinstance(n, torch.SymInt) else n for n in (*t.shape, *t.stride())]


def _real(t: Tensor) -> Tensor:
    """One of the example's sizes and strides."""
    sizes: Any = _sizes(t)
    made = torch.empty_strided(sizes[: t.dim()], sizes[t.dim() :], dtype=t.dtype, device=t.device).zero_()
    return made.requires_grad_(t.requires_grad)


def _can_be_exported(program: Program) -> bool:
    """Whether nothing is left out, and it writes only to what it has made."""
    if program.unsure or not program.again or any(f.device.type != "cpu" for f in program.graph.inputs):
        return False
    return not any(s.function in (norm_into, batch_norm_) for s in program.graph.steps)


class _Fakes:
    """Which fakes stand for which of the model's tensors."""

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        #: By the id of the tensor.
        self.fakes: dict[int, FakeTensor] = {}

    def _same(self, now: Any, then: Any) -> bool:
        if now is then or then is ANY:
            return True
        # An export makes containers anew.
        if type(now) is type(then) and isinstance(now, tuple | list):
            return len(now) == len(then) and all(map(self._same, now, then))
        if type(now) is type(then) is dict:
            return list(now) == list(then) and all(map(self._same, now.values(), then.values()))
        if type(now) is type(then) is weakref.ref:
            return self._same(now(), then())
        if type(now) in _PLAIN:
            return type(now) is type(then) and bool(now == then)
        if type(now) is not FakeTensor or not isinstance(then, Tensor):
            return False
        # Of a tensor that it knows the mode gives the fake that it has made.
        if now.fake_mode is not self.mode or self.mode.from_tensor(then, static_shapes=True) is not now:
            return False
        self.fakes[id(then)] = now
        return True

    def all_is_as_in(self, watch: Watch) -> bool:
        """Whether everything is as it was, except for fakes."""
        for key, container in watch.containers.items():
            now, then = snapshot(container), watch.snapshots[key]
            if watch.owners[key] == (None, "") and isinstance(container, dict):  # hooks on all modules
                now = tuple(x for k, v in zip(now[::2], now[1::2], strict=True) if not _is_tracers(v) for x in (k, v))
            if len(now) != len(then) or not all(map(self._same, now, then)):
                return False
        if any(live != then for live, then in watch.sets) or any(traits(t) != then for t, then in watch.asked.values()):
            return False
        found = ((looked_up(owner, name), then) for owner, name, then in watch.entries.values())
        return all(now is then or (_is_tracers(now) and now.__wrapped__ is then) for now, then in found)


def _is_tracers(function: Any) -> bool:
    """Is it a function by which an export looks on?"""
    return getattr(function, "__globals__", {}).get("__name__", "").startswith(("torch.fx.", "torch._functorch."))


def _chosen(program: Program) -> list[Run]:
    """What runs each fused step, as chosen for the sizes of the last call that had others than those before."""
    bound, runs = program.current(), []
    for i, step in enumerate(program.fused):
        conv, x, pack = step.function, step.args[0], bound.convs[i]
        if isinstance(conv, Traceable):
            runs.append(conv.in_trace(pack))
            continue
        ours = type(conv) in (FusedConv, FusedConv1d, FusedLinear) and pack.own is None
        if ours and not program.reasons[i]:
            runs.append(_packed(conv, pack, torch.Size(program.shapes.get(x, x.shape))))
        else:
            runs.append(bound.by_torch(i, conv, "channels_last" if conv.channels_last else x.layout))
    return runs


def _packed(conv: FusedConv, pack: Any, shape: torch.Size) -> Run:
    """Of an op whose result has a shape that a trace can tell."""
    is_linear = isinstance(conv, FusedLinear)
    algorithm = pack._algorithm(torch.Size() if is_linear else shape)
    filters, packed, rest, call = pack.twins[0].shape, pack._packed(algorithm), pack.value, pack.calls[False]
    if pack.held is not None:
        packed = packed.clone()  # without what lies beside it, which would be saved too
    op = torch.ops.pykernels.conv_bn_act_packed.default

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        return op(x, packed, filters, *rest, residual, *call)

    return on_rows(run) if is_linear else run


def _evaluated(
    program: Program, inputs: list[FakeTensor], constants: dict[Value, Tensor], fakes: dict[int, FakeTensor],
    runs: list[Run],
) -> Any:  # fmt: skip
    """The program's result, computed step by step."""
    values: dict[Value, Any] = {**constants, **dict(zip(program.graph.inputs, inputs, strict=True))}
    runs_left = iter(runs)

    def leaf(x: Any) -> Any:
        if isinstance(x, Value):
            return fakes.get(id(x.tensor), x.tensor) if x.kind == "source" and x not in values else values[x]
        return x

    for step in program.graph.steps:
        args, kwargs = realised(mapped(step.args, leaf)), realised(mapped(step.kwargs, leaf))
        if isinstance(step.function, FusedConv):
            conv = step.function
            x, residual = args
            result = next(runs_left)(_turned("channels_last" if conv.channels_last else "", x), residual)
            result = _turned(conv.fix, result)
        else:
            result = _function(step)(*args, **kwargs)
        _spread(step.outputs, result, values)
    return realised(mapped(program.graph.result, leaf))


def _turned(layout: str, t: Tensor) -> Tensor:
    """``t`` in this memory format, if one is named."""
    if layout == "time_major":
        return t.transpose(0, 1).contiguous().transpose(0, 1)
    if layout:
        t = t.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    return t


def _function(step: Step) -> Callable[..., Any]:
    """What a step that isn't fused calls."""
    if step.function in TURNS:  # which asks for sizes
        return partial(_turned, TURNS[step.function])
    if isinstance(step.function, OurCall):
        return step.function.in_trace
    if not isinstance(step.function, PacksWeights):
        return step.function
    slots = step.function._slots()
    weights = [owner.get(name) for owner, name in slots]
    if any(type(t) is FakeTensor for t in weights):  # one of the model's own: its plain op
        return step.function
    with for_real():
        module: Any = copy.copy(step.function)
        pack = module._new_pack(slots, weights[0].dtype, module._key())  # type: ignore[union-attr]
        # A file would keep what lies around a view.
        pack.value = pytree.tree_map_only(Tensor, Tensor.clone, pack.value)
    vars(module)["_current_pack"] = lambda *_: pack
    return module


def realised(nest: Any) -> Any:
    """``nest`` with the objects that each `Made` in it stands for."""
    if isinstance(nest, Made):
        return Made.make(nest.kind, realised(nest.items), realised(nest.attributes))
    if isinstance(nest, list):
        return [realised(x) for x in nest]
    if isinstance(nest, dict):
        return {k: realised(v) for k, v in nest.items()}
    if type(nest) is tuple or hasattr(nest, "_fields"):
        return tuple.__new__(type(nest), [realised(x) for x in nest])
    return nest


def _spread(outputs: Any, result: Any, values: dict[Value, Any]) -> None:
    if isinstance(outputs, Value):
        values[outputs] = result
    elif outputs is not None:
        for part, got in zip(outputs, result, strict=True):
            _spread(part, got, values)
