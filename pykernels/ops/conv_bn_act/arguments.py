"""The arguments of conv_bn_act. This module makes them plain, checks them, and names the wrong one.

What is not a tensor goes as one `ConvCall` to the reference, to autograd, to the shapes and to Triton's launches. What
the convolution is folded with goes as one `BatchNorm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import (
    check_at_least,
    check_floating,
    check_given,
    check_int,
    check_like,
    check_number,
    check_shape,
    check_tensor,
    check_vector,
    fail,
    pair,
)
from pykernels.ops._autocast import autocast_dtype

OP = "conv_bn_act"


class Geometry(NamedTuple):
    """A convolution's geometry as the kernels take it."""

    stride: tuple[int, int]
    #: top, left, bottom, right
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
        """From an op's arguments, which come as lists."""
        return cls(tuple(stride), tuple(padding), tuple(dilation), groups)


class ConvCall(NamedTuple):
    """What the kernels take besides tensors.

    ``torch.ops.pykernels.conv_bn_act`` takes it `flat`, last; `of` makes it of that again. In C++ it is the ConvCall of
    csrc/torch/conv_bn_act.h.
    """

    geometry: Geometry
    #: `activation_code`'s
    activation: int
    negative_slope: float
    tf32: bool = False

    @classmethod
    def of(cls, *flat: Any) -> ConvCall:
        """From the op's arguments behind its tensors."""
        return cls(Geometry.of(*flat[:4]), *flat[4:])

    def flat(self) -> tuple[Any, ...]:
        """In the order of the op's schema."""
        return *self.geometry, *self[1:]


class BatchNorm(NamedTuple):
    """What is folded into the convolution: vectors (K,), and the batch norm's eps."""

    bias: torch.Tensor | None = None
    running_mean: torch.Tensor | None = None
    running_var: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    eps: float = 1e-5


def geometry(
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    op: str = OP,
) -> Geometry:
    """Torch's ``stride``, ``padding``, ``dilation`` and ``groups`` for a ``kernel`` of (R, S), checked.

    ``padding="same"`` follows torch: of an odd total, the larger half goes to the bottom and to the right.
    """
    strides = pair(op, "stride", stride, 1)
    dilations = pair(op, "dilation", dilation, 1)
    check_int(op, "groups", groups, 1)
    if not isinstance(padding, str):
        top, left = pair(op, "padding", padding, 0)
        return Geometry(strides, (top, left, top, left), dilations, groups)
    if padding == "valid":
        return Geometry(strides, (0, 0, 0, 0), dilations, groups)
    if padding != "same":
        fail(ValueError, op, "padding", "an int, two ints, 'same' or 'valid'", repr(padding))
    if strides != (1, 1):
        fail(ValueError, op, "stride", "1, because padding is 'same'", strides)
    rows, columns = dilations[0] * (kernel[0] - 1), dilations[1] * (kernel[1] - 1)
    top, left = rows // 2, columns // 2
    return Geometry(strides, (top, left, rows - top, columns - left), dilations, groups)


def output_size(height: int, width: int, kernel: Sequence[int], g: Geometry, op: str = OP) -> tuple[int, int]:
    """(P, Q) of the output for an input of (``height``, ``width``); ValueError if the kernel does not fit."""
    top, left, bottom, right = g.padding
    p = height + top + bottom - g.dilation[0] * (kernel[0] - 1) - 1
    q = width + left + right - g.dilation[1] * (kernel[1] - 1) - 1
    if p < 0 or q < 0:
        rows, columns = (d * (size - 1) + 1 for d, size in zip(g.dilation, kernel, strict=True))
        expected = f"a padded input no smaller than the dilated kernel ({rows} x {columns})"
        fail(ValueError, op, "x", expected, f"({height + top + bottom} x {width + left + right})")
    return p // g.stride[0] + 1, q // g.stride[1] + 1


