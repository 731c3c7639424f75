"""int8_quantize, int8_dequantize, int8_add, int8_lookup, int8_affine: what stands between int8 layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pykernels.ops._arguments import refuse_gradient
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.int8_pointwise import autograd as autograd
from pykernels.ops.int8_pointwise import reference
from pykernels.ops.int8_pointwise.arguments import (
    check_add,
    check_affine,
    check_dequantize,
    check_lookup,
    check_quantize,
)
from pykernels.ops.int8_pointwise.op import INT8_ADD, INT8_AFFINE, INT8_DEQUANTIZE, INT8_LOOKUP, INT8_QUANTIZE


def int8_quantize(x: Tensor, scale: float, zero_point: int = 0, *, backend: str | None = None) -> Tensor:
    """The int8 numbers that are nearest to a tensor: those of a grid that is known.

    It computes the same as::

        q = ((x.float() * (1 / scale)).round() + zero_point).clamp(-128, 127).to(torch.int8)  # NaN as 0

    `quantize_int8` also finds the grid.

    Args:
        x: A tensor of any shape, memory format and floating dtype.
        scale: The distance between two numbers of the grid, 2^-126 to 2^126.
        zero_point: The int8 that stands for 0.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``x``'s shape and memory format, int8. The real value of an element is ``scale * (q - zero_point)``.

    The inverse of ``scale`` is rounded to float32 once; each operation is a rounding of its own to float32 (float64 for
    a float64 ``x``), to nearest even. The result has the reference's bits on every instruction set. The CPU kernels
    take float32 and bfloat16; elsewhere plain PyTorch runs. There is no gradient.

    Raises:
        TypeError: ``x`` is not a tensor of a floating dtype, or another argument has the wrong type.
        ValueError: ``scale``, ``zero_point`` or ``backend`` is wrong; the message names it.
        RuntimeError: The requested backend cannot run, or ``x`` requires a gradient, which quantisation lacks.
    """
    x, scale, zero_point = check_quantize("int8_quantize", x, scale, zero_point)
    refuse_gradient("int8_quantize", x=x)
    where = choose(INT8_QUANTIZE, x.device, x.dtype, backend)
    if where == "reference":
        return reference.quantize(x, scale, zero_point)
    return kernels(where, INT8_QUANTIZE).int8_quantize(x, scale, zero_point)


def int8_dequantize(
    q: Tensor, scale: float, zero_point: int = 0, dtype: torch.dtype = torch.float32, *, backend: str | None = None
) -> Tensor:
    """The real values of an int8 tensor.

    It computes the same as::

        x = ((q.float() - zero_point) * scale).to(dtype)

    Args:
        q: An int8 tensor of any shape and memory format.
        scale: The distance between two numbers of the grid, 2^-126 to 2^126.
        zero_point: The int8 that stands for 0.
        dtype: The result's, a floating dtype.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``q``'s shape and memory format, of ``dtype``.

    It is computed in float32 (float64 for a float64 result), and has the reference's bits on every instruction set. The
    CPU kernels make float32 and bfloat16; elsewhere plain PyTorch runs.

    Raises:
        TypeError: ``q`` is not an int8 tensor, or another argument has the wrong type.
        ValueError: ``scale``, ``zero_point`` or ``backend`` is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    q, scale, zero_point = check_dequantize("int8_dequantize", q, scale, zero_point, dtype)
    where = choose(INT8_DEQUANTIZE, q.device, dtype, backend)
    if where == "reference":
        return reference.dequantize(q, scale, zero_point, dtype)
    return kernels(where, INT8_DEQUANTIZE).int8_dequantize(q, scale, zero_point, dtype)


