"""A fused step as torch runs it: the convolution with the batch norm folded in, then the rest in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import Geometry


def norm_into(*given: Any, out: Tensor) -> Tensor:
    """Batch norm of float32 x with the given mean, variance, weight, bias and eps, into ``out``, which may be x."""
    x, mean, var, weight, bias, eps = given
    unused = {"save_mean": torch.empty(0), "save_invstd": torch.empty(0)}
    torch.ops.aten.native_batch_norm.out(x, weight, bias, mean, var, False, 0.0, eps, out=out, **unused)
    return out


def batch_norm_(x: Tensor, *rest: Any) -> Tensor:
    """`norm_into` x itself."""
    return norm_into(x, *rest, out=x)


class TorchConv:
    """``act(conv2d(x, weight, bias) + residual)`` by torch's own functions; ``act`` may write to what it is given."""

    def __init__(self, geometry: Geometry, act: Callable[[Tensor], Tensor] | None) -> None:
        top, left, bottom, right = geometry.padding
        self.pad = None if (top, left) == (bottom, right) else (left, right, top, bottom)
        self.rest = geometry.stride, (0, 0) if self.pad else (top, left), geometry.dilation, geometry.groups
        self.act = act

    def bind(
        self, weight: Tensor, norm: Sequence[Tensor | None], eps: float, channels_last: bool
    ) -> Callable[..., Tensor]:
        """What takes x and the residual; the weight is laid out as x is.

        ``norm``: the convolution's bias, the running mean and variance, the batch norm's weight and bias.
        """
        bias, mean, var, bn_weight, bn_bias = norm
        scale, shift = fold_batch_norm(bias, mean, var, bn_weight, bn_bias, eps)
        if scale is not None:
            weight = (weight * scale.reshape(-1, 1, 1, 1)).to(weight.dtype)
        shift = None if shift is None else shift.to(weight.dtype)
        weight = weight.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        pad, rest, act = self.pad, self.rest, self.act

        def run(x: Tensor, residual: Tensor | None) -> Tensor:
            y = torch.conv2d(x if pad is None else F.pad(x, pad), weight, shift, *rest)
            if residual is not None:
                y.add_(residual)
            return y if act is None else act(y)

        return run
