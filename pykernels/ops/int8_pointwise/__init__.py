"""int8_quantize, int8_dequantize: between floats and int8, for what stands between int8 layers on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.ops._arguments import refuse_gradient
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.int8_pointwise import autograd as autograd
from pykernels.ops.int8_pointwise import reference
from pykernels.ops.int8_pointwise.arguments import check_dequantize, check_quantize
from pykernels.ops.int8_pointwise.op import INT8_DEQUANTIZE, INT8_QUANTIZE


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
