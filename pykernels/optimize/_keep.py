"""``optimize(model, keep="packed")``: weights that exist only in the kernels' layout.

A program packs the weight of a convolution or linear layer. If nothing else in it reads that weight, a `PackedWeight`
takes the parameter's place in the twin. It has the parameter's shape, dtype and device, and can do one thing: be the
weight of such a layer. That is enough to record, fuse and pack for whatever calls come later. Everything else that
would read or write its elements raises an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pykernels import _native
from pykernels.nn.conv import ConvPack, filters_of
from pykernels.ops._activation import activation_code
from pykernels.ops.conv_bn_act.arguments import ConvCall, Geometry, geometry
from pykernels.optimize._graph import is_torchs, suggests_channels_last, values_in

if TYPE_CHECKING:
    from pykernels.optimize._graph import Step
    from pykernels.optimize._program import Program

_DIRECT = 0
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
#: torch would run these on the wrapper, or refuse them in its own words: we refuse first.
_REFUSED = (Tensor.data.__set__, Tensor.data.__get__, Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.set_)  # type: ignore[attr-defined]


_READS = {"__get__": "a look at its data", "__set__": "other data"}


class PackedWeight(Tensor):
    """A parameter without elements of its own. ``blobs`` are what ``conv_pack`` made, by algorithm.

    Never written to (only a blob may move to other memory), so copies of a model share it.
    """

    # Defaults for copies that torch makes by itself while tracing.
    path = "a weight"
    groups = 0
    isa: str | None = None
    blobs: dict[int, Tensor] = {}  # noqa: RUF012

    @staticmethod
    def make(
        path: str, shape: Any, stride: Any, dtype: torch.dtype, groups: int, isa: str | None, blobs: dict[int, Tensor]
    ) -> Any:
        """A new one, for a parameter of this shape, stride and dtype that was found at ``path``."""
        of: Any = Tensor
        made = of._make_wrapper_subclass(PackedWeight, shape, stride, dtype=dtype, device="cpu")
        made._is_param = True  # for isinstance(…, nn.Parameter)
        made.path, made.groups, made.isa, made.blobs = path, groups, isa, blobs
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if is_torchs(func, "conv2d"):
            return _conv2d(**dict(zip(_CONV, args, strict=False)), **kwargs)
        if func in _REFUSED and (len(args) < 2 or args[0] is not args[1]):
            raise _refusal(args, _READS.get(func.__name__, f"a call of {func.__name__}"))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise _refusal((args, kwargs or {}), f"a call of {func.overloadpacket.__name__.lstrip('_')}")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedWeight({self.path}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: Any) -> Any:
        like = self.path, self.shape, self.stride(), self.dtype, self.groups, self.isa, dict(self.blobs)
        return memo.setdefault(id(self), PackedWeight.make(*like))

    def __reduce_ex__(self, protocol: Any) -> Any:
        blobs = {algorithm: blob.clone() for algorithm, blob in self.blobs.items()}  # not what lies before it
        return PackedWeight.make, (
            self.path,
            tuple(self.shape),
            self.stride(),
            self.dtype,
            self.groups,
            self.isa,
            blobs,
        )

    def stand_in(self) -> Tensor:
        """A tensor of its shape, strides and dtype that takes no memory worth the name, but does have elements."""
        return torch.zeros(1, dtype=self.dtype).expand(self.shape)

    def blob(self, wanted: int) -> tuple[int, Tensor]:
        """The algorithm ``wanted``, or else one that it is packed for, and the packed weight.

        Raises:
            RuntimeError: The weights were packed for another ISA.
        """
        active = _native.introspect().active_isa()
        if active != self.isa:
            raise RuntimeError(
                f"pykernels.optimize: {self.path}: expected the ISA {self.isa}, got {active}; it is packed for that "
                'only (keep="packed"): optimise again'
            )
        blobs = self.blobs
        algorithm = wanted if wanted in blobs else next(iter(blobs))
        return algorithm, blobs[algorithm]


class HeldPack(ConvPack):
    """A pack of a weight that is packed already."""

    def __init__(self, held: PackedWeight, *rest: Any) -> None:
        self.held = held
        super().__init__(*rest)

    def _algorithm(self, x: torch.Size) -> int:
        return self.held.blob(super()._algorithm(x))[0]

    def _packed(self, algorithm: int) -> Tensor:
        return self.held.blob(algorithm)[1]

    def _bind(self, algorithm: int) -> Tensor:
        packed, shape = self._packed(algorithm), tuple(filters_of(self.twins[0]).shape)
        return torch.ops.pykernels.conv_bind(packed, shape, *self.value, *self.calls[False], self.own)

    def bound_for(self, x: torch.Size) -> Tensor:
        """As of any pack; what it is packed in lies there from now on, and nowhere else."""
        bound = super().bound_for(x)
        self.held.blobs.update(self.tails)
        return bound


def release(
    modules: Mapping[str, nn.Module],
    program: Program,
    programs: list[Program],
    read: set[int],
    held: MutableMapping[int, PackedWeight],
) -> set[int]:
    """Puts packed weights in the place of parameters of ``modules`` that ``program`` has packed; the ids of those.

    ``programs`` are all that there are; what any of them reads otherwise stays, as does what is in ``read``. ``held``
    gets the new ones.
    """
    read = read | {key for p in programs for key in _read_otherwise(p)}
    places = _places(modules)
    gone = set()
    for key, (weight, groups, pack) in _only_packed(program).items():
        if key in read or key not in places:
            continue
        path = places[key][0][2]
        blobs = dict(pack.tails)
        made = PackedWeight.make(path, weight.shape, weight.stride(), weight.dtype, groups, pack.isa, blobs)
        for slots, name, _ in places[key]:
            slots[name] = made
        held[id(made)] = made
        gone.add(key)
    return gone


def _suits(conv: Any) -> bool:
    """Whether a `PackedWeight` can stand for its weight in the model's own code."""
    return conv.on_cpu and conv.name in ("conv", "linear") and not getattr(conv, "turned", False)


