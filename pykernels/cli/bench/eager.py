"""What a PyTorch user writes today for each op, with the op's own arguments: the baseline of the op benches.

These are not the references. A reference is written for clarity, and for gradients that torch's own functions lack.
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


def _finished(
    z: torch.Tensor,
    residual: Any,
    activation: str,
    slope: float,
    out_dtype: torch.dtype | None = None,
    scale: float = 1,
) -> torch.Tensor:
    """``z``, which is ours to write, with what comes after a product: residual, activation, scale, cast."""
    if residual is not None:
        z += residual
    z = z.relu_() if activation == "relu" else apply_activation(z, activation, slope)
    z = z if scale == 1 else z.mul_(scale)
    if out_dtype == torch.int8:
        return z.round_().clamp_(-128, 127).to(torch.int8)
    return z if out_dtype is None else z.to(out_dtype)


def _conv_bn_act(
    x: torch.Tensor, weight: torch.Tensor, bias: Any = None, running_mean: Any = None, running_var: Any = None,
    bn_weight: Any = None, bn_bias: Any = None, *, eps: float = 1e-5, residual: Any = None, activation: str = "relu",
    negative_slope: float = 0.01, **conv: Any,
) -> torch.Tensor:  # fmt: skip
    z = F.conv2d(x, weight, bias, **conv)
    if running_mean is not None:
        z = F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, eps=eps)
    return _finished(z, residual, activation, negative_slope)


def _conv_transpose_bn_act(
    x: torch.Tensor, weight: torch.Tensor, bias: Any = None, running_mean: Any = None, running_var: Any = None,
    bn_weight: Any = None, bn_bias: Any = None, *, eps: float = 1e-5, residual: Any = None, activation: str = "relu",
    negative_slope: float = 0.01, **conv: Any,
) -> torch.Tensor:  # fmt: skip
    z = F.conv_transpose2d(x, weight, bias, **conv)
    if running_mean is not None:
        z = F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, eps=eps)
    return _finished(z, residual, activation, negative_slope)


def _batch_norm_act(
    x: torch.Tensor, *vectors: Any, residual: Any = None, activation: str = "relu", negative_slope: float = 0.01,
    **norm: Any,
) -> torch.Tensor:  # fmt: skip
    z = F.batch_norm(x, *(vectors or (None, None)), **norm)
    return _finished(z, residual, activation, negative_slope)


def _lstm(
    x: torch.Tensor, states: Any, weights: Any, *, num_layers: int = 1, bidirectional: bool = False,
    batch_first: bool = False, dropout: float = 0.0, training: bool = False, batch_sizes: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    bias = len(weights) == 4 * num_layers * (1 + bidirectional)
    rest = (list(weights), bias, num_layers, dropout, training, bidirectional)
    if batch_sizes is not None:
        output, *ends = torch._VF.lstm(x, batch_sizes, states, *rest)
    else:
        output, *ends = torch._VF.lstm(x, states, *rest, batch_first)
    return output, tuple(ends)


def _dequantized(weights: Any, scales: Any) -> list[torch.Tensor]:
    scale = iter(scales)
    return [w if w.is_floating_point() else w * next(scale).unsqueeze(1) for w in weights]


def _int8_lstm(
    x: torch.Tensor, states: Any, weights: Any, scales: Any, *, weight_only: bool = False, **named: Any
) -> Any:  # fmt: skip
    return _lstm(x, states, _dequantized(weights, scales), **named)


def _int8_lstm_cell(
    x: torch.Tensor, states: Any, w_ih: torch.Tensor, w_hh: torch.Tensor, s_ih: torch.Tensor, s_hh: torch.Tensor,
    *biases: Any, weight_only: bool = False,
) -> Any:  # fmt: skip
    return torch.lstm_cell(x, states, *_dequantized((w_ih, w_hh), (s_ih, s_hh)), *biases)


def _weight_only_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: Any = None, activation: str = "none"
) -> torch.Tensor:
    return apply_activation(F.linear(x, (weight * scale.reshape(-1, 1)).to(x.dtype), bias), activation)


def _int8_matmul(
    a: torch.Tensor, b: torch.Tensor, *, a_scale: Any = None, b_scale: Any = None, a_zero_point: Any = None,
    bias: Any = None, activation: str = "none", out_dtype: torch.dtype = torch.int32,
) -> torch.Tensor:  # fmt: skip
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
    return _finished(z, bias, activation, 0.01, out_dtype)


def _int8_conv2d(
    x: torch.Tensor, weight: torch.Tensor, scale: Any = None, bias: Any = None, *, residual: Any = None,
    residual_scale: float = 1, activation: str = "none", negative_slope: float = 0.01, out_scale: float = 1,
    out_dtype: torch.dtype = torch.float32, **conv: Any,
) -> torch.Tensor:  # fmt: skip
    z = F.conv2d(x.float(), weight.float(), None, **conv)
    for vector, apply in ((scale, z.mul_), (bias, z.add_)):
        if vector is not None:
            apply(vector.reshape(-1, 1, 1))
    if residual is not None:
        z.add_(residual, alpha=residual_scale)
    return _finished(z, None, activation, negative_slope, out_dtype, out_scale)


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


def _int8_quantize(x: torch.Tensor, scale: float, zero_point: int = 0) -> torch.Tensor:
    return (x * (1 / scale)).round_().add_(zero_point).clamp_(-128, 127).to(torch.int8)


def _int8_dequantize(
    q: torch.Tensor, scale: float, zero_point: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return q.to(dtype).sub_(zero_point).mul_(scale)


def _int8_add(
    a: torch.Tensor, b: torch.Tensor, a_scale: float, b_scale: float, out_scale: float, a_zero: int, b_zero: int,
    out_zero: int, activation: str = "none", negative_slope: float = 0.01,
) -> torch.Tensor:  # fmt: skip
    t = _int8_dequantize(a, a_scale, a_zero).add_(_int8_dequantize(b, b_scale, b_zero))
    return _int8_quantize(apply_activation(t, activation, negative_slope), out_scale, out_zero)


def _int8_lookup(q: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return table[q.int() + 128]


def _int8_affine(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, out_scale: float, out_zero: int,
    activation: str = "none", negative_slope: float = 0.01,
) -> torch.Tensor:  # fmt: skip
    t = x.float().mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
    return _int8_quantize(apply_activation(t, activation, negative_slope), out_scale, out_zero)


def _int8_squeeze_excite(
    x: torch.Tensor, reduce: torch.Tensor, reduce_bias: Any, expand: torch.Tensor, expand_bias: Any, x_scale: float,
    out_scale: float, x_zero: int, out_zero: int, activation: str, gate: str,
) -> torch.Tensor:  # fmt: skip
    real = _int8_dequantize(x, x_scale, x_zero, reduce.dtype)
    y = _squeeze_excite(real, reduce, reduce_bias, expand, expand_bias, activation, gate)
    return _int8_quantize(y, out_scale, out_zero)


def _group_norm_act(
    x: torch.Tensor, groups: int, weight: Any = None, bias: Any = None, *, eps: float = 1e-5, residual: Any = None,
    activation: str = "relu", negative_slope: float = 0.01,
) -> torch.Tensor:  # fmt: skip
    z = F.group_norm(x, groups, weight, bias, eps)
    return apply_activation(z if residual is None else z + residual, activation, negative_slope)


def _layer_norm(
    x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5,
    channels_first: bool = False,
) -> torch.Tensor:  # fmt: skip
    rows = x.movedim(1, -1) if channels_first else x
    y = F.layer_norm(rows, shape, weight, bias, eps)
    return y.movedim(-1, 1) if channels_first else y


def _squeeze_excite(
    x: torch.Tensor, reduce: torch.Tensor, reduce_bias: Any, expand: torch.Tensor, expand_bias: Any, activation: str,
    gate: str,
) -> torch.Tensor:  # fmt: skip
    hidden = apply_activation(F.conv2d(x.mean((2, 3), keepdim=True), reduce, reduce_bias), activation)
    return x * apply_activation(F.conv2d(hidden, expand, expand_bias), gate)


_EAGER: dict[str, Callable[..., Any]] = {
    "conv_bn_act": _conv_bn_act,
    "conv_transpose_bn_act": _conv_transpose_bn_act,
    "batch_norm_act": _batch_norm_act,
    "lstm_cell": torch.lstm_cell,
    "lstm": _lstm,
    "int8_lstm_cell": _int8_lstm_cell,
    "int8_lstm": _int8_lstm,
    "int8_lstm_cell_weight_only": _int8_lstm_cell,
    "int8_lstm_weight_only": _int8_lstm,
    "weight_only_linear": _weight_only_linear,
    "int8_matmul": _int8_matmul,
    "int8_matmul_scaled": _int8_matmul,
    "int8_conv2d": _int8_conv2d,
    "quantize_int8": _quantize_int8,
    "int8_quantize": _int8_quantize,
    "int8_dequantize": _int8_dequantize,
    "int8_add": _int8_add,
    "int8_lookup": _int8_lookup,
    "int8_affine": _int8_affine,
    "int8_squeeze_excite": _int8_squeeze_excite,
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "global_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "upsample2d": F.interpolate,
    "group_norm_act": _group_norm_act,
    "layer_norm": _layer_norm,
    "squeeze_excite": _squeeze_excite,
    "channel_shuffle": F.channel_shuffle,
    "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle,
}
