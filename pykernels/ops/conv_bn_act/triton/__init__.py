"""conv_bn_act in Triton: y = cast(act(conv2d(x, weight) * scale[k] + shift[k] + residual)), in one launch, or two.

A matrix product over pixels, filters and (r, s, c) (gemm.py), whose operands are gathered where they are: x with
adjacent channels and the weight as (k, r, s, c), which channels_last tensors have and others are copied to, once. Few
channels a group go without a product (depthwise.py). y is written in x's memory format. Here is what the host
does: layout, tiles (config.py), strides, launches. `int8_conv2d` is the same kernel on integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._triton import device_of, hinted, launch, matrix_precision, triton_op
from pykernels.ops._tuned import tuned
from pykernels.ops.batch_norm_act.triton import batch_norm_statistics
from pykernels.ops.conv_bn_act import statistics
from pykernels.ops.conv_bn_act.arguments import ConvCall, Geometry, output_size
from pykernels.ops.conv_bn_act.autograd import backward_with, setup_context
from pykernels.ops.conv_bn_act.triton.config import Config, config, depthwise_tiles, is_depthwise
from pykernels.ops.conv_bn_act.triton.depthwise import depthwise_kernel
from pykernels.ops.conv_bn_act.triton.gemm import conv_kernel, reduce_kernel
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall

#: The rows and columns of a program of the reduction.
REDUCE_M, REDUCE_N = 32, 64


@triton_op("pykernels::conv_bn_act_triton", call=ConvCall)
def conv_bn_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    *flat: Any,
) -> torch.Tensor:
    """``torch.ops.pykernels.conv_bn_act`` in Triton: the same arguments, checked by the public function."""
    return _convolve(x, weight, scale, shift, residual, ConvCall.of(*flat))


conv_bn_act.register_autograd(backward_with(conv_bn_act), setup_context=setup_context)


@triton_op("pykernels::int8_conv2d_triton", call=Int8ConvCall)
def int8_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    *flat: Any,
) -> torch.Tensor:
    """cast(act(scale[k] * sum + shift[k] + residual_scale * residual) * out_scale), of the exact int32 convolution.

    x, weight: int8, no zero points. scale, shift: (k,) float32. residual: int8 or float, of y's shape. out_dtype: int32
    (the sums, the rest unused), int8 (nearest even, saturated, NaN gives 0), float16, bfloat16 or float32.
    """
    call = Int8ConvCall.of(*flat)
    if any(call.zero_points()):
        raise ValueError(f"pykernels.int8_conv2d: zero points: Triton's kernels have none, got {call.zero_points()}")
    return _convolve(x, weight, scale, shift, residual, call)


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    call: ConvCall | Int8ConvCall,
) -> torch.Tensor:
    g, device = call.geometry, device_of(x)
    if isinstance(call, Int8ConvCall):
        residual_scale, y_scale, out_dtype, precision = call.residual_scale, call.out_scale, call.out_dtype, "ieee"
    else:
        residual_scale, y_scale, out_dtype = 0.0, None, x.dtype
        precision = matrix_precision(x.dtype, call.tf32, device)
    n, h, w = x.shape[0], x.shape[2], x.shape[3]
    k, channels, r, s = weight.shape
    p, q = output_size(h, w, (r, s), g)
    layout = suggest_memory_format(x)
    y = torch.empty((n, k, p, q), dtype=out_dtype, device=x.device, memory_format=layout)
    if n == 0:
        return y
    m, filters, groups = n * p * q, k // g.groups, g.groups
    planes = layout != torch.channels_last
    if residual is not None and not _is_laid_out(residual, planes):
        residual = residual.contiguous(memory_format=layout)
    ends = (x if scale is None else scale.contiguous(), x if shift is None else shift.contiguous(), _given(residual, x))
    y_strides, y_vec = _output_strides(y, planes)
    residual_strides, residual_vec = ((0, 0), 1) if residual is None else _output_strides(residual, planes)
    geometry = (*g.stride, g.padding[0], g.padding[1], *g.dilation)
    places = (*(v // y_vec for v in y_strides), *(v // residual_vec for v in residual_strides))
    scalars = (residual_scale, 1.0 if y_scale is None else y_scale, call.negative_slope)
    p_vec = _divisor(8, p * q)
    finish: dict[str, Any] = {
        "HAS_SCALE": scale is not None, "HAS_SHIFT": shift is not None, "HAS_RESIDUAL": residual is not None,
        "RESCALED": y_scale is not None, "ACTIVATION": ACTIVATIONS[call.activation],
        "OUT": 0 if out_dtype == torch.int32 else 1 if out_dtype == torch.int8 else 2,
        "PLANES": planes, "P_VEC": p_vec, "Y_VEC": y_vec, "RESIDUAL_VEC": residual_vec,
    }  # fmt: skip
    padded = any(v > 0 for v in g.padding)
    each = 16 // x.element_size()

    def is_wide(x_strides: tuple[int, ...], block_m: int) -> bool:
        """Might an offset within a tile not fit 32 bits? A tile begins in one image and may touch some after it."""
        images = block_m // (p * q) + 2
        inner = (k, p * q) if planes else (p * q, k)
        of_x = _extent(x_strides, (images, h, w, x.shape[1]))
        return max(of_x, *(_extent((*t, 1), (images, *inner)) for t in (y_strides, residual_strides))) >= 2**31

    if is_depthwise(channels, filters, groups):
        x_strides, vec = _input_strides(x, each)
        block_m, block_n = depthwise_tiles(hinted(m), k, planes)
        k_vec = _divisor(each, k)
        launch(
            depthwise_kernel, (triton.cdiv(m, block_m) * triton.cdiv(k, block_n),),
            x, weight.contiguous(), y, *ends, m // p_vec, k // k_vec, h, w, p * q // p_vec, q,
            *(v // vec for v in x_strides[:3]), x_strides[3], *geometry, *places, *scalars,
            R=r, S=s, C=channels, MULTIPLIER=filters, BLOCK_M=block_m, BLOCK_N=block_n, PADDED=padded,
            X_VEC=vec, K_VEC=k_vec, WIDE=is_wide(x_strides, block_m), **finish, num_warps=4,
        )  # fmt: skip
        return y

    known = tuned("conv_bn_act", x, (m, filters, channels, r * s, groups))
    c = (
        config(hinted(m), filters, channels, r * s, groups, x.element_size(), y_vec, device)
        if known is None
        else Config(**known)
    )
    # Flat, a few channels are gathered one by one from any strides; else a step reads adjacent ones.
    if x.stride(1) != 1 and x.shape[1] > (4 if c.flat else 1):
        x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    x_strides, vec = _input_strides(x, each)
    vec = _divisor(vec, channels)
    wide = is_wide(x_strides, c.block_m) or c.block_n * channels * r * s >= 2**31
    k_vec = _divisor(each, filters)
    parts = torch.empty(
        (c.splits, m, k) if c.splits > 1 else (0,), device=x.device,
        dtype=torch.int32 if x.dtype == torch.int8 else torch.float32,
    )  # fmt: skip
    launch(
        conv_kernel, (triton.cdiv(m, c.block_m) * triton.cdiv(filters, c.block_n) * groups * c.splits,),
        x, weight, y, parts, *ends, m // p_vec, channels // vec, filters // k_vec, groups, h, w, p * q // p_vec, q,
        *(v // vec for v in x_strides[:3]), x_strides[3], *geometry, *places, *scalars,
        R=r, S=s, C=channels if c.flat else 0, BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k,
        SPLITS=c.splits, FLAT=c.flat, PADDED=padded, EVEN=channels % c.block_k == 0, X_VEC=vec, K_VEC=k_vec, WIDE=wide,
        PRECISION=precision, **finish, num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    if c.splits > 1:
        k_vec = _divisor(each, k)
        launch(
            reduce_kernel, (triton.cdiv(m, REDUCE_M) * triton.cdiv(k, REDUCE_N),),
            parts, y, *ends, m // p_vec, k // k_vec, p * q // p_vec, *places, *scalars,
            BLOCK_M=REDUCE_M, BLOCK_N=REDUCE_N, SPLITS=c.splits, K_VEC=k_vec, WIDE=wide, **finish,
        )  # fmt: skip
    return y


def _given(t: torch.Tensor | None, absent: torch.Tensor) -> torch.Tensor:
    """``t``, or any tensor at all: an operand that the kernel never reads."""
    return absent if t is None else t


def _is_laid_out(t: torch.Tensor, planes: bool) -> bool:
    """Are a residual's planes dense (its images and filters anywhere), or its filters adjacent and (p, q) one axis?"""
    k, p, q = t.shape[1:]
    if planes:
        return (q == 1 or t.stride(3) == 1) and (p == 1 or t.stride(2) == q)
    return (k == 1 or t.stride(1) == 1) and (p == 1 or q == 1 or t.stride(2) == q * t.stride(3))


