"""The arguments of the pools. This module checks them, names the wrong one, and makes a `PoolCall`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pykernels.ops._arguments import check_bool, check_int, check_zero_point, fail, pair

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]


class PoolCall(NamedTuple):
    """What a pool takes besides the image; `numbers` is what ``pool2d_out`` takes (csrc/torch/cpu/pool2d.cpp)."""

    average: bool
    #: (0, 0): the whole map
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    #: 0: none
    divisor: int = 0
    #: of int8
    zero_point: int = 0

    def numbers(self) -> list[int]:
        """All of them, in a row."""
        average, *pairs = self[:5]
        return [int(average), *(n for two in pairs for n in two), *(int(n) for n in self[5:])]


def pool_call(
    op: str, x: Tensor, average: bool, kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair,
    dilation: IntOrPair, ceil_mode: bool, count_include_pad: bool = True, divisor_override: int | None = None,
    zero_point: int = 0,
) -> PoolCall:  # fmt: skip
    """The call, checked against itself and the image."""
    size = pair(op, "kernel_size", kernel_size, 1)
    pads, steps = pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    if divisor_override is not None:
        check_int(op, "divisor_override", divisor_override, -(2**31))
        if divisor_override == 0:
            fail(ValueError, op, "divisor_override", "an int other than 0", 0)
    check_bool(op, "ceil_mode", ceil_mode)
    check_bool(op, "count_include_pad", count_include_pad)
    if x.shape[-3] < 1:
        fail(ValueError, op, "x", "at least 1 channel", f"shape {tuple(x.shape)}")  # as torch does
    steps_between = size if stride is None else pair(op, "stride", stride, 1)
    check_pool_zero_point(op, x, zero_point)
    divisor = divisor_override or 0
    call = PoolCall(average, size, steps_between, pads, steps, ceil_mode, count_include_pad, divisor, zero_point)
    spans = [(n - 1) * d + 1 for n, d in zip(size, steps, strict=True)]
    if any(2 * p > n for p, n in zip(pads, spans, strict=True)):
        fail(ValueError, op, "padding", f"at most half the window, {tuple(n // 2 for n in spans)}", pads)
    if min(output_size(x.shape, call)) < 1:
        fail(ValueError, op, "x", f"an image no smaller than the window {tuple(spans)}", f"shape {tuple(x.shape)}")
    return call


def check_pool_zero_point(op: str, x: Tensor, zero_point: object) -> None:
    """Raises unless ``zero_point`` is an int8, and 0 for an image of floats."""
    if check_zero_point(op, "zero_point", zero_point) != 0 and x.dtype != torch.int8:
        fail(ValueError, op, "zero_point", f"0, because x is {x.dtype}", zero_point)


def sums_fit(x: Tensor, call: PoolCall) -> bool:
    """Whether the kernels take a window so large (kInt8PoolWindow of csrc/include/pykernels/pool2d.h)."""
    if x.dtype != torch.int8 or not call.average:
        return True
    h, w = x.shape[-2:] if call.kernel_size == (0, 0) else call.kernel_size
    return h * w <= 2**23


def output_size(shape: Sequence[int], call: PoolCall) -> Pair:
    """(P, Q) of a pool of an image of ``shape``, by torch's rule."""
    if call.kernel_size == (0, 0):
        return 1, 1
    found = []
    for size, taps, stride, pad, dilation in zip(shape[-2:], *call[1:5], strict=True):
        room = size + 2 * pad - dilation * (taps - 1) - 1
        count = (room + (stride - 1 if call.ceil_mode else 0)) // stride + 1
        # The last window has to begin in the image, or in the padding before it.
        found.append(count - 1 if call.ceil_mode and (count - 1) * stride >= size + pad else count)
    return found[0], found[1]
