"""Layers whose int8 weights a model brings along: on fixed grids, or with an input that is rounded as it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.nn.int8_conv import Grid
from pykernels.ops._activation import apply_activation
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value
from pykernels.optimize._int8_tensors import KeepRows, RoundRows, dequantize_rows
from pykernels.optimize._kinds import rounding_of
from pykernels.optimize._linear import FusedLinear
from pykernels.quantize._dynamic import DynamicLinear, WeightOnlyLinear
from pykernels.quantize._given import RoundAsItComes
from pykernels.quantize._steps import Int8Layer

_ZEROS = "a model's int8 weights got zero points other than 0"


@dataclass(frozen=True, eq=False)
class Weight:
    """``q`` (K, ...) int8, its scales (K,) or (K, 1), or one for all, and its zero points, which have to be 0."""

    q: Value
    scale: Value | float
    zeros: Value | None = None

    def vectors(self) -> list[Value]:
        """Those that are tensors beside ``q``."""
        return [v for v in (self.scale, self.zeros) if isinstance(v, Value)]


def weight_of(step: Step) -> Weight | None:
    """The weight that ``step`` makes floats of."""
    if step.function is dequantize_rows:
        return Weight(*step.args)
    name = rounding_of(step.function)
    if not name or not isinstance(step.args[0], Value):
        return None
    q, scale, zeros = step.args[:3]
    if q.dtype is not torch.int8 or step.outputs.dtype is not torch.float32:
        return None
    if name == "dequantize_per_tensor.default":
        return Weight(q, float(scale)) if zeros == 0 else None
    if name != "dequantize_per_channel.default" or step.args[3] != 0 or scale.shape != q.shape[:1]:
        return None
    known = zeros is None or (zeros.tensor is not None and not bool(zeros.tensor.any()))
    return Weight(q, scale, zeros) if known else None


class _Given:
    """What layers with such a weight share. It stands before the class of the layer."""

    given: Weight
    weight: Any
    bias: Any
    norm: Any
    eps: float

    def parameters(self) -> list[Value]:
        """The tensors that it is made of."""
        above: list[Value] = super().parameters()  # type: ignore[misc]
        return [*above, *self.given.vectors()]

    def tensors(self, values: dict[Value, Any]) -> list[Any]:
        """The same as tensors, and None for what it has not."""
        parts = self.weight, self.bias, *(self.norm or (None,) * 4), *self.given.vectors()
        return [None if v is None else values.get(v, v.tensor) for v in parts]

    def folded(self, tensors: list[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The int8 weight, its scales (K,) and the bias, with a batch norm in these."""
        q, bias, mean, var, norm_weight, norm_bias, *vectors = tensors
        if len(vectors) == 2 and bool(vectors[1].any()):
            raise RuntimeError(_ZEROS)
        scale, shift = fold_batch_norm(bias, mean, var, norm_weight, norm_bias, self.eps)
        one = self.given.scale
        steps = vectors[0].detach().float().flatten() if vectors else torch.full((q.shape[0],), one)  # type: ignore[arg-type]
        return q.contiguous(), steps if scale is None else steps * scale.detach().float(), shift


class GivenLayer(_Given, Int8Layer):
    """A convolution or linear layer with all grids fixed."""

    def __init__(self, layer: FusedConv, x: Grid, residual: Grid | None, out: Grid | None, given: Weight) -> None:
        super().__init__(layer, x, residual, out, True)
        self.given, self.weight = given, given.q


class GivenRows(_Given, DynamicLinear):
    """A linear layer of whose input each row is rounded by its largest magnitude as it comes."""

    def __init__(self, layer: FusedLinear, _: RoundRows, given: Weight) -> None:
        super().__init__(layer, True)
        self.given, self.weight = given, given.q


class GivenWeightOnly(_Given, WeightOnlyLinear):
    """A linear layer whose input stays float."""

    def __init__(self, layer: FusedLinear, _: KeepRows, given: Weight) -> None:
        super().__init__(layer, True)
        self.given, self.weight = given, given.q


class GivenLinear(_Given, DynamicLinear):
    """A linear layer whose input is rounded as it comes, to one grid for the whole tensor."""

    def __init__(self, layer: FusedLinear, rounding: RoundAsItComes, given: Weight) -> None:
        super().__init__(layer, True)
        self.given, self.weight, self.rounding = given, given.q, rounding

    def _run(self, x: Tensor, constant: Any, residual: Tensor | None) -> Tensor:
        packed, n, steps, shift, code = constant
        grid = self.rounding.grid(x)
        rows = torch.ops.pykernels.int8_quantize.default(x.reshape(-1, x.shape[-1]), *grid)
        scale, zero = torch.tensor([grid.scale]), torch.tensor([grid.zero_point], dtype=torch.int32)
        op = torch.ops.pykernels.int8_matmul_packed.default
        last = code if residual is None else 0
        y = op(rows, packed, n, scale, steps, zero, shift, last, torch.float32).view(*x.shape[:-1], -1)
        return y if residual is None else apply_activation(y.add_(residual), self.act.name, self.act.slope)

    def in_trace(self, pack: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
        """What runs it, in float: a trace knows no numbers that depend on values."""
        q, steps, shift = self.folded(pack.twins)
        weight, least = q.flatten(1).float() * steps[:, None], self.rounding.least

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            low, high = (t.detach() for t in torch.aminmax(x))
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = ((high - low) / 255).clamp(min=least)
            zero = (-(low / scale).round()).clamp(0, 255)
            rounded = (((x / scale).round() + zero).clamp(0, 255) - zero) * scale
            y = F.linear(rounded, weight, shift)
            y = y if residual is None else y + residual
            return apply_activation(y, self.act.name, self.act.slope)

        return run
