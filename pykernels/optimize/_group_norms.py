"""Group and instance norms of images on the CPU, with the sum and the activation that follow, as our steps."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops import _dispatch
from pykernels.ops._activation import activation_code
from pykernels.ops.group_norm_act.arguments import GroupNormCall
from pykernels.ops.group_norm_act.op import GROUP_NORM_ACT
from pykernels.optimize._calls import OurCall, takes_image
from pykernels.optimize._fused import Fusable
from pykernels.optimize._graph import Step, Value, bound
from pykernels.optimize._patterns import Fuser

_GROUP = ("input", "num_groups", "weight", "bias", "eps")
_INSTANCE = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
#: Maps below so many pixels, of so many channels, torch's is faster for: docs/kernels/group_norm_act/cpu.md.
_FEW_PIXELS, _MANY_CHANNELS = 64, 1024


class GroupNorm(OurCall):
    """A norm of groups of channels, 0 for one of each channel, with what follows."""

    def __init__(self, call: GroupNormCall) -> None:
        super().__init__("group_norm", "group_norm_act", "group_norm_act", torch.tensor(call, dtype=torch.float64))
        self._groups, self._norm = call.groups, call
        self._run = torch.ops.pykernels.group_norm_act_bound.default

    def __call__(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """In new memory. The first call for each size is one of these, and asks torch whether the size makes sense."""
        groups = self._groups
        if groups == 0 and x.shape[2:].numel() <= 1:
            F.instance_norm(x)
        elif groups and x.shape[0] * x.shape[1] // groups * x.shape[2:].numel() <= 1:
            F.group_norm(x, groups)
        return self._run(x, weight, bias, residual, self.numbers)

    def in_trace(self, *tensors: Tensor | None) -> Tensor:
        """The same by `pykernels.ops`'s op."""
        return torch.ops.pykernels.group_norm_act(*tensors, *self._norm)


class FusedGroupNorm(Fusable):
    """Such a norm while the fuser looks for its chain."""

    own_constants = False

    def __init__(self, name: str, groups: int, weight: Value | None, bias: Value | None, eps: float) -> None:
        super().__init__()
        self.name, self.groups, self.eps = name, groups, eps
        self._affine = weight, bias
        self.norm = []  # takes no batch norm

    def parameters(self) -> list[Value]:
        """Its weight and bias, where it has them."""
        return [v for v in self._affine if v is not None]

    def step(self, chain: list[Step], x: Value, residual: Value | None, fuser: Fuser) -> Step:
        """The call."""
        code = activation_code("group_norm_act", self.act.name)
        norm = GroupNorm(GroupNormCall(self.groups, self.eps, code, self.act.slope))
        return Step(norm, (x, *self._affine, residual), {}, chain[-1].outputs, (), "call")


def group_norm_of(step: Step) -> tuple[FusedGroupNorm, Value] | None:
    """A group or instance norm that our kernel takes, and its input."""
    if step.kind != "call" or step.writes or not _dispatch.has_native(GROUP_NORM_ACT, torch.device("cpu")):
        return None
    if step.function in (F.group_norm, torch.group_norm):
        given = bound(step, _GROUP)
        groups, plain = given.get("num_groups"), set(given) <= set(_GROUP)
        plain = plain and type(groups) is int and groups > 0
    elif step.function is F.instance_norm:
        given, groups = bound(step, _INSTANCE), 0
        plain = given.get("use_input_stats", True) is True and given.get("running_mean") is None
    else:
        return None
    x, weight, bias = (given.get(k) for k in ("input", "weight", "bias"))
    eps: Any = given.get("eps", 1e-5)
    if not plain or type(eps) is not float or eps <= 0 or not isinstance(x, Value):
        return None
    if not takes_image(GROUP_NORM_ACT, step, x) or step.results()[0].layout != x.layout or _is_torchs(x):
        return None
    for v in (weight, bias):
        if v is not None and not (isinstance(v, Value) and v.dtype is torch.float32 and v.layout == "contiguous"):
            return None
    assert isinstance(groups, int)
    return FusedGroupNorm("group_norm" if groups else "instance_norm", groups, weight, bias, eps), x


def _is_torchs(x: Value) -> bool:
    return x.shape[1] >= _MANY_CHANNELS and prod(x.shape[2:]) < _FEW_PIXELS
