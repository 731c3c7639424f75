"""What PyTorch needs to know of the native pools: shapes without data, and gradients.

The gradient is that of torch's own op, which looks for the maxima again: nothing but x is kept for it, and it can be
differentiated again. Autocast leaves the pools alone, as it leaves torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops.int8_matmul.autograd import refuse_backward
from pykernels.ops.pool2d.arguments import PoolCall, output_size

aten = torch.ops.aten


def _empty(x: Tensor, call: PoolCall) -> Tensor:
    made = x.new_empty((*x.shape[:2], *output_size(x.shape, call)))
    last = suggest_memory_format(x) is torch.channels_last
    p, q = made.shape[2:]
    c = made.shape[1]
    return made if not last else x.new_empty_strided(made.shape, (c * p * q, 1, q * c, c))


def _fake_max(x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    return _empty(x, PoolCall(False, kernel_size, stride, padding, dilation, ceil_mode))


def _fake_avg(
    x: Tensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int,
    zero_point: int = 0,
) -> Tensor:  # fmt: skip
    return _empty(x, PoolCall(True, kernel_size, stride, padding, ceil_mode=ceil_mode))


def _fake_global(x: Tensor, keepdim: bool, zero_point: int = 0) -> Tensor:
    return _empty(x, PoolCall(True, (0, 0))) if keepdim else x.new_empty(x.shape[:2])


def _fake_int8_global(x: Tensor, scale: float, zero_point: int, keepdim: bool) -> Tensor:
    made = _fake_global(x, keepdim)
    return made.new_empty_strided(made.shape, made.stride(), dtype=torch.float32)


def _fake_bound(x: Tensor, call: Tensor) -> Tensor:
    # The window's size is among the numbers, which a trace does not read.
    n, c = x.shape[:2]
    p, q = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    strides = (c * p * q, 1, c * q, c) if suggest_memory_format(x) is torch.channels_last else (c * p * q, p * q, q, 1)
    return x.new_empty_strided((n, c, p, q), strides)


def _fake_out(*_: Any) -> None:
    """Only writes."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.rest = inputs
    ctx.save_for_backward(x)


def _backward_max(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    _, indices = aten.max_pool2d_with_indices(x.detach(), *ctx.rest)
    return aten.max_pool2d_with_indices_backward(grad_y, x, *ctx.rest, indices), *[None] * len(ctx.rest)


def _backward_avg(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    *rest, divisor, _ = ctx.rest
    return aten.avg_pool2d_backward(grad_y, x, *rest, divisor or None), *[None] * len(ctx.rest)


def _backward_global(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    grad_y = grad_y if grad_y.dim() == 4 else grad_y[:, :, None, None]
    return (grad_y / (x.shape[2] * x.shape[3])).expand_as(x), *[None] * len(ctx.rest)


def _register() -> None:
    for name, fake, backward in (
        ("max_pool2d", _fake_max, _backward_max),
        ("avg_pool2d", _fake_avg, _backward_avg),
        ("global_avg_pool2d", _fake_global, _backward_global),
    ):
        torch.library.register_fake(f"pykernels::{name}", fake)
        torch.library.register_autograd(f"pykernels::{name}", backward, setup_context=_keep)
    torch.library.register_fake("pykernels::pool2d_bound", _fake_bound)
    torch.library.register_fake("pykernels::pool2d_out", _fake_out)
    torch.library.register_fake("pykernels::int8_global_avg_pool2d", _fake_int8_global)
    torch.library.register_autograd("pykernels::int8_global_avg_pool2d", refuse_backward("global_avg_pool2d"))
    torch.library.register_fake("pykernels::int8_global_avg_pool2d_out", _fake_out)


if _native.error is None:
    _register()