def int8_add(
    a: Tensor,
    b: Tensor,
    a_scale: float,
    b_scale: float,
    out_scale: float,
    a_zero_point: int = 0,
    b_zero_point: int = 0,
    out_zero_point: int = 0,
    activation: str = "none",
    negative_slope: float = 0.01,
    *,
    backend: str | None = None,
) -> Tensor:
    """The sum of two int8 tensors of different grids, with an activation, on a third grid.

    It computes the same as::

        t = act((a.float() - a_zero_point) * a_scale + (b.float() - b_zero_point) * b_scale)
        y = ((t * (1 / out_scale)).round() + out_zero_point).clamp(-128, 127).to(torch.int8)

    Args:
        a: An int8 tensor of any shape and memory format.
        b: Of ``a``'s shape, int8, of any memory format; ``a``'s is the fastest.
        a_scale: Of ``a``'s grid, 2^-126 to 2^126; its real values are ``a_scale * (a - a_zero_point)``.
        b_scale: Of ``b``'s grid.
        out_scale: Of the result's grid.
        a_zero_point: The int8 that stands for 0 in ``a``.
        b_zero_point: That of ``b``.
        out_zero_point: That of the result.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``a``'s shape and memory format, int8.

    Each operation is a rounding of its own to float32, in the order of the formula, and the inverse of ``out_scale`` is
    rounded once. With an activation of none, relu, relu6 or leaky_relu the result has the reference's bits on every
    instruction set. (For any other one of a single tensor, take `int8_lookup`.) There is no gradient.

    Raises:
        TypeError: ``a`` or ``b`` is not an int8 tensor, or another argument has the wrong type.
        ValueError: A shape, a device, a scale, a zero point, ``activation`` or ``backend`` is wrong; the message names
            it.
        RuntimeError: The requested backend cannot run.
    """
    scales, zero_points = (a_scale, b_scale, out_scale), (a_zero_point, b_zero_point, out_zero_point)
    call = check_add("int8_add", a, b, scales, zero_points, activation, negative_slope)
    where = choose(INT8_ADD, a.device, a.dtype, backend)
    if where == "reference":
        return reference.add(a, b, call)
    return kernels(where, INT8_ADD).int8_add(a, b, *call)


def int8_lookup(q: Tensor, table: Tensor, *, backend: str | None = None) -> Tensor:
    """A function of each element that a table gives: an activation, a change of the grid, or both in one.

    It computes the same as::

        y = table[q.long() + 128]

    Args:
        q: An int8 tensor of any shape and memory format.
        table: (256,), int8: the results for -128 to 127.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``q``'s shape and memory format, int8.

    The table of a function ``f`` between two grids::

        x = int8_dequantize(torch.arange(-128, 128, dtype=torch.int8), scale, zero_point)
        table = int8_quantize(f(x), out_scale, out_zero_point)

    There is no gradient.

    Raises:
        TypeError: ``q`` or ``table`` is not an int8 tensor.
        ValueError: ``table`` has another shape or device, or ``backend`` is wrong.
        RuntimeError: The requested backend cannot run.
    """
    check_lookup("int8_lookup", q, table)
    where = choose(INT8_LOOKUP, q.device, q.dtype, backend)
    if where == "reference":
        return reference.lookup(q, table)
    return kernels(where, INT8_LOOKUP).int8_lookup(q, table)


def int8_affine(
    x: Tensor | Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    out_scale: float,
    out_zero_point: int = 0,
    activation: str = "none",
    negative_slope: float = 0.01,
    *,
    backend: str | None = None,
) -> Tensor:
    """A factor and a summand for each channel of int8 tensors, with an activation: a batch norm between two grids.

    It computes the same as::

        t = act(torch.cat(x, 1).float() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))
        y = ((t * (1 / out_scale)).round() + out_zero_point).clamp(-128, 127).to(torch.int8)

    A batch norm of ``x_scale * (x - x_zero_point)`` has its factor ``f`` times ``x_scale`` as ``scale``, and its
    summand less ``x_zero_point * x_scale * f`` as ``shift``.

    Args:
        x: An int8 tensor (N, C), (N, C, L) or (N, C, H, W) of any memory format, or several, which are joined along
            their channels. Each may have its own grid.
        scale: (C,), of a floating dtype; float32 of it is computed with.
        shift: (C,), the same.
        out_scale: Of the result's grid, 2^-126 to 2^126.
        out_zero_point: The int8 that stands for 0 in the result.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, C) and the rest, in the memory format of the first ``x``, int8.

    Each operation is a rounding of its own to float32, in the order of the formula, and the inverse of ``out_scale`` is
    rounded once. With an activation of none, relu, relu6 or leaky_relu the result has the reference's bits on every
    instruction set. There is no gradient.

    Raises:
        TypeError: A tensor has another dtype, or an argument has the wrong type.
        ValueError: A shape, a device, ``out_scale``, ``out_zero_point``, ``activation`` or ``backend`` is wrong; the
            message names it.
        RuntimeError: The requested backend cannot run, or a tensor requires a gradient, which quantisation lacks.
    """
    pieces, call = check_affine("int8_affine", x, scale, shift, out_scale, out_zero_point, activation, negative_slope)
    refuse_gradient("int8_affine", scale=scale, shift=shift)
    where = choose(INT8_AFFINE, pieces[0].device, pieces[0].dtype, backend)
    if where == "reference":
        return reference.affine(pieces, scale, shift, call)
    return kernels(where, INT8_AFFINE).int8_affine(pieces, scale.float(), shift.float(), *call)
