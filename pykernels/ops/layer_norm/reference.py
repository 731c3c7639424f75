"""layer_norm in plain PyTorch. Every test compares with it, and it runs where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels.ops.layer_norm.arguments import LayerNormCall


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: LayerNormCall) -> Tensor:
    """`pykernels.ops.layer_norm` of arguments that have been checked, on any device, of any floating dtype.

    Differentiable any number of times. Computed in float32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(wide) for t in (weight, bias))
    if call.dims:
        return _rows(x.to(wide), call.dims, weight, bias, call.eps).to(x.dtype)
    y = _rows(x.to(wide).movedim(1, -1), 1, weight, bias, call.eps).movedim(-1, 1).to(x.dtype)
    return y.contiguous(memory_format=suggest_memory_format(x))


def _rows(x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    shape = x.shape[x.dim() - dims :]
    if weight is None and bias is not None:  # torch's own has no second derivative then
        return torch.layer_norm(x, shape, None, None, eps) + bias
    return torch.layer_norm(x, shape, weight, bias, eps)
