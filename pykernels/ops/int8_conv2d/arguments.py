"""The arguments of int8_conv2d, checked and refused by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pykernels.ops._arguments import check_device, check_shape, check_tensor, fail
from pykernels.ops.conv_bn_act.arguments import Geometry, check_convolution
from pykernels.ops.int8_matmul.arguments import MAX_K, check_int8

OP = "int8_conv2d"


def check_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    """The geometry of the call; raises where ``x``, ``weight``, ``residual`` and it do not go together."""
    check_int8(OP, "x", x)
    check_int8(OP, "weight", weight)
    g, shape = check_convolution(OP, x, weight, stride, padding, dilation, groups)
    check_device(OP, "weight", weight, x.device)
    _, c, r, s = weight.shape
    if c * r * s > MAX_K:
        expected = f"at most {MAX_K} numbers a filter, beyond which int32 sums may wrap"
        fail(ValueError, OP, "weight", expected, f"shape {tuple(weight.shape)}")
    if residual is not None:
        check_tensor(OP, "residual", residual)
        if residual.dtype != torch.int8 and not residual.is_floating_point():
            fail(TypeError, OP, "residual", "torch.int8 or a floating dtype", residual.dtype)
        check_device(OP, "residual", residual, x.device)
        check_shape(OP, "residual", residual, shape, "the output's shape")
    return g
