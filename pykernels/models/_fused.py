"""A convolution and a batch norm that belong to a model, run as one op."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pykernels.nn import ConvBNAct2d
from pykernels.nn._replaceable import is_replaceable
from pykernels.nn._unfolded import is_unfolded
from pykernels.ops._activation import apply_activation


class Fused:
    """``act(bn(conv(x)) + residual)`` in one pass, for a ``conv`` and a ``bn`` that another module has registered.

    torchvision's state_dict has ``conv1.weight`` beside ``bn1.weight``. `pykernels.nn.ConvBNAct2d`, whose children are
    ``conv`` and ``bn``, cannot have these names. If we mapped the keys on saving and loading, the parameters' names,
    the attribute ``model.conv1`` and every error of a strict load would still differ from torchvision's.

    So the model owns plain torch modules. This object is not an `nn.Module`, is registered nowhere, and runs a
    ConvBNAct2d over the same two modules. Nothing is kept twice: moving, loading, freezing and switching modes act on
    the one pair, and ConvBNAct2d packs again when it sees that they changed. Copies and pickles keep the sharing.

    The owner passes its current members at each call, so it may replace one. What cannot be fused (hooks that have to
    run, a module of another kind or with its own forward, a symbolic trace) runs as the plain modules.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, activation: str) -> None:
        self.activation = activation
        self.block = ConvBNAct2d.from_torch(conv, bn, activation)

    def __call__(
        self, x: Tensor, conv: nn.Module, bn: nn.Module | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """``x``: (N, C, H, W); ``residual``: the shape of the result."""
        if isinstance(x, torch.fx.Proxy) or is_unfolded() or not _fusible(conv, bn):
            y = conv(x) if bn is None else bn(conv(x))
            return apply_activation(y if residual is None else y + residual, self.activation, 0.01)
        if self.block.conv is not conv or self.block.bn is not bn:
            self.block = ConvBNAct2d.from_torch(conv, bn, self.activation)
        return self.block(x, residual)


def _fusible(conv: nn.Module, bn: nn.Module | None) -> bool:
    convolves = is_replaceable(conv, nn.Conv2d, "forward", "_conv_forward")
    return convolves and (bn is None or is_replaceable(bn, nn.BatchNorm2d))
