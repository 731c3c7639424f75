"""The one form of argument checks: every op, module and backend refuses an argument here, in the same words.

    pykernels.<op>: <argument>: expected <what>, got <what came>

- TypeError: the wrong type. It is not a tensor, not a number, not a pair, or a tensor of the wrong dtype.
- ValueError: the right type with a wrong value. A shape, a layout, a device, a number out of range, an unknown name.
- RuntimeError: the arguments are fine, but the op cannot run. A backend is missing, or the op has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def fail(error: type[Exception], op: str, argument: str, expected: str, got: object) -> NoReturn:
    """Raises ``error`` in this form."""
    raise error(f"pykernels.{op}: {argument}: expected {expected}, got {got}")


def check_tensor(op: str, argument: str, value: object) -> Tensor:
    """``value``, if it is a dense tensor."""
    if not isinstance(value, Tensor):
        fail(TypeError, op, argument, "a tensor", type(value).__name__)
    if value.layout != torch.strided:
        fail(ValueError, op, argument, "a dense tensor", f"layout {value.layout}")
    return value


def check_floating(op: str, argument: str, value: Tensor) -> None:
    """TypeError unless ``value`` is of a floating dtype."""
    if not value.is_floating_point():
        fail(TypeError, op, argument, "a floating dtype", value.dtype)


def check_dtype(op: str, argument: str, value: Tensor, dtype: torch.dtype, whose: str = "") -> None:
    """TypeError unless ``value`` is of ``dtype``; ``whose`` says where that comes from: ``"x's dtype "``."""
    if value.dtype != dtype:
        fail(TypeError, op, argument, f"{whose}{dtype}", value.dtype)


def check_device(op: str, argument: str, value: Tensor, device: torch.device, whose: str = "x's") -> None:
    """ValueError unless ``value`` is on ``device``."""
    if value.device != device:
        fail(ValueError, op, argument, f"{whose} device {device}", value.device)


def check_like(
    op: str, argument: str, value: object, x: Tensor, *, any_float: bool = False, whose: str = "x's"
) -> Tensor:
    """``value``, if it is a dense tensor of the device and dtype of ``x``, which ``whose`` names.

    Any floating dtype will do if ``any_float``.
    """
    tensor = check_tensor(op, argument, value)
    check_device(op, argument, tensor, x.device, whose)
    if any_float:
        check_floating(op, argument, tensor)
    else:
        check_dtype(op, argument, tensor, x.dtype, f"{whose} dtype ")
    return tensor


def check_shape(op: str, argument: str, value: Tensor, shape: tuple[int, ...], what: str = "shape") -> None:
    """ValueError unless ``value`` has ``shape``; ``what`` names it: ``"the output's shape"``."""
    if torch.compiler.is_compiling():  # a traced size compares with a number, but not inside a tuple
        same = value.dim() == len(shape) and all(a == b for a, b in zip(value.shape, shape, strict=True))
    else:
        same = value.shape == shape
    if not same:
        fail(ValueError, op, argument, f"{what} {tuple(shape)}", tuple(value.shape))


def check_vector(op: str, argument: str, value: Tensor | None, n: int, x: Tensor) -> None:
    """Raises unless ``value`` is None or a dense tensor (n,) of any floating dtype on ``x``'s device."""
    if value is not None:
        check_like(op, argument, value, x, any_float=True)
        check_shape(op, argument, value, (n,))


def check_given(op: str, argument: str, value: object, because: str, other: object) -> None:
    """ValueError if ``value`` is None although the argument called ``because`` is given."""
    if value is None and other is not None:
        fail(ValueError, op, argument, f"a tensor, because {because} is given", None)


# These are the types that are not numbers. Dynamo's symbolic numbers have no type that we could name.
_NO_NUMBERS = (str, bytes, list, tuple, dict)
_NO_INTS = (bool, float, *_NO_NUMBERS)


def check_number(op: str, argument: str, value: Any) -> None:
    """TypeError unless ``value`` is a number."""
    if value is None or isinstance(value, _NO_NUMBERS):
        fail(TypeError, op, argument, "a number", type(value).__name__)


