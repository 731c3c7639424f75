"""Fully connected layers as fused steps: each is a 1x1 convolution of an image whose pixels are the rows of its input.

``addmm`` and ``matmul`` with a constant matrix count as such layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels import _native
from pykernels.nn.conv import ConvPack
from pykernels.ops import _dispatch
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import Geometry
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize import _rules
from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Step, Value, bound, is_torchs

_LINEAR = ("input", "weight", "bias")
_ONE = Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1)


class FusedLinear(FusedConv):
    """The constants of a fused linear layer; of ``weight``, (K, C), or ``turned``, (C, K)."""

    name = "linear"
    rank = 2

    def __init__(self, weight: Value, bias: Value | None, turned: bool = False) -> None:
        super().__init__(weight, bias, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1})
        self.turned = turned
        self.run = torch.ops.pykernels.linear_bound.default

    def depth(self) -> int:
        """Products for each element that it gives."""
        return self.weight.shape[0 if self.turned else 1]

    def filters(self, weight: Any) -> Any:
        """(K, C, 1, 1), in the same memory."""
        return (weight.detach().t() if self.turned else weight.detach())[:, :, None, None]

    def geometry(self) -> Geometry:
        """That of 1x1."""
        return _ONE

    def write_op(self) -> Any:
        """What writes the result of `run` into a tensor that it is given, beside a workspace."""
        return torch.ops.pykernels.linear_bound_out.default

    def workspace(self, x: Tensor, constant: Any, y: Tensor) -> int:
        """The bytes of that workspace."""
        return torch.ops.pykernels.linear_bound_workspace(x, constant, y)

    def constant(self, pack: ConvPack, x: torch.Size) -> Any:
        """The same for all shapes."""
        return pack.bound_for(torch.Size())

    def torchs_because(self, shape: Sequence[int], layout: str) -> str:
        """Why torch runs it for an input of this shape; "" where our kernel does."""
        if self.is_held:
            return ""
        c, k = self.depth(), self.weight.shape[1 if self.turned else 0]
        bf16 = self.weight.dtype is torch.bfloat16
        isa = _native.introspect().active_isa()
        return _rules.linear_torchs_because(prod(shape[:-1]), c, k, self.act.name, bf16, isa)

    def by_torch(self, values: dict[Value, Any], layout: str) -> Callable[..., Tensor]:
        """What computes the same with torch's functions, from x and the residual."""
        parts = (self.weight, self.bias, *(self.norm or (None,) * 4))
        weight: Any
        weight, bias, mean, var, scale, shift = (None if v is None else values.get(v, v.tensor) for v in parts)
        scale, shift = fold_batch_norm(bias, mean, var, scale, shift, self.eps)
        weight = weight.detach().t() if self.turned else weight.detach()
        if scale is not None:
            weight = (weight * scale[:, None]).to(weight.dtype)
        shift = None if shift is None else shift.detach().to(weight.dtype)
        act = self.act.in_place(values)

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            # Of others torch multiplies matrix by matrix, where the weight is without gradients.
            y = F.linear(x if x.is_contiguous() else x.contiguous(), weight, shift)
            if residual is not None:
                y.add_(residual)
            return y if act is None else act(y)

        return run


def on_rows(run: Callable[[Tensor, Tensor | None], Tensor]) -> Callable[[Tensor, Tensor | None], Tensor]:
    """``run``, a 1x1 convolution, for rows (..., C) in place of images, as a trace sees it."""

    def image(rows: Tensor) -> Tensor:
        return rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)

    def run_rows(x: Tensor, residual: Tensor | None) -> Tensor:
        y = run(image(x), None if residual is None else image(residual))
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], y.shape[1])

    return run_rows


def linear_of(step: Step) -> tuple[FusedLinear, Value] | None:
    """A fully connected layer that our kernels take, and its input."""
    if step.kind != "call" or not isinstance(step.outputs, Value) or step.outputs.layout != "contiguous":
        return None
    found = _parts_of(step)
    if found is None:
        return None
    x, weight, bias, turned = found
    given = (x, weight) if bias is None else (x, weight, bias)
    if not all(isinstance(v, Value) and v.dtype is x.dtype and v.device == x.device for v in given):
        return None
    if (
        x.device.type != "cpu"
        or x.dtype not in CONV_BN_ACT.takes("cpu")
        or not _dispatch.has_native(CONV_BN_ACT, x.device)
    ):
        return None
    k, c = (weight.shape[::-1] if turned else weight.shape) if len(weight.shape) == 2 else (0, 0)
    fits = k > 0 and c > 0 and x.shape[-1:] == (c,) and (bias is None or bias.shape == (k,))
    return (FusedLinear(weight, bias, turned), x) if fits else None


def _parts_of(step: Step) -> tuple[Any, Any, Any, bool] | None:
    """Input, weight, bias and whether the weight is (C, K)."""
    if step.function is F.linear:
        given = bound(step, _LINEAR)
        return given.get("input"), given.get("weight"), given.get("bias"), False
    if is_torchs(step.function, "addmm") and len(step.args) == 3 and not step.kwargs:
        bias, x, weight = step.args
        return x, weight, bias, True
    if is_torchs(step.function, "matmul", "__matmul__", "mm") and len(step.args) == 2 and not step.kwargs:
        return *step.args, None, True
    return None
