"""The work of one call: the operations that it does, and the bytes that it needs from memory or from a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pykernels import _native
from pykernels.ops.conv_bn_act.arguments import geometry

#: Of a Winograd algorithm, by the number that `conv_algorithm` gives it: outputs a side of its tiles, products a tile.
_WINOGRAD = {1: (4, 36), 2: (2, 16)}


@dataclass(frozen=True)
class Work:
    """Operations, two for each multiplication, and bytes of float32: weights, input and output.

    An LSTM reads its recurrent weights at every time step, and they count as often. The transforms of Winograd's
    algorithm are not counted, only its products.
    """

    flops: int
    bytes: int


@torch.no_grad()
def count(model: nn.Module, x: Tensor, flops: int) -> tuple[Work, Work]:
    """The work of plain PyTorch and of `pykernels` on ``x``; ``flops`` are those of direct convolutions."""
    words = x.numel() + sum(p.numel() for p in model.parameters())
    saved = more = 0

    def see(module: nn.Module, inputs: tuple[Tensor, ...], result: Any) -> None:
        nonlocal words, saved, more
        x, y = inputs[0], result[0] if isinstance(result, tuple) else result
        if isinstance(module, nn.Embedding):  # only the rows that are looked up
            words += x.numel() * module.embedding_dim - module.weight.numel()
        elif isinstance(module, nn.LSTM):
            steps = x.shape[1 if module.batch_first else 0]
            words += (steps - 1) * sum(
                p.numel() for name, p in module.named_parameters() if name.startswith("weight_hh")
            )
        elif isinstance(module, nn.Conv2d):
            operations, weights = _winograd(module, x, y)
            saved += operations
            more += weights

    hooks = [m.register_forward_hook(see) for m in model.modules()]
    try:
        result = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    words += (result[0] if isinstance(result, tuple) else result).numel()
    return Work(flops, 4 * words), Work(flops - saved, 4 * (words + more))


def _winograd(conv: nn.Conv2d, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Operations that our convolution saves against the direct one, and weights that it reads besides."""
    k, c = conv.weight.shape[:2]
    shape = geometry(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    algorithm = _native.introspect().conv_algorithm(tuple(x.shape), tuple(conv.weight.shape), *shape)
    if algorithm not in _WINOGRAD:
        return 0, 0
    m, products = _WINOGRAD[algorithm]
    n, _, p, q = y.shape
    tiles = n * -(-p // m) * -(-q // m)
    return 2 * c * k * (9 * n * p * q - products * tiles), (products - 9) * c * k
