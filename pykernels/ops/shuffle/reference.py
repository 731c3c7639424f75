"""The shuffles in plain PyTorch. Every test compares with them, and they run where there is no kernel."""

from __future__ import annotations

from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels.ops.shuffle.arguments import CHANNELS, UP, ShuffleCall


def reference(x: Tensor, call: ShuffleCall) -> Tensor:
    """A shuffle of checked arguments, on any device, of any dtype; differentiable any number of times."""
    (n, c, h, w), k = x.shape, call.k
    if call.kind == CHANNELS:
        y = x.unflatten(1, (k, c // k)).transpose(1, 2)
    elif call.kind == UP:
        y = x.reshape(n, c // (k * k), k, k, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        y = x.reshape(n, c, h // k, k, w // k, k).permute(0, 1, 3, 5, 2, 4)
    return y.reshape(call.result(x.shape)).contiguous(memory_format=suggest_memory_format(x))
