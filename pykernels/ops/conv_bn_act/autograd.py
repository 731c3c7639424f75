"""What PyTorch needs to know of the native ops: shapes without data, gradients, autocast.

With c = conv2d(x, w), z = c * scale + shift + residual, y = act(z) and the gradient grad_z of z:

    grad_shift = sum(grad_z),  grad_residual = grad_z,  grad_x = conv2d_input(grad_z, w * scale)
    grad_weight = g * scale and grad_scale = sum(w * g),  where g = conv2d_weight(x, grad_z)

for <c_k, grad_z_k> = <w_k, g_k>: so grad_scale needs no second convolution, and one `aten.convolution_backward` gives
grad_x and g. Every step is a differentiable aten op, so the backward can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops._activation import ACTIVATIONS, activation_backward, output_tells
from pykernels.ops._autocast import register_autocast
from pykernels.ops.conv_bn_act.arguments import ConvCall, Geometry, output_size, packed_shape, padded

aten = torch.ops.aten


def convolution_backward(
    grad_z: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, g: Geometry, need_x: bool, need_weight: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of a convolution's input and weight, as far as they are needed."""
    whole, padding = padded(x, g)
    needed = (need_x, need_weight, False)
    grad_x, grad_weight, _ = aten.convolution_backward(
        grad_z, whole, weight, None, g.stride, padding, g.dilation, False, (0, 0), g.groups, needed
    )
    if need_x and whole is not x:
        (top, left, *_), (height, width) = g.padding, x.shape[2:]
        grad_x = grad_x[:, :, top : top + height, left : left + width]
    return grad_x if need_x else None, grad_weight if need_weight else None


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """What the backward keeps: the output, where it tells the activation's slope, else what it is computed from."""
    x, weight, scale, shift, residual, *flat = inputs
    ctx.call = ConvCall.of(*flat)
    activation = ACTIVATIONS[ctx.call.activation]
    from_output = output_tells(activation, ctx.call.negative_slope)
    again = activation != "none" and not from_output
    ctx.save_for_backward(
        x, weight, scale, output if from_output else None, shift if again else None, residual if again else None
    )


def backward_with(convolve: Callable[..., torch.Tensor]) -> Callable[..., tuple[Any, ...]]:
    """The backward of an op with conv_bn_act's arguments; ``convolve``, such an op, computes z again."""

    def backward(ctx: Any, grad_y: torch.Tensor) -> tuple[Any, ...]:
        x, weight, scale, y, shift, residual = ctx.saved_tensors
        call: ConvCall = ctx.call
        need_x, need_weight, need_scale, need_shift, need_residual = ctx.needs_input_grad[:5]

        def pre_activation() -> torch.Tensor:
            return convolve(x, weight, scale, shift, residual, *call._replace(activation=0).flat())

        grad_z = activation_backward(grad_y, ACTIVATIONS[call.activation], call.negative_slope, y, pre_activation)
        grad_x = grad_weight = grad_scale = grad_shift = None
        if need_x or need_weight or need_scale:
            scaled = weight if scale is None else (weight * scale[:, None, None, None]).to(weight.dtype)
            wanted = need_weight or need_scale
            grad_x, grad_weight = convolution_backward(grad_z, x, scaled, call.geometry, need_x, wanted)
            if need_scale:
                grad_scale = (weight.float() * grad_weight).sum((1, 2, 3))
            if scale is not None and grad_weight is not None:
                grad_weight = (grad_weight * scale[:, None, None, None]).to(weight.dtype)
        if need_shift:
            grad_shift = grad_z.sum((0, 2, 3), dtype=torch.float32)
        found = grad_x, grad_weight if need_weight else None, grad_scale, grad_shift, grad_z if need_residual else None
        return *found, *[None] * len(call.flat())

    return backward


def _fake(x: Any, weight: Any, scale: Any, shift: Any, residual: Any, *flat: Any) -> torch.Tensor:
    return fake_output(x, weight.shape, ConvCall.of(*flat).geometry)


def _fake_packed(
    x: Any, packed: Any, weight_shape: Any, scale: Any, shift: Any, residual: Any, *flat: Any
) -> torch.Tensor:
    return fake_output(x, weight_shape, ConvCall.of(*flat).geometry)


