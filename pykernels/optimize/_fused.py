"""What a chain of steps becomes: the constants of a fused convolution, and how to call it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels import _native
from pykernels.nn._packed import slots_of
from pykernels.nn.conv import ConvPack, Epilogue
from pykernels.ops.conv_bn_act.arguments import Geometry, geometry
from pykernels.optimize import _rules
from pykernels.optimize._activations import Act
from pykernels.optimize._graph import Step, Value
from pykernels.optimize._keep import HeldPack, PackedWeight
from pykernels.optimize._sources import Sources
from pykernels.optimize._torchs import TorchConv

if TYPE_CHECKING:
    from pykernels.optimize._patterns import Fuser


class Fusable:
    """The first step of a chain, with what it has taken from the following ones, as values of the graph."""

    #: In the report.
    name = ""
    #: Dimensions of what it gives; the second one is that of the channels.
    rank = 4
    #: May what is added have another memory format than it gives? The sum's is settled with the formats then.
    adds_any_format = False
    #: Does the kernel of the CPU take activations with constants of their own?
    own_constants = True
    on_cpu = True

    def __init__(self) -> None:
        #: A batch norm's mean, variance, weight and bias.
        self.norm: list[Value | None] | None = None
        #: What that is called in the report.
        self.norm_name = "bn"
        self.eps = 0.0
        self.act = Act("none")

    def parameters(self) -> list[Value]:
        """The tensors that it is made of."""
        return [v for v in (*(self.norm or ()), self.act.slopes) if v is not None]

    def step(self, chain: list[Step], x: Value, residual: Value | None, fuser: Fuser) -> Step:
        """What takes the place of ``chain``, but for its name; adds to ``chain`` what else that stands for."""
        raise NotImplementedError


class FusedConv(Fusable):
    """The constants of a fused convolution, as values of the graph, and how it is called."""

    name = "conv"
    #: Of `pykernels.ops`, for the report.
    op = "conv_bn_act"
    #: Can it put zeros around what it is given?
    pads = True
    adds_any_format = True

    def __init__(self, weight: Value, bias: Value | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        #: A tensor that is written to whenever the batch norm's statistics are, if they don't tell by themselves.
        self.counter: Tensor | None = None
        self.options = options
        #: Zeros around the image beside those of ``options``: top, left, bottom, right.
        self.pad = (0, 0, 0, 0)
        self.on_cpu = weight.device.type == "cpu"
        self.run: Callable[..., Tensor] = _bound_op() if self.on_cpu else _run_on_cuda
        #: There is nothing but the packed weight: no other algorithm can be had, nor torch's.
        self.is_held = isinstance(weight.tensor, PackedWeight)
        self.channels_last = False
        #: The format that the result has to be in at once: "contiguous", "channels_last" or "" for either.
        self.fix = ""

    def depth(self) -> int:
        """Products for each element that it gives."""
        return prod(self.weight.shape[1:])

    def products(self, x: Sequence[int], y: Sequence[int]) -> int:
        """In all, for an input and a result of these shapes."""
        return prod(y) * self.depth()

    def parameters(self) -> list[Value]:
        """The tensors that it is made of."""
        return [self.weight, *([] if self.bias is None else [self.bias]), *super().parameters()]

    def pack(self, values: dict[Value, Any], store: dict[Hashable, Any]) -> Any:
        """All but the input, packed; from ``store``, which programs share, if it is still right."""
        tensors = self.tensors(values)
        held = tensors[0] if self.is_held else None
        if held is not None:
            tensors[0] = held.stand_in()
        filters = self.filters(tensors[0])
        epilogue = Epilogue(self.eps, self.act.name, self.act.slope, self.act.constants)
        spec = (*epilogue, tuple(sorted(self.options.items())), self.pad)
        # One matrix may be the weight of a layer and, turned, that of another.
        key = (id(held), *(None if t is None else id(t) for t in tensors[held is not None :]), filters.stride(), *spec)

        def make() -> ConvPack:
            given = slots_of([filters, *tensors[1:]]), self.weight.dtype, self.geometry(), epilogue
            return ConvPack(*given) if held is None else HeldPack(held, *given)

        return self.kept(tensors, values, store, key, make)

    def tensors(self, values: dict[Value, Any]) -> list[Any]:
        """Weight, bias, the batch norm's mean, variance, weight and bias, and the activation's slopes."""
        parts = self.weight, self.bias, *(self.norm or (None,) * 4), self.act.slopes
        return [None if v is None else values.get(v, v.tensor) for v in parts]

    def kept(
        self, tensors: Sequence[Any], values: dict[Value, Any], store: dict[Hashable, Any], key: Hashable,
        make: Callable[[], Any],
    ) -> Any:  # fmt: skip
        """The pack of ``tensors`` under ``key`` in ``store``; a new one, by ``make``, where that is missing or stale.

        ``key`` holds the ids of what the pack keeps alive.
        """
        found: Any = store.get(key)
        if found is not None and found.is_current(found.dtype, found.index, found.key) and found.moments.are_current():
            return found
        made = make()
        # By their elements: torch's batch norm writes to them without counting a version.
        made.moments = Sources([t for t in (*tensors, self.counter) if t is not None])
        if not any(v in values for v in self.parameters()):
            store[key] = made
        return made

    def step(self, chain: list[Step], x: Value, residual: Value | None, fuser: Fuser) -> Step:
        """The convolution, with all of it."""
        return Step(self, (x, residual), {}, chain[-1].outputs, (), "fused")

    def filters(self, weight: Any) -> Any:
        """``weight`` as that of a convolution, in the same memory."""
        return weight

    def filter_shape(self) -> tuple[int, ...]:
        """(K, C / groups, R, S)."""
        return self.weight.shape

    def write_op(self) -> Any:
        """What writes the result of `run` into a tensor that it is given, beside a workspace."""
        return torch.ops.pykernels.conv_bn_act_bound_out.default

    def workspace(self, x: Tensor, constant: Any, y: Tensor) -> int:
        """The bytes of that workspace."""
        return torch.ops.pykernels.conv_bn_act_bound_workspace(x, constant, y)

    def constant(self, pack: ConvPack, x: torch.Size) -> Any:
        """What `run` takes beside an input of shape ``x``."""
        return pack.bound_for(x) if pack.index < 0 else pack

    def geometry(self) -> Geometry:
        """Stride, padding on each side, dilation and groups."""
        g = geometry(self.filter_shape()[2:], **self.options)
        top, left, bottom, right = (a + b for a, b in zip(g.padding, self.pad, strict=True))
        return g._replace(padding=(top, left, bottom, right))

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Why torch runs it for an input of this shape and format; "" where our kernel does."""
        if not self.on_cpu or self.is_held or self.weight.dtype is not torch.float32 or len(shape) != 4:
            return ""
        layout = "channels_last" if self.channels_last else layout
        isa = _native.introspect().active_isa()
        return _rules.torchs_because(shape, self.filter_shape(), *self.geometry(), layout, isa)

    def by_torch(self, values: dict[Value, Any], layout: str) -> Callable[..., Tensor]:
        """What computes the same with torch's functions, from x (in ``layout``) and the residual."""
        parts = (self.weight, self.bias, *(self.norm or (None,) * 4))
        weight: Any
        weight, *norm = (None if v is None else values.get(v, v.tensor) for v in parts)
        made = TorchConv(self.geometry(), self.act.in_place(values))
        return made.bind(self.filters(weight), norm, self.eps, layout == "channels_last")


class Traceable:
    """A fused step that says itself what a trace is to see of it."""

    def in_trace(self, pack: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
        """What runs it, from x and the residual, by ops whose results have shapes that a trace can tell."""
        raise NotImplementedError


def pixel_scale(x: Tensor, scale: Tensor) -> Tensor:
    """A factor for each channel of an image."""
    return x * scale.reshape(-1, 1, 1)


def _bound_op() -> Any:
    return torch.ops.pykernels.conv_bn_act_bound.default


def _run_on_cuda(x: Tensor, pack: ConvPack, residual: Tensor | None) -> Tensor:
    return pack.on_cuda(x, residual)