def packed_shape(weight: Sequence[int], element: int, groups: int) -> tuple[int, int]:
    """The shape of what ``conv_pack`` makes on CUDA of a ``weight`` (K, C / groups, R, S) of ``element`` bytes each.

    One row a filter, (R, S, C) with channels fastest and padded to 8 or 16 bytes; depthwise one a tap, of all filters.
    """
    k, c, r, s = weight
    each = 16 // element
    if groups > 1 and c == 1:
        return r * s, -(-k // each) * each
    if c == 0 or c * element % 8:
        c = 8 // element if c * element <= 8 else -(-c // each) * each
    return k, -(-r * s * c // each) * each


def padded(x: torch.Tensor, g: Geometry) -> tuple[torch.Tensor, tuple[int, int]]:
    """``x`` and the padding that is left to torch's convolutions, which know no other than a symmetric one."""
    top, left, bottom, right = g.padding
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


def as_image(
    x: torch.Tensor, residual: torch.Tensor | None, **options: int | Sequence[int] | str
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """The sequences ``x`` and ``residual`` as images of height 1, in the same memory, and the geometry for these."""
    check_tensor(OP, "x", x)
    if x.dim() not in (2, 3):
        fail(ValueError, OP, "x", "(N, C, L) or (C, L), because weight is (K, C/groups, S)", f"shape {tuple(x.shape)}")
    if residual is not None:
        check_tensor(OP, "residual", residual)
        if residual.dim() != x.dim():
            expected = f"{x.dim()} dimensions, as x has"
            fail(ValueError, OP, "residual", expected, f"shape {tuple(residual.shape)}")
        residual = residual.unsqueeze(-2)
    pairs = {name: for_height_1(given, 0 if name == "padding" else 1) for name, given in options.items()}
    return x.unsqueeze(-2), residual, pairs


def for_height_1(given: Any, of_height: int) -> Any:
    """An image's argument from a sequence's: a number, or one in a sequence; what is neither is left to `geometry`."""
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 1:
        given = given[0]
    return (of_height, given) if isinstance(given, int) else given


def tf32_allowed(device: torch.device) -> bool:
    """May float32 factors be rounded to tf32 there? As `torch.set_float32_matmul_precision` says; on a CPU never."""
    return device.type == "cuda" and _below_highest()


def _below_highest() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


# A constant of a trace: Dynamo cannot follow it, but compiles again when the setting changes.
_below_highest._dynamo_marked_constant = True  # type: ignore[attr-defined]


def with_channels(x: torch.Tensor, weight: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` and ``weight``; where they have no channels, one of zeros a group, as an empty sum is zero.

    (`F.conv2d` returns a tensor without channels there, whatever the number of filters.)
    """
    if x.shape[-3] > 0:
        return x, weight
    return F.pad(x, (0, 0, 0, 0, 0, groups)), F.pad(weight, (0, 0, 0, 0, 0, 1))


def check_convolution(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Geometry, tuple[int, ...]]:
    """The geometry and the output's shape of a convolution; raises where tensors ``x`` and ``weight`` do not fit."""
    if x.dim() not in (3, 4):
        fail(ValueError, op, "x", "(N, C, H, W) or (C, H, W)", f"shape {tuple(x.shape)}")
    if weight.dim() != 4:
        fail(ValueError, op, "weight", "(K, C/groups, R, S)", f"shape {tuple(weight.shape)}")
    k, c, r, s = weight.shape
    *batch, channels, height, width = x.shape
    g = geometry((r, s), stride, padding, dilation, groups, op)
    if k == 0 or r == 0 or s == 0:
        fail(ValueError, op, "weight", "K, R and S of at least 1", f"shape {tuple(weight.shape)}")
    if k % groups:
        fail(ValueError, op, "weight", f"K divisible by groups = {groups}", f"K = {k}")
    if c * groups != channels:
        expected = f"{c * groups} channels (weight {tuple(weight.shape)}, groups = {groups})"
        fail(ValueError, op, "x", expected, f"{channels} in shape {tuple(x.shape)}")
    if height == 0 or width == 0:
        fail(ValueError, op, "x", "H and W of at least 1", f"shape {tuple(x.shape)}")
    return g, (*batch, k, *output_size(height, width, (r, s), g, op))


def conv_call(
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    activation: str,
    **numbers: float,
) -> ConvCall:
    """The call, checked; raises where ``x``, ``weight``, ``residual`` and the rest do not go together.

    ``numbers`` are `ConvCall`'s own.
    """
    code = activation_code(OP, activation)
    for name, number in numbers.items():
        check_number(OP, name, number)
    check_tensor(OP, "x", x)
    check_floating(OP, "x", x)
    any_float = autocast_dtype(x) is not None  # it makes them one dtype, as it does for F.conv2d
    check_like(OP, "weight", weight, x, any_float=any_float)
    g, shape = check_convolution(OP, x, weight, stride, padding, dilation, groups)
    if residual is not None:
        check_like(OP, "residual", residual, x, any_float=any_float)
        check_shape(OP, "residual", residual, shape, "the output's shape")
    return ConvCall(g, code, tf32=tf32_allowed(x.device), **numbers)


def check_batch_norm(x: torch.Tensor, k: int, norm: BatchNorm, op: str = OP) -> None:
    """Raises where a vector does not have length ``k``, or comes without the others that it needs."""
    bias, mean, var, weight, shift, eps = norm
    check_vector(op, "bias", bias, k, x)
    check_vector(op, "running_mean", mean, k, x)
    check_vector(op, "running_var", var, k, x)
    check_vector(op, "bn_weight", weight, k, x)
    check_vector(op, "bn_bias", shift, k, x)
    if mean is None or var is None:
        check_number(op, "eps", eps)
        check_given(op, "running_var", var, "running_mean", mean)
        check_given(op, "running_mean", mean, "running_var", var)
        check_given(op, "running_mean", mean, "bn_weight", weight)
        check_given(op, "running_mean", mean, "bn_bias", shift)
    else:
        check_at_least(op, "eps", eps, 0)