def check_int(op: str, argument: str, value: Any, least: int) -> None:
    """TypeError unless ``value`` is an int, ValueError unless it is ``least`` at least."""
    if value is None or isinstance(value, _NO_INTS):
        fail(TypeError, op, argument, "an int", type(value).__name__)
    if value < least:
        fail(ValueError, op, argument, f"an int >= {least}", value)


def check_at_least(op: str, argument: str, value: Any, least: float) -> None:
    """TypeError unless ``value`` is a number, ValueError unless it is ``least`` at least; a NaN is not."""
    check_number(op, argument, value)
    if not value >= least:
        fail(ValueError, op, argument, f"a number >= {least}", value)


def check_scale(op: str, argument: str, scale: Any) -> float:
    """``scale``, if it is a number that float32 holds, and its inverse too."""
    check_number(op, argument, scale)
    # Numbers of a trace: a global one would be a symbol.
    if not 2.0**-126 <= scale <= 2.0**126:
        fail(ValueError, op, argument, "a number of 2^-126 to 2^126", scale)
    return float(scale)


def check_zero_point(op: str, argument: str, zero_point: Any) -> int:
    """``zero_point``, if it is an int8."""
    check_int(op, argument, zero_point, -128)
    if zero_point > 127:
        fail(ValueError, op, argument, "an int in [-128, 127]", zero_point)
    return int(zero_point)


def check_bool(op: str, argument: str, value: object) -> None:
    """TypeError unless ``value`` is a bool. A true value of another type is often a mistake."""
    if type(value) is not bool:
        fail(TypeError, op, argument, "a bool", type(value).__name__)


def check_choice(op: str, argument: str, value: object, choices: Sequence[object]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"pykernels.{op}: {argument}: expected one of {', '.join(map(str, choices))}; got {value!r}")


def check_floating_or_int8(op: str, argument: str, value: Tensor) -> None:
    """TypeError unless ``value`` is of a floating dtype or int8."""
    if not value.is_floating_point() and value.dtype != torch.int8:
        fail(TypeError, op, argument, "a floating dtype or torch.int8", value.dtype)


def check_image(op: str, x: Any, *, int8: bool = False) -> Tensor:
    """``x``, (N, C, H, W) or (C, H, W) of a floating dtype, or int8 where that will do, with H and W of 1 at least."""
    x = check_tensor(op, "x", x)
    (check_floating_or_int8 if int8 else check_floating)(op, "x", x)
    if x.dim() not in (3, 4):
        fail(ValueError, op, "x", "(N, C, H, W) or (C, H, W)", f"shape {tuple(x.shape)}")
    if x.shape[-1] < 1 or x.shape[-2] < 1:
        fail(ValueError, op, "x", "H and W of at least 1", f"shape {tuple(x.shape)}")
    return x


#: The largest stride, padding or dilation. The kernels refuse more, and torch's own message names no argument.
_LARGEST = 2**31


def pair(op: str, argument: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """``value``, one int or (vertical, horizontal), as two ints of ``least`` at least."""
    if isinstance(value, int):
        both: tuple[int, ...] = (value, value)
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, int) for v in value):
        both = (value[0], value[0]) if len(value) == 1 else tuple(value)
    else:
        fail(TypeError, op, argument, "an int or two ints", repr(value))
    if len(both) != 2 or both[0] < least or both[1] < least:
        fail(ValueError, op, argument, f"an int or two ints >= {least}", repr(value))
    if both[0] > _LARGEST or both[1] > _LARGEST:
        fail(ValueError, op, argument, f"an int or two ints <= {_LARGEST}", repr(value))
    return both


def refuse_gradient(op: str, **tensors: Tensor | None) -> None:
    """RuntimeError where autograd would record a gradient of one of the ``tensors``: the op has none."""
    if not torch.is_grad_enabled():
        return
    for argument, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(
                f"pykernels.{op}: {argument}: expected a tensor that requires no gradient, because quantisation has "
                "none; got one that does: detach it, or call under torch.no_grad()"
            )
