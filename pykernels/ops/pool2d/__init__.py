"""max_pool2d, avg_pool2d, global_avg_pool2d: torch's pools, for inference on a CPU.

What they gain there: a maximum keeps no indices, which nobody reads without a backward pass; contiguous images are
pooled in vectors; and a mean over a map takes one pass. They take int8 too, whose real values are ``scale * (x -
zero_point)``: on one grid, of whose scale a pool need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._arguments import check_bool, check_dtype, check_image, check_scale
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops._op import Op
from pykernels.ops.pool2d import autograd as autograd
from pykernels.ops.pool2d.arguments import PoolCall, check_pool_zero_point, pool_call, sums_fit
from pykernels.ops.pool2d.op import AVG_POOL2D, GLOBAL_AVG_POOL2D, MAX_POOL2D
from pykernels.ops.pool2d.reference import dequantized_mean, reference


def max_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """The largest element of each window; a NaN, where there is one.

    It computes the same as::

        y = F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)

    Args:
        x: (N, C, H, W) or (C, H, W), of any memory format.
        kernel_size: The window, one int or (vertical, horizontal).
        stride: From window to window; ``kernel_size`` if None.
        padding: On each side, at most half the window; takes no part in the maximum.
        dilation: Between the elements of a window.
        ceil_mode: Whether the last window may reach out of the image.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C, P, Q) or (C, P, Q), of ``x``'s dtype and memory format.

    Differentiable any number of times: the backward pass looks for the maxima again, by torch's op. The CPU kernels
    take float32, bfloat16 and int8; elsewhere torch's own op runs, on a GPU too. The result is exact.

    Raises:
        TypeError: An argument has the wrong type, or ``x`` is neither of a floating dtype nor int8.
        ValueError: A shape or a size is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    op = "max_pool2d"
    x = check_image(op, x, int8=True)
    call = pool_call(op, x, False, kernel_size, stride, padding, dilation, ceil_mode)
    return _run(MAX_POOL2D, x, call, backend, lambda ops, x: ops.max_pool2d(x, *call[1:6]))


def avg_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    zero_point: int = 0,
    backend: str | None = None,
) -> Tensor:
    """The average of each window.

    It computes the same as::

        y = F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    Args:
        x: (N, C, H, W) or (C, H, W), of any memory format.
        kernel_size: The window, one int or (vertical, horizontal).
        stride: From window to window; ``kernel_size`` if None.
        padding: Zeros on each side, at most half the window.
        ceil_mode: Whether the last window may reach out of the image.
        count_include_pad: Whether the padding counts in what a sum is divided by.
        divisor_override: What every sum is divided by instead.
        zero_point: The int8 that stands for 0 in an int8 ``x``, and so is the padding; the result is on the same grid.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C, P, Q) or (C, P, Q), of ``x``'s dtype and memory format.

    Differentiable any number of times. The CPU kernels take float32 and bfloat16, and add in float32; elsewhere
    torch's own op runs, on a GPU too. They take int8 as well: the sum of ``x - zero_point`` is exact, and its quotient
    in float32 is rounded to nearest even; then ``zero_point`` is added, and the result saturates. Its bits are the
    same everywhere.

    Raises:
        TypeError: An argument has the wrong type, or ``x`` is neither of a floating dtype nor int8.
        ValueError: A shape or a size is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    op = "avg_pool2d"
    x = check_image(op, x, int8=True)
    call = pool_call(
        op, x, True, kernel_size, stride, padding, 1, ceil_mode, count_include_pad, divisor_override, zero_point
    )
    rest = *call[1:4], *call[5:]
    return _run(AVG_POOL2D, x, call, backend, lambda ops, x: ops.avg_pool2d(x, *rest))


def global_avg_pool2d(
    x: Tensor, keepdim: bool = True, *, scale: float | None = None, zero_point: int = 0, backend: str | None = None
) -> Tensor:
    """The mean of each channel's map.

    It computes the same as::

        y = F.adaptive_avg_pool2d(x, 1)  # without keepdim: x.mean((-2, -1))

    Args:
        x: (N, C, H, W) or (C, H, W), of any memory format.
        keepdim: Whether the map's dimensions stay, with size 1.
        scale: Of an int8 ``x``, for means in float32: ``scale * (mean - zero_point)``, as a classifier takes them.
        zero_point: The int8 that stands for 0 in an int8 ``x``.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C, 1, 1) or (C, 1, 1), of ``x``'s memory format and dtype, or float32 with ``scale``; without ``keepdim``
        (N, C) or (C,).

    Differentiable any number of times. The CPU kernels take float32 and bfloat16, and add in float32, in blocks, so
    that the error does not grow with the map; and int8, whose sums are exact, as with `avg_pool2d`.

    Raises:
        TypeError: ``x`` is neither of a floating dtype nor int8, or another argument has the wrong type.
        ValueError: A shape, ``scale`` or ``zero_point`` is wrong.
        RuntimeError: The requested backend cannot run.
    """
    op = "global_avg_pool2d"
    x = check_image(op, x, int8=True)
    check_bool(op, "keepdim", keepdim)
    check_pool_zero_point(op, x, zero_point)
    call = PoolCall(True, (0, 0), zero_point=zero_point)
    if scale is None:
        y = _run(GLOBAL_AVG_POOL2D, x, call, backend, lambda ops, x: ops.global_avg_pool2d(x, True, zero_point))
    else:
        y = _dequantized_mean(x, check_scale(op, "scale", scale), call, backend)
    return y if keepdim else y.flatten(-3)


def _dequantized_mean(x: Tensor, scale: float, call: PoolCall, backend: str | None) -> Tensor:
    check_dtype("global_avg_pool2d", "x", x, torch.int8, "because scale is given, ")
    where = choose(GLOBAL_AVG_POOL2D, x.device, x.dtype, backend)
    if where == "reference" or not sums_fit(x, call):
        return dequantized_mean(x, scale, call)
    ops = kernels(where, GLOBAL_AVG_POOL2D)
    images = x if x.dim() == 4 else x[None]
    y = ops.int8_global_avg_pool2d(images, scale, call.zero_point, True)
    return y if x.dim() == 4 else y[0]


def _run(op: Op, x: Tensor, call: PoolCall, backend: str | None, native: Callable[[Any, Tensor], Tensor]) -> Tensor:
    where = choose(op, x.device, x.dtype, backend)
    if where == "reference" or not sums_fit(x, call):
        return reference(x, call)
    ops = kernels(where, op)
    return native(ops, x) if x.dim() == 4 else native(ops, x[None])[0]
