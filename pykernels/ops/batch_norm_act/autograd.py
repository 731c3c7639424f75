"""What PyTorch needs to know of the batch-norm ops: shapes without data, gradients, and plain PyTorch for a CPU.

With x^ = (x - mean) / sqrt(var + eps), z = x^ * weight + bias + residual, y = act(z), dz = grad_y act'(z) and m values
of a channel, mean and var being those of x:

    grad_residual = dz,  grad_bias = sum(dz),  grad_weight = sum(dz x^)
    grad_x = weight / sqrt(var + eps) * (dz - grad_bias / m - x^ grad_weight / m)

One op computes all four. The gradient of that (create_graph) goes through the same formulas in aten ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops._activation import ACTIVATIONS, activation_backward, apply_activation, is_signed, output_tells
from pykernels.ops.batch_norm_act.arguments import BatchNormCall

_DIMS = (0, 2, 3)


def has_mask_of(activation: str, residual: torch.Tensor | None) -> bool:
    """Is the sign of the sum kept for the backward, a bit each? Without a residual it can be had from x again."""
    return residual is not None and is_signed(activation)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _channels(t: torch.Tensor) -> torch.Tensor:
    return t[:, None, None]


# Plain PyTorch: the CPU's kernels, and the backward pass that can be differentiated again.


def _normalised(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float) -> torch.Tensor:
    return (x - _channels(mean)) * _channels(torch.rsqrt(var + eps))


def _affine(xhat: torch.Tensor, weight: Any, bias: Any, residual: Any) -> torch.Tensor:
    z = xhat if weight is None else xhat * _channels(weight)
    z = z if bias is None else z + _channels(bias)
    return z if residual is None else z + residual


def _gradients(
    dz: torch.Tensor, xhat: torch.Tensor, var: torch.Tensor, weight: Any, call: BatchNormCall
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_bias, grad_weight = dz.sum(_DIMS), (dz * xhat).sum(_DIMS)
    scale = torch.rsqrt(var + call.eps)
    scale = scale if weight is None else scale * weight
    inner = dz
    if call.training:
        m = max(xhat.shape[0] * xhat.shape[2] * xhat.shape[3], 1)
        inner = dz - _channels(grad_bias / m) - xhat * _channels(grad_weight / m)
    return inner * _channels(scale), grad_weight, grad_bias


def _statistics_on_cpu(x: torch.Tensor, running_mean: Any, running_var: Any, momentum: float) -> Any:
    wide = x.to(_wide(x.dtype))
    values = x.shape[0] * x.shape[2] * x.shape[3]
    if values == 0:
        return wide.new_zeros(x.shape[1]), wide.new_zeros(x.shape[1])
    var, mean = torch.var_mean(wide, _DIMS, correction=0)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_((var * values / (values - 1)).to(running_var.dtype), momentum)
    return mean, var


_BITS = (1, 2, 4, 8, 16, 32, 64, 128)


def _rows(t: torch.Tensor, last: bool) -> torch.Tensor:
    """(rows, elements that are adjacent in memory), padded to whole bytes of bits."""
    rows = t.permute(0, 2, 3, 1).flatten(0, 2) if last else t.flatten(2).flatten(0, 1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8))


def _act_on_cpu(
    x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: Any, bias: Any, residual: Any, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    call = BatchNormCall(*rest)
    activation, format = ACTIVATIONS[call.activation], suggest_memory_format(x)
    z = _affine(_normalised(x.to(_wide(x.dtype)), mean, var, call.eps), weight, bias, residual)
    y = apply_activation(z, activation, call.negative_slope).to(x.dtype).contiguous(memory_format=format)
    mask = x.new_empty(0, dtype=torch.uint8)
    if has_mask_of(activation, residual):
        bits = _rows(~(z <= 0), format == torch.channels_last).to(torch.uint8).unflatten(1, (-1, 8))
        mask = (bits * bits.new_tensor(_BITS)).sum(2, dtype=torch.uint8).flatten()
    return y, mask


def _backward_on_cpu(
    grad_y: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: Any, bias: Any, residual: Any,
    mask: torch.Tensor, *rest: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    call, need_residual = BatchNormCall(*rest[:-1]), rest[-1]
    activation, slope, format = ACTIVATIONS[call.activation], call.negative_slope, suggest_memory_format(x)
    xhat = _normalised(x.to(_wide(x.dtype)), mean, var, call.eps)
    if mask.numel():
        n, c, h, w = x.shape
        last = format == torch.channels_last
        positive = (mask[:, None] & mask.new_tensor(_BITS)).ne(0).view(_rows(x, last).shape)
        if last:
            positive = positive[:, :c].unflatten(0, (n, h, w)).permute(0, 3, 1, 2)
        else:
            positive = positive[:, : h * w].unflatten(0, (n, c)).unflatten(2, (h, w))
        z = positive.to(xhat.dtype) * 2 - 1  # its sign is all that matters
    else:
        z = _affine(xhat, weight, bias, residual)
    y = apply_activation(z, activation, slope) if output_tells(activation, slope) else None
    dz = activation_backward(grad_y.to(xhat.dtype), activation, slope, y, lambda: z)
    grad_x, grad_weight, grad_bias = _gradients(dz, xhat, var, weight, call)
    grad_residual = dz.to(x.dtype, copy=True).contiguous(memory_format=format) if need_residual else x.new_empty(0)
    return grad_x.to(x.dtype).contiguous(memory_format=format), grad_residual, grad_weight, grad_bias


# Shapes.


def _like(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape).to(memory_format=suggest_memory_format(x))


def _fake_statistics(x: torch.Tensor, running_mean: Any, running_var: Any, momentum: float) -> Any:
    return tuple(x.new_empty(x.shape[1], dtype=_wide(x.dtype)) for _ in range(2))


def _fake_act(x: torch.Tensor, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, *rest: Any) -> Any:
    size: Any = 0
    if has_mask_of(ACTIVATIONS[BatchNormCall(*rest).activation], residual):
        n, c, h, w = x.shape
        last = suggest_memory_format(x) == torch.channels_last
        rows, inner = (n * h * w, c) if last else (n * c, h * w)
        size = rows * ((inner + 7) // 8)
    return _like(x), x.new_empty(size, dtype=torch.uint8)


def _fake_bind(channels: int, scale: Any, shift: Any, parameters: Any, *_: Any) -> torch.Tensor:
    # csrc/torch/cpu/batch_norm_act.cpp, BoundNorm: a header, and rows of numbers.
    rows = sum(v is not None for v in (scale, shift)) + (0 if parameters is None else parameters.shape[0])
    return torch.empty(40 + 4 * channels * rows, dtype=torch.uint8)


def _fake_bound(x: list[torch.Tensor], bound_norm: torch.Tensor, residual: Any) -> torch.Tensor:
    first, channels = x[0], sum(t.shape[1] for t in x)
    y = first.new_empty((first.shape[0], channels, *first.shape[2:]))
    return y.to(memory_format=suggest_memory_format(first)) if first.dim() == 4 else y


def _fake_bound_out(x: Any, bound_norm: Any, residual: Any, out: torch.Tensor) -> None:
    return None


def _fake_backward(grad_y: Any, x: torch.Tensor, *rest: Any) -> Any:
    vectors = (x.new_empty(x.shape[1], dtype=_wide(x.dtype)) for _ in range(2))
    return _like(x), _like(x) if rest[-1] else x.new_empty(0), *vectors


# Gradients.


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps for the backward what `batch_norm_act_backward` takes."""
    x, mean, var, weight, bias, residual, *rest = inputs
    y, mask = output
    call = ctx.call = BatchNormCall(*rest)
    activation = ACTIVATIONS[call.activation]
    ctx.mark_non_differentiable(mask)
    ctx.set_materialize_grads(False)
    # y is alive anyway where a convolution follows. It is for the second derivative; the first one takes the mask.
    tells = output_tells(activation, call.negative_slope)
    needs_residual = activation != "none" and not (has_mask_of(activation, residual) and tells)
    ctx.save_for_backward(x, mean, var, weight, bias, residual if needs_residual else None, mask, y if tells else None)