def _only_packed(program: Program) -> dict[int, tuple[Tensor, int, Any]]:
    """By their ids: weights of fused steps that our kernels run, with the groups and what they are packed in."""
    found: dict[int, tuple[Tensor, int, Any]] = {}
    for step, why, pack in zip(program.fused, program.reasons, program.current().convs, strict=True):
        weight = step.function.weight.tensor
        if weight is None or why or not _suits(step.function) or isinstance(weight, PackedWeight):
            continue
        if pack.by_algorithm:
            found[id(weight)] = weight, pack.geometry.groups, pack
    return found


def _read_otherwise(program: Program) -> set[int]:
    """The ids of what it reads but for weights that our kernels have packed."""
    held = {id(s.function) for s, why in zip(program.fused, program.reasons, strict=True) if not why}
    steps: list[Step] = [*program.graph.steps, *program.folded]
    values = [*values_in(program.graph.result), *(v for s in steps for v in s.reads())]
    for s in program.fused:
        weight = s.function.weight
        packed = id(s.function) in held and _suits(s.function)
        values += [v for v in s.function.parameters() if v is not weight or not packed]
    read = {id(v.tensor) for v in values if v.tensor is not None}
    return read | {id(p) for s in steps if s.kind == "module" for p in s.function.parameters()}


def _places(modules: Mapping[str, nn.Module]) -> dict[int, list[tuple[dict[str, Any], str, str]]]:
    places: dict[int, list[tuple[dict[str, Any], str, str]]] = {}
    for path, module in modules.items():
        for name, p in module._parameters.items():
            if p is not None:
                places.setdefault(id(p), []).append((module._parameters, name, f"{path}.{name}".strip(".")))
    return places


_WEIGHT = "to be the weight of a convolution or linear layer"


def check_whole(parameters: Iterable[Any], what: str) -> None:
    """Raises an error if some of these exist only in packed form."""
    for p in parameters:
        if isinstance(p, PackedWeight):
            raise _refusal(p, what)


def _refusal(nest: Any, what: str, expected: str = _WEIGHT) -> RuntimeError:
    path = next((t.path for t in tree_leaves(nest) if isinstance(t, PackedWeight)), "a weight")
    return RuntimeError(
        f'pykernels.optimize: {path}: expected {expected}, got {what}; with keep="packed" its elements exist in the '
        "kernels' layout alone: use the original for that, or optimise without keep"
    )


def _run(x: Tensor, weight: PackedWeight, shape: Any, bias: Tensor | None, g: Geometry) -> Tensor:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        raise _refusal(weight, "a call that records them", "no gradients to be wanted")
    if torch.is_autocast_enabled(x.device.type):
        raise _refusal(weight, "a call under autocast", f"an input of {_short(weight.dtype)}")
    if x.dtype is not weight.dtype:
        raise _refusal(weight, f"one of {_short(x.dtype)}", f"an input of {_short(weight.dtype)}")
    if g.groups != weight.groups or (_DIRECT not in weight.blobs and (g.stride, g.dilation) != ((1, 1), (1, 1))):
        raise _refusal(weight, "another", "the groups, stride and dilation that it was packed for")
    _, packed = weight.blob(_native.introspect().conv_algorithm(tuple(x.shape), shape, *g))
    call = ConvCall(g, activation_code("conv2d", "none"), 0.0)
    shift = None if bias is None else bias.detach().float()
    return torch.ops.pykernels.conv_bn_act_packed(x, packed, shape, None, shift, None, *call.flat())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _conv2d(
    input: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if input.dim() not in (3, 4) or input.device.type != "cpu":
        raise RuntimeError(
            f"pykernels.optimize: {weight.path}: expected an image on the CPU of 3 or 4 dimensions, got one on "
            f'{input.device} of shape {tuple(input.shape)} (keep="packed")'
        )
    x = input if input.dim() == 4 else input.unsqueeze(0)
    last = suggests_channels_last(x) or suggests_channels_last(weight)
    layout = torch.channels_last if last else torch.contiguous_format
    g = geometry(tuple(weight.shape[2:]), stride, padding, dilation, groups)
    y = _run(x.contiguous(memory_format=layout), weight, tuple(weight.shape), bias, g).contiguous(memory_format=layout)
    return y if input.dim() == 4 else y.squeeze(0)


def _linear(input: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    k, c = weight.shape
    rows = input.reshape(-1, c)[:, :, None, None].contiguous(memory_format=torch.channels_last)
    y = _run(rows, weight, (k, c, 1, 1), bias, geometry((1, 1), 1, 0, 1, 1))
    return y.reshape(*input.shape[:-1], k)


def read_by(func: Any, args: Any, kwargs: Any) -> set[int]:
    """The ids of the parameters among the arguments, but for what a `PackedWeight` can do."""
    if func is F.linear or is_torchs(func, "conv2d"):
        return set()
    return {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, nn.Parameter)}
