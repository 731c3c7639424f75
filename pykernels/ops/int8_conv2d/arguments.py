"""The arguments of int8_conv2d. This module checks them, names the wrong one, and makes an `Int8ConvCall`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import check_device, check_int, check_number, check_shape, check_tensor, fail
from pykernels.ops.conv_bn_act.arguments import Geometry, check_convolution
from pykernels.ops.int8_matmul.arguments import MAX_K, MAX_K_WITH_ZERO_POINT, check_int8

OP = "int8_conv2d"
ZERO_POINTS = ("x_zero_point", "residual_zero_point", "out_zero_point")


class Int8ConvCall(NamedTuple):
    """What the kernels take besides tensors; ``torch.ops.pykernels.int8_conv2d`` takes it `flat`, last."""

    residual_scale: float
    geometry: Geometry
    #: `activation_code`'s
    activation: int
    negative_slope: float
    out_scale: float
    out_dtype: torch.dtype
    x_zero_point: int = 0
    residual_zero_point: int = 0
    out_zero_point: int = 0

    @classmethod
    def of(cls, residual_scale: float, *flat: Any) -> Int8ConvCall:
        """From the op's arguments behind its tensors."""
        return cls(residual_scale, Geometry.of(*flat[:4]), *flat[4:])

    def flat(self) -> tuple[Any, ...]:
        """In the order of the op's schema."""
        return self.residual_scale, *self.geometry, *self[2:]

    def zero_points(self) -> tuple[int, int, int]:
        """Of x, of the residual and of the output."""
        return self.x_zero_point, self.residual_zero_point, self.out_zero_point


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
    zero_points: tuple[int, int, int],
    **numbers: float,
) -> Int8ConvCall:
    """The call, checked but for ``out_dtype``; raises where ``x``, ``weight``, ``residual`` and the rest don't fit.

    ``zero_points`` are x's, the residual's and the output's; ``numbers`` are `Int8ConvCall`'s own.
    """
    for name, zero in zip(ZERO_POINTS, zero_points, strict=True):
        check_int(OP, name, zero, -128)
        if zero > 127:
            fail(ValueError, OP, name, "an int in [-128, 127]", zero)
    if residual is None and zero_points[1] != 0:
        fail(ValueError, OP, "residual", "a tensor, because residual_zero_point is given", None)
    if out_dtype != torch.int8 and zero_points[2] != 0:
        fail(ValueError, OP, "out_dtype", "torch.int8, because out_zero_point is given", out_dtype)
    code = activation_code(OP, activation)
    for name, number in numbers.items():
        check_number(OP, name, number)
        numbers[name] = float(number)
    check_int8(OP, "x", x)
    check_int8(OP, "weight", weight)
    g, shape = check_convolution(OP, x, weight, stride, padding, dilation, groups)
    check_device(OP, "weight", weight, x.device)
    _, c, r, s = weight.shape
    limit, with_zero_point = (MAX_K, "") if zero_points[0] == 0 else (MAX_K_WITH_ZERO_POINT, " with a zero point")
    if c * r * s > limit:
        expected = f"at most {limit} numbers a filter{with_zero_point}, beyond which int32 sums may wrap"
        fail(ValueError, OP, "weight", expected, f"shape {tuple(weight.shape)}")
    if residual is not None:
        check_tensor(OP, "residual", residual)
        if residual.dtype != torch.int8 and not residual.is_floating_point():
            fail(TypeError, OP, "residual", "torch.int8 or a floating dtype", residual.dtype)
        check_device(OP, "residual", residual, x.device)
        check_shape(OP, "residual", residual, shape, "the output's shape")
        if residual.dtype != torch.int8 and zero_points[1] != 0:
            fail(TypeError, OP, "residual", "torch.int8, because residual_zero_point is given", residual.dtype)
    x_zero, residual_zero, out_zero = zero_points
    return Int8ConvCall(
        geometry=g, activation=code, out_dtype=out_dtype, x_zero_point=x_zero, residual_zero_point=residual_zero,
        out_zero_point=out_zero, **numbers,
    )  # fmt: skip
