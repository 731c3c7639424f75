"""The arguments of the ops on each element of int8 tensors. This module checks them and names the wrong one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels.ops._arguments import check_dtype, check_floating, check_int, check_number, check_tensor, fail

#: Scales beyond which a float32 scale, or its inverse, would be subnormal or infinite.
_LEAST, _LARGEST = 2.0**-126, 2.0**126


def check_scale(op: str, argument: str, scale: Any) -> float:
    """``scale``, if it is a number that float32 holds, and its inverse too."""
    check_number(op, argument, scale)
    if not _LEAST <= scale <= _LARGEST:
        fail(ValueError, op, argument, "a number of 2^-126 to 2^126", scale)
    return float(scale)


def check_zero_point(op: str, argument: str, zero_point: Any) -> int:
    """``zero_point``, if it is an int8."""
    check_int(op, argument, zero_point, -128)
    if zero_point > 127:
        fail(ValueError, op, argument, "an int in [-128, 127]", zero_point)
    return int(zero_point)


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
