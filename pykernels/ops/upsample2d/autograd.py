"""What PyTorch needs to know of the native upsample2d: shapes without data, and gradients, which are torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops.upsample2d.arguments import UpsampleCall, scaled
from pykernels.ops.upsample2d.reference import backward


def _fake(x: Tensor, size: Any, scale_h: float, scale_w: float, mode: int) -> Tensor:
    shape = (*x.shape[:2], *(size or scaled(x.shape, (scale_h, scale_w))))
    if suggest_memory_format(x) is not torch.channels_last:
        return x.new_empty(shape)
    c, p, q = shape[1:]
    return x.new_empty_strided(shape, (c * p * q, 1, q * c, c))


def _fake_bound(x: Tensor, size: Any, call: Tensor) -> Tensor:
    # The scales are among the numbers, which a trace does not read.
    return _fake(x, size or [torch.library.get_ctx().new_dynamic_size() for _ in range(2)], 0, 0, 0)


def _fake_out(x: Tensor, call: Tensor, out: Tensor) -> None:
    """Only writes."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, scale_h, scale_w, mode = inputs
    height, width = output.shape[2:]
    ctx.shape, ctx.call = x.shape, UpsampleCall((height, width), (scale_h, scale_w), mode)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    return backward(grad_y, ctx.shape, ctx.call), None, None, None, None


def _register() -> None:
    torch.library.register_fake("pykernels::upsample2d", _fake)
    torch.library.register_autograd("pykernels::upsample2d", _backward, setup_context=_keep)
    torch.library.register_fake("pykernels::upsample2d_bound", _fake_bound)
    torch.library.register_fake("pykernels::upsample2d_out", _fake_out)


if _native.error is None:
    _register()