def backward_by(op: Callable[[], Any]) -> Callable[..., tuple[Any, ...]]:
    """The gradient of a batch_norm_act, by the batch_norm_act_backward that ``op()`` is."""

    def backward(ctx: Any, grad_y: torch.Tensor | None, _: Any) -> tuple[Any, ...]:
        if grad_y is None:
            return (None,) * (6 + len(ctx.call))
        x, mean, var, weight, bias, residual, mask, y = ctx.saved_tensors
        need_x, _, _, need_weight, need_bias, need_residual = ctx.needs_input_grad[:6]
        if torch.is_grad_enabled():
            grad_x, grad_residual, grad_weight, grad_bias = _differentiable(
                grad_y, x, mean, var, weight, bias, residual, y, ctx.call
            )
        else:
            separate = need_residual and ACTIVATIONS[ctx.call.activation] != "none"
            grad_x, grad_residual, grad_weight, grad_bias = op()(
                grad_y, x, mean, var, weight, bias, residual, mask, *ctx.call, separate
            )
            if need_residual and not separate:
                grad_residual = grad_y
        return (
            grad_x if need_x else None,
            None,
            None,
            grad_weight if need_weight else None,
            grad_bias if need_bias else None,
            grad_residual if need_residual else None,
            *[None] * len(ctx.call),
        )

    return backward


def _differentiable(
    grad_y: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: Any, bias: Any, residual: Any,
    y: Any, call: BatchNormCall,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    wide = x.to(_wide(x.dtype))
    if call.training:  # as functions of x
        var, mean = torch.var_mean(wide, _DIMS, correction=0)
    xhat = _normalised(wide, mean, var, call.eps)
    dz = activation_backward(
        grad_y.to(wide.dtype), ACTIVATIONS[call.activation], call.negative_slope,
        None if y is None else y.to(wide.dtype), lambda: _affine(xhat, weight, bias, residual),
    )  # fmt: skip
    grad_x, grad_weight, grad_bias = _gradients(dz, xhat, var, weight, call)
    return grad_x.to(x.dtype), dz.to(x.dtype), grad_weight, grad_bias


def _register() -> None:
    torch.library.register_fake("pykernels::batch_norm_statistics", _fake_statistics)
    torch.library.register_fake("pykernels::batch_norm_act", _fake_act)
    torch.library.register_fake("pykernels::batch_norm_act_backward", _fake_backward)
    torch.library.register_fake("pykernels::batch_norm_act_bind", _fake_bind)
    torch.library.register_fake("pykernels::batch_norm_act_bound", _fake_bound)
    torch.library.register_fake("pykernels::batch_norm_act_bound_out", _fake_bound_out)
    torch.library.register_autograd(
        "pykernels::batch_norm_act",
        backward_by(lambda: torch.ops.pykernels.batch_norm_act_backward),
        setup_context=setup_context,
    )
    _library.impl("batch_norm_statistics", _statistics_on_cpu, "CPU")
    _library.impl("batch_norm_act", _act_on_cpu, "CPU")
    _library.impl("batch_norm_act_backward", _backward_on_cpu, "CPU")


if _native.error is None:
    _library = torch.library.Library("pykernels", "FRAGMENT")
    _register()
