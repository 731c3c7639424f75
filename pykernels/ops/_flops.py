"""What `torch.utils.flop_counter` counts for each op: as for torch's own, two for each product, nothing for the rest.

The formulas are registered when somebody imports the counter. The counter itself imports Triton, which takes too long
for us to import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]


def _convolution(x: Shape, weight: Shape, out: Shape) -> int:
    return 2 * prod(weight) * out[0] * prod(out[2:])


def _conv(x: Shape, weight: Shape, *_: Any, out_shape: Any) -> int:
    return _convolution(x, weight, out_shape)


def _conv_statistics(x: Shape, weight: Shape, *_: Any, out_shape: Any) -> int:
    return _convolution(x, weight, out_shape[0])


def _conv_packed(x: Shape, packed: Shape, weight: Shape, *_: Any, out_shape: Any) -> int:
    return _convolution(x, weight, out_shape)


def _conv_bound(x: Tensor, bound: Tensor, *_: Any, out_val: Any) -> int:
    # csrc/torch/cpu/conv_bn_act.cpp, BoundConv: after two numbers of 4 bytes a ConvShape.
    _, c, _, _, k, r, s, *rest = bound[8 : 8 + 16 * 8].view(torch.int64).tolist()
    groups = rest[-1]
    return _convolution(x.shape, (k, c // groups, r, s), out_val.shape)


def _conv_bound_out(x: Tensor, bound: Tensor, residual: Any, out: Tensor, *_: Any, out_val: Any) -> int:
    return _conv_bound(x, bound, out_val=out)


def _conv_chain_out(
    x: Sequence[Tensor],
    bound: Sequence[Tensor | None],
    residual: Any,
    out: Sequence[Tensor],
    kept: Any,
    squeezes: Sequence[Tensor | None],
    *_: Any,
    out_val: Any,
) -> int:
    total, weights = 0, iter(squeezes[::4])
    for image, conv, y in zip(x, bound, out, strict=True):
        if conv is None:
            total += _squeeze_excite(image.shape, next(weights).shape, out_shape=None)  # type: ignore[union-attr]
        else:
            total += _conv_bound(image, conv, out_val=y)
    return total


def _int8_conv_bound(x: Tensor, bound: Tensor, *_: Any, out_val: Any) -> int:
    # csrc/cpu/int8_conv2d/kernels.h, Int8ConvHeader: the products of a pixel's sums come after 16 bytes.
    products = int(bound[16:24].view(torch.int64))
    return 2 * products * out_val.shape[0] * prod(out_val.shape[2:])


def _int8_conv_bound_out(x: Tensor, bound: Tensor, residual: Any, out: Tensor, *_: Any, out_val: Any) -> int:
    return _int8_conv_bound(x, bound, out_val=out)


def _int8_conv_chain_out(
    x: Any, bound: Sequence[Tensor], residual: Any, out: Sequence[Tensor], *_: Any, out_val: Any
) -> int:
    return sum(_int8_conv_bound(y, conv, out_val=y) for conv, y in zip(bound, out, strict=True))


def _matmul(a: Shape, b: Shape, *_: Any, out_shape: Any) -> int:
    return 2 * prod(out_shape) * a[-1]


def _linear_out(x: Shape, bound: Shape, residual: Any, out: Shape, *_: Any, out_shape: Any) -> int:
    return _matmul(x, bound, out_shape=out)


def _lstm(x: Shape, h: Shape, c: Shape, weights: Sequence[Shape], *_: Any, out_shape: Any) -> int:
    return 2 * prod(x[:-1]) * sum(prod(w) for w in weights if len(w) == 2)


def _lstm_backward(
    grad_output: Any, grad_h: Any, grad_c: Any, x: Shape, h: Shape, c: Shape, weights: Sequence[Shape], *_: Any,
    out_shape: Any,
) -> int:  # fmt: skip
    return 2 * _lstm(x, h, c, weights, out_shape=None)


def _lstm_packed(
    x: Shape, h: Shape, c: Shape, packed: Shape, inputs: int, hidden: int, batch_sizes: Any, layers: int,
    bidirectional: bool, *_: Any, out_shape: Any,
) -> int:  # fmt: skip
    directions = 2 if bidirectional else 1
    read = inputs + (layers - 1) * directions * hidden + layers * hidden
    return 2 * prod(x[:-1]) * directions * 4 * hidden * read


def _cell(x: Shape, h: Shape, c: Shape, w_ih: Shape, w_hh: Shape, *_: Any, out_shape: Any) -> int:
    return 2 * x[0] * (prod(w_ih) + prod(w_hh))


def _cell_backward(
    grad_h: Any, grad_c: Any, x: Shape, h: Shape, c: Shape, w_ih: Shape, w_hh: Shape, *_: Any, out_shape: Any
) -> int:
    return 2 * _cell(x, h, c, w_ih, w_hh, out_shape=None)


def _cell_packed(x: Shape, h: Shape, c: Shape, packed: Shape, inputs: int, hidden: int, *, out_shape: Any) -> int:
    return 2 * x[0] * 4 * hidden * (inputs + hidden)


def _squeeze_excite(x: Shape, reduce: Shape, *_: Any, out_shape: Any) -> int:
    return 4 * x[0] * prod(reduce)


def _none(*_: Any, out_shape: Any) -> int:
    return 0


#: These read the bytes of what they are given.
_RAW = (_conv_bound, _conv_bound_out, _conv_chain_out, _int8_conv_bound, _int8_conv_bound_out, _int8_conv_chain_out)

#: By op; that of Triton's twin is the same.
FORMULAS: dict[str, Callable[..., int]] = {
    "conv_bn_act": _conv,
    "conv_statistics": _conv_statistics,
    "conv_bn_act_packed": _conv_packed,
    "conv_bn_act_bound": _conv_bound,
    "conv_bn_act_bound_out": _conv_bound_out,
    "conv_bn_act_chain_out": _conv_chain_out,
    "linear_bound": _matmul,
    "linear_bound_out": _linear_out,
    "int8_conv2d": _conv,
    "int8_conv2d_bound": _int8_conv_bound,
    "int8_conv2d_bound_out": _int8_conv_bound_out,
    "int8_conv2d_chain_out": _int8_conv_chain_out,
    "int8_linear_bound": _matmul,
    "int8_linear_bound_out": _linear_out,
    "int8_matmul": _matmul,
    "int8_matmul_packed": _matmul,
    "int8_linear": _matmul,
    "int8_linear_packed": _matmul,
    "weight_only_linear": _matmul,
    "weight_only_linear_packed": _matmul,
    "weight_only_linear_pack": _none,
    "lstm": _lstm,
    "lstm_backward": _lstm_backward,
    "lstm_packed": _lstm_packed,
    "lstm_cell": _cell,
    "lstm_cell_backward": _cell_backward,
    "lstm_cell_packed": _cell_packed,
    "int8_lstm": _lstm,
    "int8_lstm_packed": _lstm_packed,
    "int8_lstm_cell": _cell,
    "int8_lstm_cell_packed": _cell_packed,
    "batch_norm_act": _none,
    "batch_norm_act_backward": _none,
    "batch_norm_act_bind": _none,
    "batch_norm_act_bound": _none,
    "batch_norm_act_bound_out": _none,
    "batch_norm_statistics": _none,
    "quantize_int8": _none,
    "int8_quantize": _none,
    "int8_quantize_out": _none,
    "int8_dequantize": _none,
    "int8_dequantize_out": _none,
    "int8_add": _none,
    "int8_add_out": _none,
    "int8_lookup": _none,
    "int8_lookup_out": _none,
    "int8_affine": _none,
    "int8_affine_out": _none,
    "conv_pack": _none,
    "conv_bind": _none,
    "conv_pack_bound": _none,
    "conv_bn_act_bound_workspace": _none,
    "linear_bound_workspace": _none,
    "lstm_pack": _none,
    "int8_lstm_pack": _none,
    "int8_pack": _none,
    "int8_conv_bind": _none,
    "int8_conv2d_bound_workspace": _none,
    "int8_linear_bound_workspace": _none,
    "max_pool2d": _none,
    "avg_pool2d": _none,
    "global_avg_pool2d": _none,
    "pool2d_bound": _none,
    "pool2d_out": _none,
    "int8_global_avg_pool2d": _none,
    "int8_global_avg_pool2d_out": _none,
    "group_norm_act": _none,
    "group_norm_act_bound": _none,
    "group_norm_act_out": _none,
    "layer_norm": _none,
    "layer_norm_bound": _none,
    "layer_norm_out": _none,
    "shuffle": _none,
    "shuffle_bound": _none,
    "shuffle_out": _none,
    "upsample2d": _none,
    "upsample2d_bound": _none,
    "upsample2d_out": _none,
    "squeeze_excite": _squeeze_excite,
    "squeeze_excite_out": _squeeze_excite,
    "int8_squeeze_excite": _squeeze_excite,
    "int8_squeeze_excite_out": _squeeze_excite,
}


def register(counter: Any) -> None:
    """Registers the formulas of the ops that exist with ``counter``, the module."""
    for name, formula in FORMULAS.items():
        for op in (name, f"{name}_triton"):
            packet = getattr(torch.ops.pykernels, op, None)
            if packet is not None and packet not in counter.flop_registry:
                counter.register_flop_formula(packet, get_raw=formula in _RAW)(formula)
