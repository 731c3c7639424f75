"""The arguments of the ops on each element of int8 tensors. This module checks them and names the wrong one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import (
    check_device,
    check_dtype,
    check_floating,
    check_number,
    check_scale,
    check_shape,
    check_tensor,
    check_vector,
    check_zero_point,
    fail,
)


class AddCall(NamedTuple):
    """What int8_add takes besides its tensors; as float64 numbers it is what ``int8_add_out`` takes."""

    a_scale: float
    b_scale: float
    out_scale: float
    a_zero_point: int = 0
    b_zero_point: int = 0
    out_zero_point: int = 0
    #: `activation_code`'s
    activation: int = 0
    negative_slope: float = 0.01


class AffineCall(NamedTuple):
    """What int8_affine takes besides its tensors; as float64 numbers it is what ``int8_affine_out`` takes."""

    out_scale: float
    out_zero_point: int = 0
    #: `activation_code`'s
    activation: int = 0
    negative_slope: float = 0.01


def check_int8(op: str, argument: str, q: object) -> Tensor:
    """``q``, if it is a dense int8 tensor."""
    tensor = check_tensor(op, argument, q)
    check_dtype(op, argument, tensor, torch.int8)
    return tensor


def check_quantize(op: str, x: object, scale: Any, zero_point: Any) -> tuple[Tensor, float, int]:
    """What int8_quantize takes."""
    tensor = check_tensor(op, "x", x)
    check_floating(op, "x", tensor)
    return tensor, check_scale(op, "scale", scale), check_zero_point(op, "zero_point", zero_point)


def check_dequantize(op: str, q: object, scale: Any, zero_point: Any, dtype: Any) -> tuple[Tensor, float, int]:
    """What int8_dequantize takes."""
    tensor = check_int8(op, "q", q)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        fail(TypeError, op, "dtype", "a floating dtype", dtype)
    return tensor, check_scale(op, "scale", scale), check_zero_point(op, "zero_point", zero_point)


def check_add(
    op: str, a: object, b: object, scales: tuple[Any, Any, Any], zero_points: tuple[Any, Any, Any], activation: str,
    negative_slope: Any,
) -> AddCall:  # fmt: skip
    """What int8_add takes; ``scales`` and ``zero_points`` are those of a, of b and of the sum."""
    tensor = check_int8(op, "a", a)
    other = check_int8(op, "b", b)
    check_device(op, "b", other, tensor.device, "a's")
    check_shape(op, "b", other, tensor.shape, "a's shape")
    names = ("a", "b", "out")
    a_scale, b_scale, out_scale = (check_scale(op, f"{n}_scale", s) for n, s in zip(names, scales, strict=True))
    a_zero, b_zero, out_zero = (
        check_zero_point(op, f"{n}_zero_point", z) for n, z in zip(names, zero_points, strict=True)
    )
    code = activation_code(op, activation)
    check_number(op, "negative_slope", negative_slope)
    return AddCall(a_scale, b_scale, out_scale, a_zero, b_zero, out_zero, code, float(negative_slope))


def check_lookup(op: str, q: object, table: object) -> None:
    """Raises unless these are what int8_lookup takes."""
    tensor, entries = check_int8(op, "q", q), check_int8(op, "table", table)
    check_device(op, "table", entries, tensor.device, "q's")
    check_shape(op, "table", entries, (256,))


def check_affine(
    op: str, x: object, scale: object, shift: object, out_scale: Any, out_zero_point: Any, activation: str,
    negative_slope: Any,
) -> tuple[list[Tensor], AffineCall]:  # fmt: skip
    """What int8_affine takes; ``x`` is one tensor or several."""
    several = isinstance(x, list | tuple)
    pieces = [check_int8(op, f"x[{i}]" if several else "x", t) for i, t in enumerate(x if several else (x,))]  # type: ignore[arg-type, var-annotated]
    if not pieces:
        fail(ValueError, op, "x", "at least one tensor", "none")
    first = pieces[0]
    if first.dim() not in (2, 3, 4):
        fail(ValueError, op, "x", "(N, C), (N, C, L) or (N, C, H, W)", f"shape {tuple(first.shape)}")
    for i, t in enumerate(pieces):
        check_device(op, f"x[{i}]", t, first.device, "x[0]'s")
        expected = (first.shape[0], t.shape[1] if t.dim() > 1 else 0, *first.shape[2:])
        check_shape(op, f"x[{i}]", t, expected, "but for the channels x[0]'s shape")
    channels = sum(t.shape[1] for t in pieces)
    for name, value in (("scale", scale), ("shift", shift)):
        check_vector(op, name, check_tensor(op, name, value), channels, first)
    out_scale, out_zero = (
        check_scale(op, "out_scale", out_scale),
        check_zero_point(op, "out_zero_point", out_zero_point),
    )
    code = activation_code(op, activation)
    check_number(op, "negative_slope", negative_slope)
    return pieces, AffineCall(out_scale, out_zero, code, float(negative_slope))
