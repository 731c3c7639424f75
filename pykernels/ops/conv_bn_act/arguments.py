"""The arguments of conv_bn_act: torch's geometry made plain, and every argument checked and refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

OP = "conv_bn_act"


class Geometry(NamedTuple):
    """A convolution's geometry as the kernels take it."""

    stride: tuple[int, int]
    #: top, left, bottom, right
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


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
    strides = _pair(op, "stride", stride, 1)
    dilations = _pair(op, "dilation", dilation, 1)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"pykernels.{op}: groups: expected a positive int, got {groups!r}")
    if not isinstance(padding, str):
        top, left = _pair(op, "padding", padding, 0)
        return Geometry(strides, (top, left, top, left), dilations, groups)
    if padding == "valid":
        return Geometry(strides, (0, 0, 0, 0), dilations, groups)
    if padding != "same":
        raise ValueError(f"pykernels.{op}: padding: expected an int, two ints, 'same' or 'valid', got {padding!r}")
    if strides != (1, 1):
        raise ValueError(f"pykernels.{op}: padding: 'same' needs stride 1, got stride {strides}")
    rows, columns = dilations[0] * (kernel[0] - 1), dilations[1] * (kernel[1] - 1)
    top, left = rows // 2, columns // 2
    return Geometry(strides, (top, left, rows - top, columns - left), dilations, groups)


def output_size(height: int, width: int, kernel: Sequence[int], g: Geometry, op: str = OP) -> tuple[int, int]:
    """(P, Q) of the output for an input of (``height``, ``width``); ValueError if the kernel does not fit."""
    top, left, bottom, right = g.padding
    p = height + top + bottom - g.dilation[0] * (kernel[0] - 1) - 1
    q = width + left + right - g.dilation[1] * (kernel[1] - 1) - 1
    if p < 0 or q < 0:
        raise ValueError(
            f"pykernels.{op}: x: expected a padded input no smaller than the dilated kernel "
            f"({g.dilation[0] * (kernel[0] - 1) + 1} x {g.dilation[1] * (kernel[1] - 1) + 1}), "
            f"got ({height + top + bottom} x {width + left + right})"
        )
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


def tf32_allowed(device: torch.device) -> bool:
    """May float32 factors be rounded to tf32 there? As `torch.set_float32_matmul_precision` says; on a CPU never."""
    return device.type == "cuda" and _below_highest()


def _below_highest() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


