"""The arguments of weight_only_linear. This module checks them and names the wrong one."""

from __future__ import annotations

import torch

from pykernels.ops._arguments import check_device, check_floating, check_tensor, fail
from pykernels.ops.int8_matmul.arguments import MAX_K, check_bias, check_int8, vector

OP = "weight_only_linear"


def check_linear(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """``weight_scale`` as a vector; raises for tensors that do not fit together."""
    check_tensor(OP, "x", x)
    check_floating(OP, "x", x)
    if x.dim() == 0:
        fail(ValueError, OP, "x", "at least 1 dimension", "none")
    check_int8(OP, "weight", weight)
    check_device(OP, "weight", weight, x.device)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        fail(ValueError, OP, "weight", f"shape (N, {x.shape[-1]})", tuple(weight.shape))
    n, k = weight.shape
    if k > MAX_K:
        fail(ValueError, OP, "weight", f"at most {MAX_K} columns, beyond which int32 sums may wrap", k)
    scale = vector(OP, "weight_scale", check_tensor(OP, "weight_scale", weight_scale), (n, 1), x.device)
    assert scale is not None
    check_bias(OP, bias, n, x.device)
    return scale if scale.shape[0] == n else scale.expand(n)
