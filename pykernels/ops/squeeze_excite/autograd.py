"""What PyTorch needs to know of the native ops: shapes without data, and gradients.

The gradient goes through the formulas again in torch's ops: nothing but the inputs is kept for it, and it can be
differentiated again. Autocast leaves the op alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops._activation import ACTIVATIONS, activation_backward, apply_activation
from pykernels.ops._autocast import cast
from pykernels.ops.int8_matmul.autograd import refuse_backward
from pykernels.ops.squeeze_excite.arguments import NEGATIVE_SLOPE, SqueezeCall


def _fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape).to(memory_format=suggest_memory_format(x))


def _fake_out(*_: Any) -> None:
    """Only writes."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.gate = inputs
    ctx.save_for_backward(*tensors)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.t()
    return y if bias is None else y + bias


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    need_x, need_reduce, need_reduce_bias, need_expand, need_expand_bias = ctx.needs_input_grad[:5]
    dtype = grad_y.dtype
    wide = torch.promote_types(dtype, torch.float32)  # as the kernel computes
    grad_y = cast(wide, grad_y)
    x, *rest = cast(wide, ctx.saved_tensors)
    call = SqueezeCall._make((*rest, ctx.activation, ctx.gate))
    names = ACTIVATIONS[call.activation], ACTIVATIONS[call.gate]
    reduce, expand = call.reduce_weight.flatten(1), call.expand_weight.flatten(1)
    means = x.mean((2, 3))
    inner = _affine(means, reduce, call.reduce_bias)
    hidden = apply_activation(inner, names[0], NEGATIVE_SLOPE)
    outer = _affine(hidden, expand, call.expand_bias)
    grad_outer = activation_backward((grad_y * x).sum((2, 3)), names[1], NEGATIVE_SLOPE, None, lambda: outer)
    grads: list[Tensor | None] = [None] * 7
    if need_x or need_reduce or need_reduce_bias:
        grad_inner = activation_backward(grad_outer @ expand, names[0], NEGATIVE_SLOPE, None, lambda: inner)
        if need_x:
            grad_means = (grad_inner @ reduce) / (x.shape[2] * x.shape[3])
            gates = apply_activation(outer, names[1], NEGATIVE_SLOPE)
            grads[0] = grad_y * gates[:, :, None, None] + grad_means[:, :, None, None]
        if need_reduce:
            grads[1] = (grad_inner.t() @ means).view_as(call.reduce_weight)
        if need_reduce_bias:
            grads[2] = grad_inner.sum(0)
    if need_expand:
        grads[3] = (grad_outer.t() @ hidden).view_as(call.expand_weight)
    if need_expand_bias:
        grads[4] = grad_outer.sum(0)
    return tuple(cast(dtype, grads))


if _native.error is None:
    torch.library.register_fake("pykernels::squeeze_excite", _fake)
    torch.library.register_autograd("pykernels::squeeze_excite", _backward, setup_context=_keep)
    torch.library.register_fake("pykernels::squeeze_excite_out", _fake_out)
    torch.library.register_fake("pykernels::int8_squeeze_excite", _fake)
    torch.library.register_autograd("pykernels::int8_squeeze_excite", refuse_backward("int8_squeeze_excite"))
    torch.library.register_fake("pykernels::int8_squeeze_excite_out", _fake_out)
