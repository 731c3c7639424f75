"""Batch norms that no convolution takes, because they come before one, after an activation or alone: one pass of ours.

The pass includes what follows (a sum, an activation). It includes the concatenation before it if nothing else reads
that: then it reads the tensors to be joined where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._activation import activation_code
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.optimize._fused import Fusable
from pykernels.optimize._graph import Step, Value, is_torchs
from pykernels.optimize._patterns import Fuser, norm_parts

_LAYOUTS = ("contiguous", "channels_last")


class FusedNorm(Fusable):
    """The constants of a batch norm that stands by itself, and of what follows; it becomes a call of an op."""

    def __init__(self, x: Value, norm: list[Value | None], eps: float) -> None:
        super().__init__()
        self.x, self.norm, self.eps, self.rank = x, norm, eps, len(x.shape)

    def step(self, chain: list[Step], x: Value, residual: Value | None, fuser: Fuser) -> Step:
        """The call, with a constant made of the batch norm's tensors."""
        act, norm = self.act, self.norm or [None] * 4
        joined = _joined(chain, x, fuser)
        made = fuser.constant(bind_norm, (x.shape[1], *norm, self.eps, act.name, act.slope, act.constants, act.slopes))
        call = Step(norm_op(), (joined or [x], made, residual), {}, chain[-1].outputs, (), "call")
        if joined:
            chain.insert(0, fuser.producers[x])
        return call


def norm_op() -> Any:
    """The op of such a step; its arguments are a list of tensors, the constant and a residual or None."""
    return torch.ops.pykernels.batch_norm_act_bound.default


def is_norm(step: Step) -> bool:
    """Is it a call of that op?"""
    return step.kind == "call" and getattr(step.function, "__name__", "") == "batch_norm_act_bound.default"


def norm_of(step: Step) -> tuple[FusedNorm, Value] | None:
    """A batch norm that our kernel takes, and its input."""
    found = norm_parts(step) if step.kind == "call" and not step.writes else None
    y = step.outputs
    if found is None or not isinstance(y, Value):
        return None
    x, parts, eps = found
    if x.device.type != "cpu" or x.dtype not in CONV_BN_ACT.takes("cpu") or y.dtype is not x.dtype:
        return None
    if len(x.shape) not in (2, 3, 4) or x.layout not in _LAYOUTS or y.layout != x.layout:
        return None
    return FusedNorm(x, parts, eps), x


def bind_norm(
    channels: int, mean: Any, var: Any, weight: Any, bias: Any, eps: float, activation: str, slope: float,
    constants: tuple[float, ...], slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    """All that the op takes besides its inputs, as one tensor."""
    scale, shift = fold_batch_norm(None, mean, var, weight, bias, eps)
    own = None
    if slopes is not None or constants:
        rows = torch.tensor(constants)[:, None] if slopes is None else slopes.float().reshape(1, -1)
        own = rows.expand(-1, channels)
    code = activation_code("batch_norm_act", activation)
    return torch.ops.pykernels.batch_norm_act_bind(channels, scale, shift, own, code, slope)


def is_join(step: Step) -> bool:
    """Does it join the channels of images?"""
    if step.kind != "call" or step.writes or not is_torchs(step.function, "cat", "concat", "concatenate"):
        return False
    values, dim = (*step.args, step.kwargs.get("dim", 0))[:2] if step.args else ((), 0)
    whole = isinstance(step.outputs, Value) and len(step.outputs.shape) == 4 and set(step.kwargs) <= {"dim"}
    return whole and isinstance(values, tuple | list) and dim in (1, -3)


def _joined(chain: Sequence[Step], x: Value, fuser: Fuser) -> list[Value]:
    """What is joined to ``x`` by a step that nothing else needs; nothing where there is none."""
    cat = fuser.producers.get(x)
    if cat is None or not is_join(cat) or fuser.users.get(x) != [chain[0]]:
        return []
    pieces = list(cat.args[0])
    alike = all(
        isinstance(v, Value)
        and len(v.shape) == 4
        and (v.dtype, v.device, v.layout) == (x.dtype, x.device, x.layout)
        and not v.dynamic
        for v in pieces
    )
    return pieces if alike and fuser.may_move([cat, *chain], chain[-1], pieces) else []
