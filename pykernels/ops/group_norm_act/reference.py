"""group_norm_act in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.group_norm_act.arguments import GroupNormCall


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: GroupNormCall
) -> Tensor:
    """`pykernels.ops.group_norm_act` of arguments that have been checked, on any device, of any floating dtype.

    Differentiable any number of times. Computed in float32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(wide) for t in (weight, bias))
    z = torch.group_norm(x.to(wide), call.groups, weight, bias, call.eps)
    if residual is not None:
        z = z + residual.to(wide)
    return apply_activation(z, ACTIVATIONS[call.activation], call.negative_slope).to(x.dtype)
