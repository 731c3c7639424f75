"""The functions of torch's that overloads of `torch.ops.aten` stand for: exported graphs call these, our patterns know
those. An overload without a function of torch's that does the same stays what it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

#: These take the overload's arguments, in the overload's order.
_ALIKE: dict[str, Callable[..., Any]] = {
    "conv1d.default": torch.conv1d, "conv1d.padding": torch.conv1d, "conv2d.default": torch.conv2d,
    "conv2d.padding": torch.conv2d, "conv_transpose2d.input": F.conv_transpose2d, "linear.default": F.linear,
    "addmm.default": torch.addmm, "matmul.default": torch.matmul, "mm.default": torch.mm, "bmm.default": torch.bmm,
    "lstm.input": torch.lstm, "embedding.default": torch.embedding,
    "scaled_dot_product_attention.default": F.scaled_dot_product_attention,
    "relu.default": torch.relu, "relu_.default": torch.relu_, "hardtanh.default": F.hardtanh,
    "hardtanh_.default": F.hardtanh_, "relu6.default": F.relu6, "hardswish.default": F.hardswish,
    "hardsigmoid.default": F.hardsigmoid, "silu.default": F.silu, "mish.default": F.mish, "gelu.default": F.gelu,
    "sigmoid.default": torch.sigmoid, "sigmoid_.default": torch.sigmoid_, "tanh.default": torch.tanh,
    "tanh_.default": torch.tanh_, "leaky_relu.default": F.leaky_relu, "leaky_relu_.default": F.leaky_relu_,
    "softplus.default": F.softplus, "clamp.default": torch.clamp, "clamp_.default": torch.clamp_,
    "softmax.int": torch.softmax, "prelu.default": F.prelu,
    "add.Tensor": torch.add, "add_.Tensor": Tensor.add_, "sub.Tensor": torch.sub, "mul.Tensor": torch.mul,
    "mul_.Tensor": Tensor.mul_, "div.Tensor": torch.div,
    "max_pool2d.default": torch.max_pool2d, "avg_pool2d.default": F.avg_pool2d,
    "adaptive_avg_pool2d.default": F.adaptive_avg_pool2d, "mean.dim": torch.mean,
    "flatten.using_ints": torch.flatten, "reshape.default": torch.reshape, "view.default": Tensor.view,
    "permute.default": torch.permute, "transpose.int": torch.transpose, "t.default": torch.t,
    "unsqueeze.default": torch.unsqueeze, "squeeze.dim": torch.squeeze, "select.int": torch.select,
    "expand.default": Tensor.expand, "contiguous.default": Tensor.contiguous, "clone.default": torch.clone,
    "cat.default": torch.cat, "chunk.default": torch.chunk, "split.Tensor": torch.split, "unbind.int": torch.unbind,
    "to.dtype": Tensor.to, "dropout.default": torch.dropout, "feature_dropout.default": torch.feature_dropout,
    "channel_shuffle.default": torch.channel_shuffle, "pixel_shuffle.default": torch.pixel_shuffle,
}  # fmt: skip
#: The same with a flag.
_IN_PLACE = {
    "relu6_.default": F.relu6, "hardswish_.default": F.hardswish, "silu_.default": F.silu,
    "hardsigmoid_.default": F.hardsigmoid, "mish_.default": F.mish,
}  # fmt: skip


def torchs(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """What calls the same with one of torch's functions, or the same call."""
    if type(function) is not OpOverload or function.namespace != "aten":
        return function, args, kwargs
    name = function.__name__
    if name in _ALIKE:
        return _ALIKE[name], args, kwargs
    if name in _IN_PLACE:
        return _IN_PLACE[name], args, {**kwargs, "inplace": True}
    if name in _OTHERS and not kwargs:
        return _OTHERS[name](*args) or (function, args, kwargs)
    return function, args, kwargs


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, _: bool
) -> _Call:
    return F.batch_norm, (x, mean, var, weight, bias, training, momentum, eps), {}


def _layer_norm(*args: Any) -> _Call:
    return F.layer_norm, args[:5], {}


def _group_norm(*args: Any) -> _Call:
    return F.group_norm, args[:5], {}


def _elu(x: Any, alpha: Any = 1, *scales: Any) -> _Call | None:
    return None if any(s != 1 for s in scales) else (F.elu, (x, float(alpha)), {})


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> _Call | None:
    if dim < 0:
        return None
    end = None if type(end) is int and end >= sys.maxsize else end
    index = slice(None if start == 0 else start, end, None if step == 1 else step)
    return Tensor.__getitem__, (x, (*[slice(None)] * dim, index)), {}


def _nearest(x: Any, size: Any, factors: Any) -> _Call:
    return F.interpolate, (x,), {"size": size, "scale_factor": factors, "mode": "nearest"}


def _bilinear(x: Any, size: Any, corners: bool, factors: Any) -> _Call:
    given = {"size": size, "scale_factor": factors, "mode": "bilinear", "align_corners": corners}
    return F.interpolate, (x,), given


_OTHERS: dict[str, Callable[..., _Call | None]] = {
    "batch_norm.default": _batch_norm, "layer_norm.default": _layer_norm, "group_norm.default": _group_norm,
    "elu.default": _elu, "slice.Tensor": _slice, "upsample_nearest2d.vec": _nearest,
    "upsample_bilinear2d.vec": _bilinear,
}  # fmt: skip