def _input_strides(x: torch.Tensor, most: int) -> tuple[tuple[int, int, int, int], int]:
    """Strides along n, h, w, c, and what divides the first three; an axis of one element has none to speak of."""
    n, c, h, w = (0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (n, h, w, c), _divisor(most, n, h, w)


def _output_strides(t: torch.Tensor, planes: bool) -> tuple[tuple[int, int], int]:
    """Strides along n and k of planes, else along n and (p, q), and what divides them."""
    n, k, p, q = (0 if size == 1 else stride for size, stride in zip(t.shape, t.stride(), strict=True))
    strides = (n, k if planes else q or p)
    return strides, _divisor(16 // t.element_size(), *strides)


def _divisor(most: int, *numbers: int) -> int:
    """The largest power of two up to ``most`` that divides all numbers."""
    while any(v % most for v in numbers):
        most //= 2
    return most


def _extent(strides: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    return sum(stride * size for stride, size in zip(strides, sizes, strict=True))


@triton_op("pykernels::conv_statistics_triton")
def conv_statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    tf32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.ops.pykernels.conv_statistics`` in Triton: z = conv2d(x, weight) + bias, its channels' mean and variance.

    Two kernels one after the other: z is read once more. (In CUDA C++ the convolution's epilogue leaves them.)
    """
    call = ConvCall(Geometry.of(stride, padding, dilation, groups), 0, 0.0, tf32)
    z = conv_bn_act(x, weight, None, bias, None, *call.flat())
    mean, var = batch_norm_statistics(z, None, None, 0.0)
    return z, mean, var


conv_statistics.register_autograd(statistics.backward, setup_context=statistics.setup_context)
