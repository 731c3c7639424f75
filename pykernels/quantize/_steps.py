"""The layers of a quantised program: fused convolutions and linear layers on int8 numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels.nn._packed import Pack, slots_of
from pykernels.nn.int8_conv import Grid, factors_of
from pykernels.ops._activation import activation_code
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import Geometry
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall
from pykernels.ops.int8_matmul import quantize_int8
from pykernels.optimize._fused import FusedConv, Traceable
from pykernels.optimize._graph import Value
from pykernels.optimize._linear import FusedLinear, on_rows
from pykernels.quantize._tune import UNTUNED, Tuning


class Int8Pack(Pack):
    """The weight in int8 and all else of a layer that is known before a call, as `int8_conv_bind` makes it."""

    #: Held, because the key has the ids of its tensors.
    tuning: Tuning

    def tensors(self) -> list[Tensor]:
        """All that is packed."""
        values = self.value if type(self.value) is tuple else [self.value]
        return [t for t in values if isinstance(t, Tensor)]


class Int8Layer(Traceable, FusedConv):
    """A fused convolution or linear layer on int8 numbers: ``layer`` is what it was in float.

    ``x``, ``residual`` and ``out`` are the grids; a residual without one is float, and so is such a result.
    """

    op = "int8_conv2d"

    def __init__(
        self, layer: FusedConv, x: Grid, residual: Grid | None, out: Grid | None, per_channel: bool,
        tuning: Tuning = UNTUNED,
    ) -> None:  # fmt: skip
        vars(self).update(vars(layer))  # what the fuser has found, all of it
        self.layer, self.name, self.rank = layer, layer.name, layer.rank
        self.x, self.residual, self.out, self.per_channel = x, residual, out, per_channel
        self.tuning = tuning
        self.is_linear = isinstance(layer, FusedLinear)
        ops = torch.ops.pykernels
        op = (ops.int8_linear_bound if self.is_linear else ops.int8_conv2d_bound).default
        dtype = torch.float32 if out is None else torch.int8
        self.run: Callable[..., Tensor] = lambda x, constant, residual: op(x, constant, residual, dtype)

    def depth(self) -> int:
        """Products for each element that it gives."""
        return self.layer.depth()

    def filters(self, weight: Any) -> Any:
        """``weight`` as that of a convolution, in the same memory."""
        return self.layer.filters(weight)

    def filter_shape(self) -> tuple[int, ...]:
        """(K, C / groups, R, S)."""
        return self.layer.filter_shape()

    def geometry(self) -> Geometry:
        """Stride, padding on each side, dilation and groups."""
        return self.layer.geometry()

    def write_op(self) -> Any:
        """What writes the result of `run` into a tensor that it is given, beside a workspace."""
        ops = torch.ops.pykernels
        return (ops.int8_linear_bound_out if self.is_linear else ops.int8_conv2d_bound_out).default

    def workspace(self, x: Tensor, constant: Any, y: Tensor) -> int:
        """The bytes of that workspace."""
        ops = torch.ops.pykernels
        op = ops.int8_linear_bound_workspace if self.is_linear else ops.int8_conv2d_bound_workspace
        return op.default(x, constant, y)

    def constant(self, pack: Any, x: torch.Size) -> Any:
        """What `run` takes beside an input: the same for all shapes."""
        return pack.value

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Never: torch has no such layer."""
        return ""

    def pack(self, values: dict[Value, Any], store: dict[Hashable, Any]) -> Any:
        """All but the input, packed; from ``store``, which programs share, if it is still right."""
        tensors = self.tensors(values)
        filters = self.filters(tensors[0])
        grids = self.x, self.residual, self.out
        spec = self.eps, self.act[:3], self.geometry(), *grids, self.per_channel, *map(id, self.tuning)
        key = (*(None if t is None else id(t) for t in tensors), filters.stride(), *spec)

        def make() -> Int8Pack:
            made = Int8Pack(slots_of([filters, *tensors[1:]]), self.weight.dtype, None, self._bind)
            made.tuning = self.tuning
            return made

        return self.kept(tensors, values, store, key, make)

    def in_trace(self, pack: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
        """What runs it, by `int8_conv2d` on the weight as it is."""
        q, scale, bias, call = self._parts(pack.twins)
        table, op = self._table(), torch.ops.pykernels.int8_conv2d.default

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            y = op(x, q, scale, bias, residual, *call.flat())
            return y if table is None else torch.ops.pykernels.int8_lookup.default(y, table)

        return on_rows(run) if self.is_linear else run

    def _bind(self, tensors: list[Any]) -> Tensor:
        q, scale, bias, call = self._parts(tensors)
        return torch.ops.pykernels.int8_conv_bind.default(q, scale, bias, self._table(), *call.flat())

    def _parts(self, tensors: list[Any]) -> tuple[Tensor, Tensor, Tensor | None, Int8ConvCall]:
        """The int8 weight, what its sums are multiplied by, what is added to them, and the rest."""
        q, steps, shift = self.folded(tensors)
        factors = factors_of(self._act(), self.residual, self.out)
        scale = steps * (self.x.scale * factors.sums)
        bias = None if shift is None else shift.float() * factors.sums
        grids = self.x, self.residual, self.out
        call = Int8ConvCall(
            factors.residual, self.geometry(), activation_code("quantize", self._act()), self.act.slope, factors.out,
            torch.float32 if self.out is None else torch.int8, *(0 if g is None else g.zero_point for g in grids),
        )  # fmt: skip
        return q, scale, bias, call

    def folded(self, tensors: list[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The int8 weight, its scales (K,) and the bias, with a batch norm in them."""
        return folded(tensors, self.eps, self.per_channel, self.tuning)

    def _act(self) -> str:
        """The activation of the kernel: none for a clamp, which the grid does."""
        return "none" if self.act.constants else self.act.name

    def _table(self) -> Tensor | None:
        """What a clamp makes of the int8 numbers."""
        if not self.act.constants or self.out is None:
            return None
        low, high = (self.out.quantize(torch.tensor(c)) for c in self.act.constants)
        return torch.arange(-128, 128, dtype=torch.int8).clamp(low, high)


def folded(
    tensors: Sequence[Any], eps: float, per_channel: bool, tuning: Tuning = UNTUNED
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The int8 weight, its scales (K,), and the bias, with the batch norm in them, tuned.

    ``tensors`` are the filters, and all others of `FusedConv.tensors`, without slopes.
    """
    weight, shift = in_float(tensors, eps)
    weight, shift = tuning.scaled(weight, shift)
    q, steps, _ = quantize_int8(weight, axis=0 if per_channel else None, backend="reference")
    steps = steps.float().expand(weight.shape[0])
    return q, steps, tuning.corrected(weight, q * steps.reshape(-1, 1, 1, 1), shift)


def in_float(tensors: Sequence[Any], eps: float) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias, with the batch norm in them."""
    weight, bias, mean, var, norm_weight, norm_bias, *_ = tensors
    scale, shift = fold_batch_norm(bias, mean, var, norm_weight, norm_bias, eps)
    weight = weight.detach().float()
    if scale is not None:
        weight = weight * scale.reshape(-1, 1, 1, 1)
    return weight, shift