def fake_output(x: torch.Tensor, weight_shape: Any, g: Geometry) -> torch.Tensor:
    """What a convolution of ``x`` gives, without its values: shape, dtype, device and memory format."""
    p, q = output_size(x.shape[2], x.shape[3], weight_shape[2:], g)
    return x.new_empty((x.shape[0], weight_shape[0], p, q)).to(memory_format=suggest_memory_format(x))


def _fake_pack(weight: torch.Tensor, groups: int, algorithm: int) -> torch.Tensor:
    if weight.device.type == "cuda":
        return weight.new_empty(packed_shape(weight.shape, weight.element_size(), groups))
    # The size is the layout's business, and the layout the instruction set's.
    return weight.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.uint8)


def packed_at(k: int, scale: torch.Tensor | None, shift: torch.Tensor | None, parameters: Any = None) -> int:
    """Where the packed weight of ``k`` filters begins in what ``conv_bind`` makes."""
    # csrc/torch/cpu/conv_bn_act.cpp, BoundConv: a header, and the vectors and the constants' rows in whole lines.
    rows = [1 for v in (scale, shift) if v is not None] + ([] if parameters is None else [parameters.shape[0]])
    return 192 + 64 * sum(-(-4 * k * n // 64) for n in rows)


def _fake_bind(packed: torch.Tensor, weight_shape: Any, scale: Any, shift: Any, *rest: Any) -> torch.Tensor:
    parameters = next((v for v in rest if isinstance(v, torch.Tensor)), None)
    return packed.new_empty((packed_at(weight_shape[0], scale, shift, parameters) + packed.shape[0],))


def _fake_pack_bound(weight: torch.Tensor, algorithm: int, *_: Any) -> torch.Tensor:
    return _fake_pack(weight, 1, algorithm)


def fake_bound(
    x: torch.Tensor, bound_conv: torch.Tensor, residual: Any, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """What a bound convolution gives."""
    # The weight's shape is among the bytes, which a trace does not read.
    n, k, p, q = x.shape[0], *(torch.library.get_ctx().new_dynamic_size() for _ in range(3))
    strides = (k * p * q, 1, k * q, k) if suggest_memory_format(x) is torch.channels_last else (k * p * q, p * q, q, 1)
    return x.new_empty_strided((n, k, p, q), strides, dtype=dtype or x.dtype)


def fake_bound_out(x: torch.Tensor, bound_conv: torch.Tensor, residual: Any, out: torch.Tensor, workspace: Any) -> None:
    """Only writes."""


def fake_chain_out(*_: Any) -> None:
    """Only writes."""


def fake_linear(
    x: torch.Tensor, bound_conv: torch.Tensor, residual: Any, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """What a bound linear layer gives."""
    return x.new_empty((*x.shape[:-1], torch.library.get_ctx().new_dynamic_size()), dtype=dtype or x.dtype)


def _native_op(*arguments: Any) -> torch.Tensor:
    return torch.ops.pykernels.conv_bn_act(*arguments)


def _register() -> None:
    torch.library.register_fake("pykernels::conv_bn_act", _fake)
    torch.library.register_fake("pykernels::conv_bn_act_packed", _fake_packed)
    torch.library.register_fake("pykernels::conv_pack", _fake_pack)
    torch.library.register_fake("pykernels::conv_bind", _fake_bind)
    torch.library.register_fake("pykernels::conv_pack_bound", _fake_pack_bound)
    torch.library.register_fake("pykernels::conv_bn_act_bound", fake_bound)
    torch.library.register_fake("pykernels::conv_bn_act_bound_out", fake_bound_out)
    torch.library.register_fake("pykernels::conv_bn_act_chain_out", fake_chain_out)
    torch.library.register_fake("pykernels::linear_bound", fake_linear)
    torch.library.register_fake("pykernels::linear_bound_out", fake_bound_out)
    torch.library.register_autograd("pykernels::conv_bn_act", backward_with(_native_op), setup_context=setup_context)
    register_autocast(_library, "conv_bn_act", casts=(0, 1, 4))


if _native.error is None:
    _library = torch.library.Library("pykernels", "FRAGMENT")
    _register()
