"""What PyTorch needs to know of the native shuffles: shapes without data, and gradients, which are shuffled back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels import _native
from pykernels.ops.shuffle.arguments import CHANNELS, DOWN, UP, ShuffleCall
from pykernels.ops.shuffle.reference import reference


def inverse(call: ShuffleCall, channels: int) -> ShuffleCall:
    """What undoes ``call`` on an image of so many channels."""
    if call.kind == CHANNELS:
        return call._replace(k=max(channels // call.k, 1))
    return call._replace(kind=UP if call.kind == DOWN else DOWN)


def _fake(x: Tensor, kind: int, k: int) -> Tensor:
    return x.new_empty(ShuffleCall(kind, k).result(x.shape)).to(memory_format=suggest_memory_format(x))


def _fake_out(x: list[Tensor], call: Tensor, out: Tensor) -> None:
    """Only writes."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *call = inputs
    ctx.back = inverse(ShuffleCall(*call), x.shape[1])


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    return shuffled(grad_y, ctx.back), None, None


def shuffled(x: Tensor, call: ShuffleCall) -> Tensor:
    """By the native op, or for more streams than it takes by plain PyTorch."""
    return torch.ops.pykernels.shuffle(x, *call) if call.is_ours() else reference(x, call)


def _register() -> None:
    torch.library.register_fake("pykernels::shuffle", _fake)
    torch.library.register_autograd("pykernels::shuffle", _backward, setup_context=_keep)
    torch.library.register_fake("pykernels::shuffle_out", _fake_out)


if _native.error is None:
    _register()
