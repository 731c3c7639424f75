"""What a PyTorch user writes today for each op, with the op's own arguments: the baseline of the op benches.

Not the references: those are oracles, written for clarity and for gradients that torch's own functions do not give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pykernels.ops._activation import apply_activation
from pykernels.ops._spec import OpSpec


def eager(spec: OpSpec) -> Callable[..., Any]:
    """PyTorch's own way; the reference where torch has no function for it."""
    return _EAGER.get(spec.name, spec.reference)


def _conv_bn_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    z = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if running_mean is not None:
        z = F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, eps=eps)
    if residual is not None:
        z += residual
    return z.relu_() if activation == "relu" else apply_activation(z, activation, negative_slope)


def _lstm_cell(
    x: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor],
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None = None,
    b_hh: torch.Tensor | None = None,
) -> Any:
    return torch._VF.lstm_cell(x, states, w_ih, w_hh, b_ih, b_hh)


def _lstm(
    x: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor],
    weights: Any,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: torch.Tensor | None = None,
) -> Any:
    bias = len(weights) == 4 * num_layers * (1 + bidirectional)
    rest = (list(weights), bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is not None:
        output, *ends = torch._VF.lstm(x, batch_sizes, states, *rest)
    else:
        output, *ends = torch._VF.lstm(x, states, *rest, batch_first)
    return output, tuple(ends)


def _int8_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    a_scale: torch.Tensor | float | None = None,
    b_scale: torch.Tensor | float | None = None,
    a_zero_point: Any = None,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype = torch.int32,
) -> torch.Tensor:
    sums = torch._int_mm(a, b)
    if a_zero_point is not None:
        sums = sums - a_zero_point * b.sum(0, dtype=torch.int32)
    if a_scale is None and b_scale is None:
        return sums
    z = sums.float()
    for scale in (a_scale, b_scale):
        z = z if scale is None else z * scale
    z = z if bias is None else z + bias
    return apply_activation(z, activation, 0.01).to(out_dtype)


_EAGER: dict[str, Callable[..., Any]] = {
    "conv_bn_act": _conv_bn_act,
    "lstm_cell": _lstm_cell,
    "lstm": _lstm,
    "int8_matmul": _int8_matmul,
}
