"""batch_norm_act in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pykernels.ops._activation import ACTIVATIONS, apply_activation
from pykernels.ops.batch_norm_act.arguments import BatchNormCall


def reference(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    momentum: float,
    call: BatchNormCall,
) -> torch.Tensor:
    """`pykernels.ops.batch_norm_act` of arguments that have been checked, on any device, of any floating dtype.

    Differentiable any number of times. Computed in float32 at least; the running statistics are updated in place
    whatever their dtype.
    """
    accumulate = torch.promote_types(x.dtype, torch.float32)

    def wide(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.to(accumulate)

    mean, var = wide(running_mean), wide(running_var)
    z = F.batch_norm(x.to(accumulate), mean, var, wide(weight), wide(bias), call.training, momentum, call.eps)
    if call.training:
        with torch.no_grad():
            for given, updated in ((running_mean, mean), (running_var, var)):
                if given is not None and updated is not None and given is not updated:
                    given.copy_(updated)
    if residual is not None:
        z = z + residual.to(accumulate)
    return apply_activation(z, ACTIVATIONS[call.activation], call.negative_slope).to(x.dtype)
