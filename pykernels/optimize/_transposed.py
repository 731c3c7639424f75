"""Transposed convolutions as fused steps: with stride s each is s * s ordinary ones, one for each phase of the result.

What a phase gives lies s pixels apart: of a row o = s i + a of the result, o = s h - p + d r leads from the row h of x
and the tap r to it, so that a phase a knows the taps r for which s divides a + p - d r, and convolves x with these,
turned around, at stride 1. Each writes its own pixels of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import gcd, prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels.nn.conv import _ConvPack
from pykernels.ops import _dispatch
from pykernels.ops._arguments import pair
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import Geometry, for_height_1
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize import _rules
from pykernels.optimize._graph import Step, Value, bound, is_torchs, strides_in, suggests_channels_last, values_in
from pykernels.optimize._patterns import FusedConv
from pykernels.optimize._sources import Sources
from pykernels.optimize._torchs import in_place

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_EMPTY = torch.empty(0, dtype=torch.uint8)


class Phase(NamedTuple):
    """Rows (or columns) ``first``, ``first`` + stride, ... of the result.

    ``taps`` in the order of x's rows, which lie ``dilation`` apart; ``before`` and ``after`` are the rows of zeros
    around x, or, below 0, of x that are not read. There are ``more`` rows than x has.
    """

    first: int
    taps: tuple[int, ...]
    dilation: int
    before: int
    after: int
    more: int


def phases(size: int, stride: int, padding: int, output_padding: int, dilation: int) -> list[Phase]:
    """Those of one dimension, whatever x's size, for a filter of ``size`` taps."""
    found = []
    for a in range(stride):
        taps = tuple(r for r in reversed(range(size)) if (a + padding - dilation * r) % stride == 0)
        more = (dilation * (size - 1) + output_padding - 2 * padding - a + stride) // stride - 1
        if not taps:
            return []
        step, start = dilation // gcd(stride, dilation), (a + padding - dilation * taps[0]) // stride
        found.append(Phase(a, taps, step, -start, more + start + (len(taps) - 1) * step, more))
    return found


