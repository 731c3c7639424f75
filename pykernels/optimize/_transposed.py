"""Transposed convolutions as fused steps.

With stride s each is s * s ordinary ones, one for each phase of the result (`pykernels.ops.conv_bn_act.transposed`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from pykernels.nn._phases import BoundTransposed, fit, pack_phases
from pykernels.nn.conv import Epilogue
from pykernels.ops import _dispatch
from pykernels.ops._arguments import pair
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import for_height_1
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.ops.conv_bn_act.transposed import phases
from pykernels.optimize import _rules
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value, bound, is_torchs, strides_in, suggests_channels_last, values_in
from pykernels.optimize._sources import Sources

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class FusedTransposed(FusedConv):
    """The constants of a fused transposed convolution; its weight is (C, K / groups, R, S), of sequences without R."""

    name = "conv_transpose"
    op = "conv_transpose_bn_act"
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
        tensors = self.tensors(values)
        act = self.act
        spec = (self.eps, act.name, act.slope, act.constants, tuple(sorted(self.options.items())), "transposed")
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
        k = self.weight.shape[1] * self.options["groups"]
        return BoundTransposed(pack.packs, self.options["stride"], k, x, self.channels_last)

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Why torch runs it for an input of this shape and format; "" where our kernel does."""
        if not fit(self.rows, self.columns, shape[2:]):
            return "some pixels of its result depend only on the zeros around the image"
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
        act = self.act.in_place(values)

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
        act = conv.act
        epilogue = Epilogue(conv.eps, act.name, act.slope, act.constants)
        groups = conv.options["groups"]
        self.packs = pack_phases(conv.filters(weight), vectors, conv.rows, conv.columns, groups, epilogue)
        # By their elements: torch's batch norm writes to them without counting a version.
        self.moments = Sources([t for t in (*tensors, conv.counter) if t is not None])

    def is_current(self) -> bool:
        return all(p.is_current(p.dtype, p.index, p.key) for *_, p in self.packs) and self.moments.are_current()

    def tensors(self) -> list[Tensor]:
        """All that is packed."""
        return [t for *_, p in self.packs for t in p.tensors()]


def _run(x: Tensor, constant: BoundTransposed, residual: Tensor | None) -> Tensor:
    return constant.run(x, residual, suggests_channels_last(x))


def _write(x: Tensor, constant: BoundTransposed, residual: Tensor | None, y: Tensor, workspace: Tensor) -> None:
    constant.write(x, residual, y, workspace)


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
    return (conv, x) if all(p.taps for p in (*conv.rows, *conv.columns)) else None
