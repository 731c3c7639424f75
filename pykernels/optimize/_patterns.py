"""Rewrites the steps of a recording: convolution, batch norm, sum and activation become one step, LSTMs ours."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels import _native
from pykernels.nn import LSTM, LSTMCell
from pykernels.nn._last_step import LastStepLSTM
from pykernels.ops import _dispatch
from pykernels.ops.conv_bn_act.arguments import geometry
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.ops.lstm.op import LSTM as LSTM_OP
from pykernels.ops.lstm.op import LSTM_CELL
from pykernels.optimize._activations import Act, activation_of, written_out
from pykernels.optimize._fused import Fusable, FusedConv, pixel_scale
from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs, may_move, values_in
from pykernels.optimize._last_step import takes_last_step
from pykernels.optimize._watch import kind_of, plain

#: The arguments of torch's convolutions.
CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
ADDS = ("add", "add_", "__add__", "__radd__", "__iadd__")


#: What a step begins and its input; None where it is nothing of the kind.
Finder = Callable[[Step], tuple[Fusable, Value] | None]


def conv_of(step: Step) -> tuple[FusedConv, Value] | None:
    """A convolution that our kernels take, and its image."""
    if step.kind != "call" or not is_torchs(step.function, "conv2d") or not isinstance(step.outputs, Value):
        return None
    given = bound(step, CONV)
    x, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
    if not isinstance(x, Value) or not isinstance(weight, Value) or len(x.shape) != 4 or len(weight.shape) != 4:
        return None
    options: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    options |= {k: _plain(given[k]) for k in options if k in given}
    if list(values_in(list(options.values()))) or x.dtype is not weight.dtype or weight.shape[0] == 0:
        return None
    if x.dtype not in CONV_BN_ACT.takes(x.device.type) or not _dispatch.has_native(CONV_BN_ACT, x.device):
        return None
    try:
        geometry(weight.shape[2:], **options)
    except (ValueError, TypeError):
        return None
    return FusedConv(weight, bias, options), x


def _zeros_around(step: Step, rank: int) -> tuple[Value, tuple[int, int, int, int]] | None:
    """What ``step`` puts zeros around, an image or (rank 3) a sequence, and how many: top, left, bottom, right."""
    if step.kind != "call" or not is_torchs(step.function, "pad", "constant_pad_nd"):
        return None
    names = ("input", "pad", "mode", "value") if step.function is F.pad else ("input", "pad", "value")
    given = bound(step, names)
    x, pad = given.get("input"), given.get("pad")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
        return None
    if not isinstance(x, Value) or len(x.shape) != rank or rank < 3 or not isinstance(pad, tuple | list):
        return None
    if len(pad) not in (2, 4)[: rank - 2]:
        return None
    if not all(type(p) is int and p >= 0 for p in pad):
        return None
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return x, (top, left, bottom, right)


def _dropped(step: Step) -> int:
    """How many elements a slice drops at the end of the last of three dimensions, and nothing else; 0 of others."""
    index = step.args[1] if is_torchs(step.function, "__getitem__") and len(step.args) == 2 else ()
    if not isinstance(index, tuple) or not index or not isinstance(index[-1], slice):
        return 0
    rest, last = index[:-1], index[-1]
    whole = rest == (Ellipsis,) or rest == (slice(None), slice(None))
    stop = last.stop if whole and last.start in (None, 0) and last.step in (None, 1) else None
    return -stop if type(stop) is int and stop < 0 else 0


def _plain(x: Any) -> Any:
    return tuple(x) if isinstance(x, list | torch.Size) else x


def takes_norm(conv: Fusable, step: Step, constants: set[Value]) -> bool:
    """If ``step`` applies a batch norm with constants, ``conv`` takes it over."""
    if conv.norm is not None or conv.act.name != "none" or not is_torchs(step.function, "batch_norm"):
        return False
    if not isinstance(step.outputs, Value) or len(step.outputs.shape) != conv.rank:
        return False
    found = norm_parts(step)
    if found is None or not all(p is None or p in constants for p in found[1]):
        return False
    _, conv.norm, conv.eps = found
    return True


def takes_scale(conv: Fusable, step: Step, value: Value, fuser: Fuser) -> bool:
    """If ``step`` multiplies ``value`` by a constant for each channel, ``conv`` takes it over as a batch norm's weight.

    That is a layer's scale: of ConvNeXt, CaiT and others.
    """
    if not isinstance(conv, FusedConv) or conv.norm is not None or conv.act.name != "none":
        return False
    pixels = step.function is pixel_scale
    if len(step.args) != 2 or step.kwargs:
        return False
    if not pixels and not is_torchs(step.function, "mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"):
        return False
    scale = step.args[1] if step.args[0] is value else step.args[0]
    y, rank, axis = step.outputs, len(value.shape), 1 if conv.rank > 2 else len(value.shape) - 1
    if value not in step.args or scale not in fuser.constants or (step.writes and step.args[0] is not value):
        return False
    if (y.shape, y.dtype, y.layout) != (value.shape, value.dtype, value.layout) or scale.dtype is not value.dtype:
        return False
    shape = [1] * rank
    shape[axis] = value.shape[axis]
    if not pixels and [1] * (rank - len(scale.shape)) + list(scale.shape) != shape:
        return False
    conv.norm = [fuser.constant(part, (scale,)) for part in (_zeros, _ones, _flat, _zeros)]
    conv.norm_name, conv.eps = "scale", 0.0
    return True


def _flat(scale: Tensor) -> Tensor:
    return scale.float().flatten()


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros(scale.numel())


def _ones(scale: Tensor) -> Tensor:
    return torch.ones(scale.numel())


def norm_parts(step: Step) -> tuple[Value, list[Value | None], float] | None:
    """The input of a batch norm that trains nothing, its mean, variance, weight and bias, and its eps."""
    if step.function is not F.batch_norm:
        return None
    given = bound(step, _NORM)
    x, *parts = [given.get(k) for k in _NORM[:5]]
    eps = given.get("eps", 1e-5)
    if given.get("training", False) is not False or parts[0] is None or parts[1] is None or type(eps) is not float:
        return None
    if (parts[2] is None) is not (parts[3] is None) or not isinstance(x, Value):
        return None
    return x, parts, eps


def constant_norm(step: Step) -> tuple[Any, ...] | None:
    """The tensors and the eps of a batch norm on the CPU that trains nothing and is all of float32, for `norm_into`."""
    if step.function is not F.batch_norm or step.writes:
        return None
    given = bound(step, _NORM)
    x, *rest = (given.get(k) for k in _NORM[:5])
    if not isinstance(x, Value) or x.device.type != "cpu" or given.get("training", False) is not False:
        return None
    if None in rest[:2] or any(v is not None and v.dtype is not torch.float32 for v in (x, *rest)):
        return None
    return x, *rest, given.get("eps", 1e-5)


def _added(step: Step, value: Value) -> Value | None:
    """What ``step`` adds to ``value``, if that is a tensor of the same shape and nothing else is written to."""
    if not is_torchs(step.function, *ADDS) or len(step.args) != 2 or step.kwargs:
        return None
    left, right = step.args
    other = right if left is value else left
    in_place = bool(step.writes)
    if not isinstance(other, Value) or other is value or (in_place and left is not value):
        return None
    same = (other.shape, other.dtype, other.device) == (value.shape, value.dtype, value.device)
    given = step.outputs
    # Eager's sum may take its strides from the other operand, which the kernel doesn't.
    fits = isinstance(given, Value) and given.dtype is value.dtype and given.layout != "other"
    return other if same and fits else None


class Fuser:
    """Finds the chains of one graph, which begin where one of ``finders`` finds something.

    ``constants`` are sources and folded values.
    """

    def __init__(self, graph: Graph, constants: set[Value], finders: Sequence[Finder]) -> None:
        self.graph, self.constants, self.finders = graph, constants, finders
        self.users = graph.users()
        self.producers = {v: s for s in graph.steps for v in s.results()}
        self.at = {s: i for i, s in enumerate(graph.steps)}
        self.made_at = {v: i for i, s in enumerate(graph.steps) for v in s.results()}
        self.by_storage: dict[int, set[Value]] = {}
        for v in (*graph.inputs, *(v for s in graph.steps for v in (*s.reads(), *s.results()))):
            self.by_storage.setdefault(v.storage, set()).add(v)
        #: Steps that depend only on constants, for `constant`.
        self.folded: list[Step] = []
        self._next = 1 + max([v.index for values in self.by_storage.values() for v in values], default=0)

    def constant(self, function: Callable[..., Tensor], args: tuple[Any, ...]) -> Value:
        """What ``function`` makes of constants, as one."""
        made = Value(self._next + len(self.folded), "step", torch.empty(0))
        made.storage = -2 - made.index  # nobody else's
        self.folded.append(Step(function, args, {}, made))
        return made

    def may_move(self, chain: list[Step], to: Step, held: list[Value]) -> bool:
        """May what ``chain`` does be done where ``to`` stands?"""
        return may_move(self.graph, self.at, chain, to, held)

    def fuse(self) -> None:
        """Puts one step in the place of each chain."""
        gone: set[Step] = set()
        fused: dict[Step, Step] = {}
        for step in self.graph.steps:
            found = None if step in gone else next(filter(None, (find(step) for find in self.finders)), None)
            if found is None or not all(v in self.constants for v in found[0].parameters()):
                continue
            conv, x = found
            x = self._unpadded(conv, x, step)
            chain, residual = self._chain([step, *self._trimmed(conv, x, step)], conv, x, gone)
            last, made = chain[-1], conv.step(chain, x, residual, self)
            gone |= set(chain)
            names = [step.where] + [s.where for s in chain[1:] if s.where]
            made.where = step.where
            made.note, made.sources = _what(conv, residual), tuple(dict.fromkeys([*step.sources, *names]))
            fused[last] = made
        self.graph.steps = [fused.get(s, s) for s in self.graph.steps if s not in gone or s in fused]

    def _unpadded(self, conv: Fusable, x: Value, step: Step) -> Value:
        """What stands before zeros that were put around ``x``: the convolution pads by itself."""
        before = self.producers.get(x)
        if before is None or not isinstance(conv, FusedConv) or not conv.pads:
            return x
        found = _zeros_around(before, conv.rank)
        if found is None:
            return x
        image, pad = found
        for other in self.graph.steps[self.at[before] + 1 : self.at[step]]:
            if other.kind == "opaque" or any(v.storage in (image.storage, x.storage) for v in other.writes):
                return x
        conv.pad = pad
        return image

    def _trimmed(self, conv: Fusable, x: Value, step: Step) -> list[Step]:
        """A slice that drops what ``conv`` gives for zeros behind a sequence, and the step that follows.

        Causal convolutions are written so. That is less padding, then.
        """
        if not isinstance(conv, FusedConv) or conv.rank != 3 or not conv.pads:
            return []
        cut = self._only_user(step.outputs)
        after = None if cut is None else self._only_user(cut.outputs)
        if (
            cut is None
            or after is None
            or after.writes
            or not self.may_move([step, cut], after, [x, *conv.parameters()])
        ):
            return []
        dropped, geometry = _dropped(cut), conv.geometry()
        if not 0 < dropped <= geometry.padding[3] or geometry.stride != (1, 1):
            return []
        if any(v.layout != "contiguous" for v in after.results()):
            return []
        is_copy = is_torchs(after.function, "contiguous") and len(after.args) == 1 and not after.kwargs
        if not is_copy and not takes_norm(conv, after, self.constants):
            found = activation_of(after)
            if found is None or list(after.reads()) != [cut.outputs]:
                return []
            conv.act = found
        conv.pad = (*conv.pad[:3], conv.pad[3] - dropped)
        return [cut, after]

    def _only_user(self, value: Any) -> Step | None:
        users = self.users.get(value, []) if isinstance(value, Value) else []
        return users[0] if len(users) == 1 and users[0] is not None and users[0].kind == "call" else None

    def _chain(self, chain: list[Step], conv: Fusable, x: Value, gone: set[Step]) -> tuple[list[Step], Value | None]:
        residual = None
        while True:
            value: Any = chain[-1].outputs
            users = self.users.get(value, [])
            gated = written_out(value, users, self.users)
            user = users[0] if len(users) == 1 else gated[0][-1] if gated else None
            if user is None or user in gone or user.kind != "call" or conv.act.name != "none":
                return chain, residual
            if conv.rank != 4 and any(v.layout != "contiguous" for v in user.results()):
                return chain, residual
            held = [x, *conv.parameters(), *([] if residual is None else [residual])]
            if user.writes and not self._is_alone(value, {s.outputs for s in chain}, self.at[user]):
                return chain, residual
            other = None if residual is not None or gated else _added(user, value)
            if not self.may_move(
                [*chain, *gated[0]] if gated else chain, user, [*held, *([] if other is None else [other])]
            ):
                return chain, residual
            if gated:
                steps, act = gated
                if not self._knows(conv, act, value):
                    return chain, residual
                conv.act = act
                chain += steps[:-1]
            elif other is not None:
                if not conv.adds_any_format and other.layout != value.layout:
                    return chain, residual
                residual = other
            elif residual is None and (takes_norm(conv, user, self.constants) or takes_scale(conv, user, value, self)):
                pass
            else:
                found = activation_of(user)
                reads = [] if found is None else [value, *(v for v in [found.slopes] if v is not None)]
                if found is None or list(user.reads()) != reads or not isinstance(user.outputs, Value):
                    return chain, residual
                if not self._knows(conv, found, value):
                    return chain, residual
                conv.act = found
            chain.append(user)

    def _knows(self, conv: Fusable, act: Act, value: Value) -> bool:
        """Whether the kernels can apply ``act`` to ``value``. Only the CPU's take one with constants of its own."""
        slopes = act.slopes
        if slopes is None:
            return (conv.on_cpu and conv.own_constants) or not act.constants
        by_channel = slopes.shape == value.shape[1:2] and len(value.shape) == conv.rank
        alike = slopes.dtype is value.dtype and slopes.device == value.device
        return (
            conv.on_cpu
            and conv.own_constants
            and alike
            and slopes in self.constants
            and (by_channel or slopes.shape in ((), (1,)))
        )

    def _is_alone(self, value: Value, chain: set[Any], until: int) -> bool:
        """Whether nothing else has ``value``'s memory when step ``until`` writes there; later ones read the result."""
        if value.storage == -1:
            return False
        return all(v in chain or self.made_at.get(v, -1) >= until for v in self.by_storage[value.storage])