class FusedTransposed(FusedConv):
    """The constants of a fused transposed convolution; its weight is (C, K / groups, R, S), of sequences without R."""

    name = "conv_transpose"
    pads = False

    def __init__(self, weight: Value, bias: Value | None, options: dict[str, Any]) -> None:
        super().__init__(weight, bias, options)
        self.run = _run
        self.rank = len(weight.shape)  # `as_images` makes it 4
        o = options
        axes = zip(self.filter_shape()[2:], o["stride"], o["padding"], o["output_padding"], o["dilation"], strict=True)
        self.rows, self.columns = (phases(*axis) for axis in axes)

    def filters(self, weight: Any) -> Any:
        """(C, K / groups, R, S), in the same memory."""
        return weight.detach() if weight.dim() == 4 else weight.detach().unsqueeze(2)

    def filter_shape(self) -> tuple[int, ...]:
        """(C, K / groups, R, S)."""
        c, k, *size = self.weight.shape
        return c, k, *([1] * (2 - len(size))), *size

    def products(self, x: Sequence[int], y: Sequence[int]) -> int:
        """In all, for an input and a result of these shapes."""
        return prod(x) * prod(self.weight.shape[1:])

    def pack(self, values: dict[Value, Any], store: dict[Hashable, Any]) -> Any:
        """All but the input, packed; from ``store``, which programs share, if it is still right."""
        parts = (self.weight, self.bias, *(self.norm or ()))
        tensors = [None if v is None else values.get(v, v.tensor) for v in parts]
        spec = (self.eps, self.activation, self.negative_slope, tuple(sorted(self.options.items())), "transposed")
        key = (*(None if t is None else id(t) for t in tensors), *spec)
        found = store.get(key)
        if found is not None and found.is_current():
            return found
        made = _Pack(self, tensors)
        if not any(v in values for v in self.parameters()):
            store[key] = made
        return made

    def write_op(self) -> Any:
        """What writes the result of `run` into a tensor that it is given, beside a workspace."""
        return _write

    def workspace(self, x: Tensor, constant: Any, y: Tensor) -> int:
        """The bytes of that workspace."""
        op = torch.ops.pykernels.conv_bn_act_bound_workspace
        return max((op(x, made, y) for x, made, y, _ in constant.calls(x, y, None)), default=0)

    def constant(self, pack: Any, x: torch.Size) -> Any:
        """What `run` takes beside an input of shape ``x``."""
        return BoundTransposed(self, pack, x)

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Why torch runs it for an input of this shape and format; "" where our kernel does."""
        for size, some in zip(shape[2:], (self.rows, self.columns), strict=True):
            if any(size + min(p.before, 0) + min(p.after, 0) < 1 or size + p.more < 0 for p in some):
                return "its result is made of zeros around the image alone, in places"
        layout = "channels_last" if self.channels_last else layout
        o = self.options
        return _rules.transposed_torchs_because(shape, self.filter_shape(), o["stride"], o["groups"], layout)

    def by_torch(self, values: dict[Value, Any], layout: str) -> Callable[..., Tensor]:
        """What computes the same with torch's functions, from x (in ``layout``) and the residual."""
        parts = (self.weight, self.bias, *(self.norm or (None,) * 4))
        weight: Any
        weight, bias, mean, var, bn_weight, bn_bias = (None if v is None else values.get(v, v.tensor) for v in parts)
        scale, shift = fold_batch_norm(bias, mean, var, bn_weight, bn_bias, self.eps)
        o, weight = self.options, self.filters(weight)
        if scale is not None:
            c, k, r, s = weight.shape
            by_group = weight.reshape(o["groups"], -1, k, r, s) * scale.reshape(o["groups"], 1, k, 1, 1)
            weight = by_group.reshape(c, k, r, s).to(weight.dtype)
        shift = None if shift is None else shift.to(weight.dtype)
        rest = o["stride"], o["padding"], o["output_padding"], o["groups"], o["dilation"]
        act = in_place(self.activation, self.negative_slope)

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            y = torch.conv_transpose2d(x, weight, shift, *rest)
            if residual is not None:
                y.add_(residual)
            return y if act is None else act(y)

        return run


