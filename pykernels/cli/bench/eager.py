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
    """PyTorch's own way. ValueError for an op that has none here."""
    if spec.name not in _EAGER:
        raise ValueError(f"pykernels bench: {spec.name}: expected an op with a baseline, one of {', '.join(_EAGER)}")
    return _EAGER[spec.name]


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


def _batch_norm_act(
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
    z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
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
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    a_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype = torch.int32,
) -> torch.Tensor:
    sums = torch._int_mm(a, b)
    if a_zero_point is not None:
        sums = sums - a_zero_point.reshape(-1, 1) * b.sum(0, dtype=torch.int32)
    if out_dtype == torch.int32:
        return sums
    z = sums.float()
    if a_scale is not None:
        z *= a_scale.reshape(-1, 1)
    if b_scale is not None:
        z *= b_scale
    if bias is not None:
        z += bias
    z = z.relu_() if activation == "relu" else apply_activation(z, activation, 0.01)
    return z.round_().clamp_(-128, 127).to(torch.int8) if out_dtype == torch.int8 else z.to(out_dtype)


def _int8_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
    out_scale: float = 1.0,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    z = F.conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups)
    if out_dtype == torch.int32:
        return z.to(torch.int32)
    for vector, apply in ((scale, z.mul_), (bias, z.add_)):
        if vector is not None:
            apply(vector.reshape(-1, 1, 1))
    if residual is not None:
        z.add_(residual, alpha=residual_scale)
    z = z.relu_() if activation == "relu" else apply_activation(z, activation, negative_slope)
    z *= out_scale
    return z.round_().clamp_(-128, 127).to(torch.int8) if out_dtype == torch.int8 else z.to(out_dtype)


def _quantize_int8(x: torch.Tensor, *, axis: int | None = None, symmetric: bool = True) -> Any:
    slices = () if axis is None else (x.shape[axis],)
    dims = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    if symmetric:
        scale = x.abs().amax(dims, keepdim=True) / 127
        q = (x / scale).round_().to(torch.int8)
        return q, scale.reshape(slices), scale.new_zeros(slices, dtype=torch.int32)
    low, high = x.amin(dims, keepdim=True).clamp_(max=0), x.amax(dims, keepdim=True).clamp_(min=0)
    scale = (high - low) / 255
    zero_point = (-128 - low / scale).round_()
    q = (x / scale).round_().add_(zero_point).clamp_(-128, 127).to(torch.int8)
    return q, scale.reshape(slices), zero_point.reshape(slices).int()


_EAGER: dict[str, Callable[..., Any]] = {
    "conv_bn_act": _conv_bn_act,
    "batch_norm_act": _batch_norm_act,
    "lstm_cell": _lstm_cell,
    "lstm": _lstm,
    "int8_matmul": _int8_matmul,
    "int8_matmul_scaled": _int8_matmul,
    "int8_conv2d": _int8_conv2d,
    "quantize_int8": _quantize_int8,
}
