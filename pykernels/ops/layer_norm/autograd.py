"""What PyTorch needs to know of the native layer norm: shapes without data, and gradients.

With x^ = (x - mean) / sqrt(var + eps), y = x^ * weight + bias and means over what is normalised over:

    grad_bias = sum(grad_y),  grad_weight = sum(grad_y x^),  d = grad_y weight
    grad_x = (d - mean(d) - x^ mean(d x^)) / sqrt(var + eps)

in aten ops, so that it can be differentiated again. Nothing but the inputs is kept for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops.layer_norm.arguments import LayerNormCall


def _fake(x: Tensor, weight: Any, bias: Any, dims: int, eps: float) -> Tensor:
    y = x.new_empty(x.shape)
    return y if dims else y.to(memory_format=suggest_memory_format(x))


def _fake_bound(x: Tensor, weight: Any, bias: Any, call: Tensor) -> Tensor:
    """Contiguous, or of x's memory format: what no trace needs to know, for none holds it."""
    return torch.empty_like(x)


def _fake_out(x: Tensor, weight: Any, bias: Any, call: Tensor, out: Tensor) -> None:
    """Only writes."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, dims, eps = inputs
    ctx.call = LayerNormCall(dims, eps)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    dims, eps = ctx.call
    over = list(range(x.dim() - dims, x.dim())) if dims else [1]
    rest = [d for d in range(x.dim()) if d not in over]
    wide = torch.promote_types(x.dtype, torch.float32)
    gy = grad_y.to(wide)
    var, mean = torch.var_mean(x.to(wide), over, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + eps)
    normal = (x.to(wide) - mean) * inverse
    d = gy
    if weight is not None:
        d = gy * (weight if dims else weight[:, None, None])
    need = ctx.needs_input_grad

    def summed(t: Tensor, like: Tensor) -> Tensor:
        return (t.sum(rest) if rest else t).to(like.dtype)

    grad_x = (d - d.mean(over, keepdim=True) - normal * (d * normal).mean(over, keepdim=True)) * inverse
    return (
        grad_x.to(x.dtype) if need[0] else None,
        summed(gy * normal, weight) if need[1] else None,
        summed(gy, bias) if need[2] else None,
        None,
        None,
    )


def _register() -> None:
    torch.library.register_fake("pykernels::layer_norm", _fake)
    torch.library.register_autograd("pykernels::layer_norm", _backward, setup_context=_keep)
    torch.library.register_fake("pykernels::layer_norm_bound", _fake_bound)
    torch.library.register_fake("pykernels::layer_norm_out", _fake_out)


if _native.error is None:
    _register()
