"""Linear layers whose rows are quantised as they come, or stay float."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels.nn._packed import slots_of
from pykernels.ops._activation import activation_code, apply_activation
from pykernels.optimize._fused import Traceable
from pykernels.optimize._graph import Graph, Step
from pykernels.optimize._linear import FusedLinear
from pykernels.quantize._steps import Int8Pack, folded


class DynamicLinear(Traceable, FusedLinear):
    """A fused linear layer with an int8 weight: ``layer`` is what it was in float."""

    op = "int8_matmul"
    #: Are the rows rounded?
    rounds_rows = True

    def __init__(self, layer: FusedLinear, per_channel: bool) -> None:
        vars(self).update(vars(layer))
        self.per_channel = per_channel
        self.run = self._run

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Never."""
        return ""

    def constant(self, pack: Any, x: torch.Size) -> Any:
        """What the kernel takes beside an input."""
        return pack.value

    def pack(self, values: dict[Any, Any], store: dict[Hashable, Any]) -> Any:
        """The weight in int8, packed; from ``store``, if it is still right."""
        tensors = self.tensors(values)
        filters = self.filters(tensors[0])
        key = (type(self), *map(id, tensors), filters.stride(), self.eps, self.act[:3], self.per_channel)
        make = lambda: Int8Pack(slots_of([filters, *tensors[1:]]), self.weight.dtype, None, self._packed)  # noqa: E731
        return self.kept(tensors, values, store, key, make)

    def folded(self, tensors: list[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The int8 weight, its scales (K,) and the bias, with a batch norm in them."""
        return folded(tensors, self.eps, self.per_channel)

    def in_trace(self, pack: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
        """What runs it, by `int8_linear` on the weight as it is."""
        q, steps, shift = self.folded(pack.twins)
        b, scale, code = self._turned(q.flatten(1)), steps.contiguous(), activation_code("quantize", self.act.name)
        op = self._op()

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            y = op(rows, b, scale, shift, code if residual is None else 0).view(*x.shape[:-1], -1)
            return y if residual is None else apply_activation(y + residual, self.act.name, self.act.slope)

        return run

    def _op(self) -> Callable[..., Tensor]:
        return torch.ops.pykernels.int8_linear.default

    def _turned(self, q: Tensor) -> Tensor:
        """The weight as `_op` takes it."""
        return q.t()

    def _packed(self, tensors: list[Any]) -> Any:
        q, steps, shift = self.folded(tensors)
        packed = torch.ops.pykernels.int8_pack.default(q.flatten(1).t())
        return packed, q.shape[0], steps.contiguous(), shift, activation_code("quantize", self.act.name)

    def _packed_op(self) -> Callable[..., Tensor]:
        return torch.ops.pykernels.int8_linear_packed.default

    def _run(self, x: Tensor, constant: Any, residual: Tensor | None) -> Tensor:
        op = self._packed_op()
        rows = x.reshape(-1, x.shape[-1])
        if residual is None:
            return op(rows, *constant).view(*x.shape[:-1], -1)
        y = op(rows, *constant[:-1], 0).view(*x.shape[:-1], -1).add_(residual)
        return apply_activation(y, self.act.name, self.act.slope)


class WeightOnlyLinear(DynamicLinear):
    """A fused linear layer with an int8 weight, on rows and sums in float."""

    op = "weight_only_linear"
    rounds_rows = False

    def _op(self) -> Callable[..., Tensor]:
        return torch.ops.pykernels.weight_only_linear.default

    def _turned(self, q: Tensor) -> Tensor:
        return q

    def _packed(self, tensors: list[Any]) -> Any:
        q, steps, shift = self.folded(tensors)
        packed = torch.ops.pykernels.weight_only_linear_pack.default(q.flatten(1), steps.contiguous(), shift)
        return packed, q.shape[0], activation_code("quantize", self.act.name)

    def _packed_op(self) -> Callable[..., Tensor]:
        return torch.ops.pykernels.weight_only_linear_packed.default


def quantize_rows(graph: Graph, why_float: Any, per_channel: bool, weight_only: bool) -> dict[Step, Step]:
    """Gives the linear layers of ``graph`` int8 weights. Returns what became of each step."""
    form = WeightOnlyLinear if weight_only else DynamicLinear
    made: dict[Step, Step] = {}
    for i, step in enumerate(graph.steps):
        layer = step.function
        if type(layer) is not FusedLinear or why_float(step):
            continue
        if layer.act.constants or layer.act.slopes is not None or layer.weight.dtype is not torch.float32:
            continue
        new = Step(form(layer, per_channel), step.args, {}, step.outputs, (), "fused", step.where)
        note = f"{'weight-only ' if weight_only else ''}int8 {step.note}"
        new.note, new.sources = note, step.sources
        made[step] = graph.steps[i] = new
    return made
