"""weight_only_linear in plain PyTorch, on any device: the oracle, and where it runs without kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pykernels.ops._activation import apply_activation


def weight_only_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
) -> torch.Tensor:
    """See `pykernels.ops.weight_only_linear`. Narrower floats than float32 compute in float32 and are rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scaled = weight.to(wide) * weight_scale.to(wide).reshape(-1, 1)
    y = F.linear(x.to(wide), scaled, None if bias is None else bias.to(wide))
    return apply_activation(y, activation).to(x.dtype)