def _what(conv: Fusable, residual: Value | None) -> str:
    added = "" if residual is None else "add"
    act = "" if conv.act.name == "none" else conv.act.title()
    return "+".join(filter(None, (conv.name, conv.norm_name if conv.norm else "", added, act)))


def use_our_lstms(graph: Graph, store: dict[Hashable, Any]) -> None:
    """Puts our LSTM and LSTMCell in the place of torch's, and what gives the last time step where that is enough."""
    for step in list(graph.steps):
        if step.kind != "module":
            continue
        kind = kind_of(step.function)
        if kind is LSTM:
            if not step.function.proj_size and takes_last_step(graph, step, step.function):
                step.function = _shared(LastStepLSTM, step.function, store)
            continue
        if kind not in (nn.LSTM, nn.LSTMCell):
            continue
        module: Any = plain(step.function)
        op = LSTM_OP if type(module) is nn.LSTM else LSTM_CELL
        parameters = list(module.parameters())
        x = next(step.reads(), None)
        fits = x is not None and all(p.dtype is x.dtype and p.device == x.device for p in parameters)
        if not fits or x is None or x.dtype not in op.takes(x.device.type) or not _dispatch.has_native(op, x.device):
            continue
        if getattr(module, "proj_size", 0) or nn.utils.parametrize.is_parametrized(module):
            continue
        ours = LSTMCell if op is LSTM_CELL else LastStepLSTM if takes_last_step(graph, step, module) else LSTM
        step.function, step.note = _shared(ours, step.function, store), type(module).__name__


def _shared(kind: Any, module: Any, store: dict[Hashable, Any]) -> Any:
    """``module`` as one of ``kind`` with the very same parameters: one for all programs."""
    key = (kind, id(module))
    if key not in store:
        made = kind._sharing(module) if type(module) is LSTM else kind.from_torch(plain(module))
        store[key] = made, module
    return store[key][0]


def can_fuse() -> bool:
    """Whether there are kernels at all."""
    return _native.error is None
