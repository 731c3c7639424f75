"""The arguments of int8_conv2d. This module checks them, names the wrong one, and makes an `Int8ConvCall`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import check_device, check_number, check_shape, check_tensor, fail
from pykernels.ops.conv_bn_act.arguments import Geometry, check_convolution
from pykernels.ops.int8_matmul.arguments import MAX_K, check_int8

OP = "int8_conv2d"


class Int8ConvCall(NamedTuple):
    """What the kernels take besides tensors; ``torch.ops.pykernels.int8_conv2d`` takes it `flat`, last."""

    residual_scale: float
    geometry: Geometry
    #: `activation_code`'s
    activation: int
    negative_slope: float
    out_scale: float
    out_dtype: torch.dtype

    @classmethod
    def of(cls, residual_scale: float, *flat: Any) -> Int8ConvCall:
        """From the op's arguments behind its tensors."""
        return cls(residual_scale, Geometry.of(*flat[:4]), *flat[4:])

    def flat(self) -> tuple[Any, ...]:
        """In the order of the op's schema."""
        return self.residual_scale, *self.geometry, *self[2:]


def int8_conv_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str,
    out_dtype: torch.dtype,
    **numbers: float,
) -> Int8ConvCall:
    """The call, checked but for ``out_dtype``; raises where ``x``, ``weight``, ``residual`` and the rest don't fit.

    ``numbers`` are `Int8ConvCall`'s own.
    """
    code = activation_code(OP, activation)
    for name, number in numbers.items():
        check_number(OP, name, number)
        numbers[name] = float(number)
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
    return Int8ConvCall(geometry=g, activation=code, out_dtype=out_dtype, **numbers)