class _Pack:
    """The packs of the phases, row by row."""

    def __init__(self, conv: FusedTransposed, tensors: list[Any]) -> None:
        weight, *vectors = tensors
        groups = conv.options["groups"]
        weight = conv.filters(weight)
        c, k, r, s = weight.shape
        filters = weight.reshape(groups, c // groups, k, r, s).transpose(1, 2)
        filters = filters.reshape(groups * k, c // groups, r, s)
        slots = [({"": t}, "") for t in vectors]
        self.packs: list[tuple[Phase, Phase, _ConvPack]] = []
        for row in conv.rows:
            for column in conv.columns:
                part = filters[:, :, row.taps][:, :, :, column.taps]
                around = (row.before, column.before, row.after, column.after)
                padding: Any = tuple(max(p, 0) for p in around)
                geometry = Geometry((1, 1), padding, (row.dilation, column.dilation), groups)
                shape = SimpleNamespace(weight=part, padding_mode="zeros", padding=0)
                key = (shape, None, conv.eps, conv.activation, conv.negative_slope, None)
                pack = _ConvPack([({"": part}, ""), *slots], weight.dtype, key, geometry)
                self.packs.append((row, column, pack))
        # By their elements: torch's batch norm writes to them without counting a version.
        self.moments = Sources([t for t in (*tensors, conv.counter) if t is not None])

    def is_current(self) -> bool:
        return all(p.is_current(p.dtype, p.index, p.key) for *_, p in self.packs) and self.moments.are_current()

    def tensors(self) -> list[Tensor]:
        """All that is packed."""
        return [t for *_, p in self.packs for t in p.tensors()]


class BoundTransposed:
    """A transposed convolution but for x and the residual, for inputs of one shape."""

    def __init__(self, conv: FusedTransposed, pack: _Pack, x: torch.Size) -> None:
        self.channels_last = conv.channels_last
        self.stride = conv.options["stride"]
        n, _, height, width = x
        k = conv.weight.shape[1] * conv.options["groups"]
        self.shape = (n, k, _extent(height, conv.rows), _extent(width, conv.columns))
        #: Where a phase begins, what it doesn't read of x at each side, and what is bound.
        self.parts: list[tuple[int, int, tuple[int, int, int, int] | None, Tensor]] = []
        for row, column, made in pack.packs:
            if height + row.more < 1 or width + column.more < 1:
                continue
            cut = tuple(max(-p, 0) for p in (row.before, row.after, column.before, column.after))
            h, w = height - cut[0] - cut[1], width - cut[2] - cut[3]
            tensor = made.bound_for(torch.Size((n, x[1], h, w)))
            self.parts.append((row.first, column.first, cut if any(cut) else None, tensor))  # type: ignore[arg-type]

    def calls(self, x: Tensor, y: Tensor, residual: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor, Any]]:
        """The arguments of each phase: its part of x, what is bound, its parts of y and the residual."""
        vertical, horizontal = self.stride
        height, width = x.shape[2:]
        found = []
        for a, b, cut, made in self.parts:
            read = x
            if cut is not None:
                top, bottom, left, right = cut
                read = x[:, :, top : height - bottom, left : width - right]
            added = None if residual is None else residual[:, :, a::vertical, b::horizontal]
            found.append((read, made, y[:, :, a::vertical, b::horizontal], added))
        return found


def _extent(size: int, some: list[Phase]) -> int:
    """How many rows the phases have together."""
    return sum(max(size + p.more, 0) for p in some)


def _run(x: Tensor, constant: BoundTransposed, residual: Tensor | None) -> Tensor:
    last = constant.channels_last or suggests_channels_last(x)
    y = torch.empty(
        constant.shape, dtype=x.dtype, memory_format=torch.channels_last if last else torch.contiguous_format
    )
    _write(x, constant, residual, y, _EMPTY)
    return y


def _write(x: Tensor, constant: BoundTransposed, residual: Tensor | None, y: Tensor, workspace: Tensor) -> None:
    op = torch.ops.pykernels.conv_bn_act_bound_out.default
    if len(constant.parts) > 1:
        x = x.contiguous(memory_format=torch.channels_last)  # or each phase would turn it
    for read, made, part, added in constant.calls(x, y, residual):
        op(read, made, added, part, workspace)


def transposed_of(step: Step) -> tuple[FusedTransposed, Value] | None:
    """A transposed convolution of images or sequences on the CPU that our kernels take, and its input."""
    rank = next((r for r in (3, 4) if is_torchs(step.function, f"conv_transpose{r - 2}d")), 0)
    if step.kind != "call" or not rank or not isinstance(step.outputs, Value):
        return None
    if rank == 3 and step.outputs.stride != strides_in("contiguous", step.outputs.shape):
        return None
    given = bound(step, _ARGUMENTS)
    x, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
    if not isinstance(x, Value) or not isinstance(weight, Value) or not len(x.shape) == len(weight.shape) == rank:
        return None
    if list(values_in([given.get(k) for k in _ARGUMENTS[3:]])) or x.dtype is not weight.dtype:
        return None
    if x.device.type != "cpu" or x.dtype not in CONV_BN_ACT.takes("cpu") or 0 in weight.shape:
        return None
    if not _dispatch.has_native(CONV_BN_ACT, x.device):
        return None
    least = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    try:
        options: dict[str, Any] = {
            k: pair("conv_transpose", k, given.get(k, n) if rank == 4 else for_height_1(given.get(k, n), n), n)
            for k, n in least.items()
        }
    except (ValueError, TypeError):
        return None
    conv = FusedTransposed(weight, bias, options | {"groups": given.get("groups", 1)})
    return (conv, x) if conv.rows and conv.columns else None