# A constant of a trace: Dynamo cannot follow it, but compiles anew when the setting changes.
_below_highest._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_autocast(device: torch.device) -> bool:
    """Is autocast on for ``device``? (Of "meta" PyTorch refuses to say.)"""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def with_channels(x: torch.Tensor, weight: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` and ``weight``; where they have no channels, one of zeros a group, as an empty sum is zero.

    (`F.conv2d` returns a tensor without channels there, whatever the number of filters.)
    """
    if x.shape[-3] > 0:
        return x, weight
    return F.pad(x, (0, 0, 0, 0, 0, groups)), F.pad(weight, (0, 0, 0, 0, 0, 1))


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
    for name, tensor in (("x", x), ("weight", weight), ("residual", residual)):
        if not isinstance(tensor, torch.Tensor) and not (name == "residual" and tensor is None):
            raise TypeError(f"pykernels.{OP}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tensor is not None and tensor.layout != torch.strided:
            raise ValueError(f"pykernels.{OP}: {name}: expected a dense tensor, got layout {tensor.layout}")
    if not x.is_floating_point():
        raise TypeError(f"pykernels.{OP}: x: expected a floating dtype, got {x.dtype}")
    if x.dim() not in (3, 4):
        raise ValueError(f"pykernels.{OP}: x: expected (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"pykernels.{OP}: weight: expected (K, C/groups, R, S), got shape {tuple(weight.shape)}")
    g = geometry(weight.shape[2:], stride, padding, dilation, groups)
    k, c = weight.shape[0], x.shape[-3]
    if k == 0 or weight.shape[2] == 0 or weight.shape[3] == 0:
        raise ValueError(f"pykernels.{OP}: weight: expected K, R and S of at least 1, got shape {tuple(weight.shape)}")
    if k % groups:
        raise ValueError(f"pykernels.{OP}: weight: expected K divisible by groups = {groups}, got K = {k}")
    if weight.shape[1] * groups != c:
        raise ValueError(
            f"pykernels.{OP}: x: expected {weight.shape[1] * groups} channels (weight {tuple(weight.shape)}, "
            f"groups = {groups}), got {c} in shape {tuple(x.shape)}"
        )
    if x.shape[-2] == 0 or x.shape[-1] == 0:
        raise ValueError(f"pykernels.{OP}: x: expected H and W of at least 1, got shape {tuple(x.shape)}")
    _check_like(x, "weight", weight)
    p, q = output_size(x.shape[-2], x.shape[-1], weight.shape[2:], g)
    if residual is not None:
        _check_like(x, "residual", residual)
        expected = (*x.shape[:-3], k, p, q)
        if residual.dim() != len(expected) or any(a != b for a, b in zip(residual.shape, expected, strict=True)):
            raise ValueError(
                f"pykernels.{OP}: residual: expected the output's shape {tuple(expected)}, got {tuple(residual.shape)}"
            )
    return g


def _check_like(x: torch.Tensor, name: str, tensor: torch.Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"pykernels.{OP}: {name}: expected x's device {x.device}, got {tensor.device}")
    # Autocast makes them one dtype, as it does for F.conv2d.
    if tensor.dtype != x.dtype and not (is_autocast(x.device) and tensor.is_floating_point()):
        raise TypeError(f"pykernels.{OP}: {name}: expected x's dtype {x.dtype}, got {tensor.dtype}")


def check_number(op: str, name: str, value: object) -> None:
    """Raises where ``value`` is no number."""
    # Asked the other way round, for Dynamo's symbolic floats have no type of ours.
    if value is None or isinstance(value, str | bytes | list | tuple | dict):
        raise TypeError(f"pykernels.{op}: {name}: expected a number, got {type(value).__name__}")


def check_channels(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    bn_weight: torch.Tensor | None,
    bn_bias: torch.Tensor | None,
    eps: float,
) -> None:
    """Raises where a vector of length ``k`` is not one, or is there without its fellows."""
    check_number(OP, "eps", eps)
    given = {
        "bias": bias, "running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight,
        "bn_bias": bn_bias,
    }  # fmt: skip
    for name, tensor in given.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"pykernels.{OP}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise ValueError(f"pykernels.{OP}: {name}: expected a dense tensor, got layout {tensor.layout}")
        if tensor.dim() != 1 or tensor.shape[0] != k:
            raise ValueError(f"pykernels.{OP}: {name}: expected shape ({k},), got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"pykernels.{OP}: {name}: expected a floating dtype, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"pykernels.{OP}: {name}: expected x's device {x.device}, got {tensor.device}")
    if running_mean is None or running_var is None:
        for name in ("running_mean", "running_var", "bn_weight", "bn_bias"):
            if given[name] is not None:
                missing = "running_var" if name == "running_mean" else "running_mean"
                raise ValueError(f"pykernels.{OP}: {missing}: expected a tensor, because {name} is given; got None")
    elif not eps >= 0:
        raise ValueError(f"pykernels.{OP}: eps: expected a number >= 0, got {eps}")


def _pair(op: str, argument: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    if isinstance(value, int):
        pair: tuple[int, ...] = (value, value)
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, int) for v in value):
        pair = (value[0], value[0]) if len(value) == 1 else tuple(value)
    else:
        raise TypeError(f"pykernels.{op}: {argument}: expected an int or two ints, got {value!r}")
    if len(pair) != 2 or pair[0] < least or pair[1] < least:
        raise ValueError(f"pykernels.{op}: {argument}: expected an int or two ints >= {least}, got {value!r}")
    return pair
