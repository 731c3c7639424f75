"""batch_norm_act in plain PyTorch: the oracle of every test, and what runs where there is no kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pykernels.ops._activation import apply_activation


def batch_norm_act_reference(
    x: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """`pykernels.ops.batch_norm_act` on any device and floating dtype, differentiable any number of times.

    Computed in float32 at least; the running statistics are updated in place whatever their dtype.
    """
    accumulate = torch.promote_types(x.dtype, torch.float32)

    def wide(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.to(accumulate)

    mean, var = wide(running_mean), wide(running_var)
    z = F.batch_norm(x.to(accumulate), mean, var, wide(weight), wide(bias), training, momentum, eps)
    if training:
        with torch.no_grad():
            for given, updated in ((running_mean, mean), (running_var, var)):
                if given is not None and updated is not None and given is not updated:
                    given.copy_(updated)
    if residual is not None:
        z = z + residual.to(accumulate)
    return apply_activation(z, activation, negative_slope).to(x.dtype)
