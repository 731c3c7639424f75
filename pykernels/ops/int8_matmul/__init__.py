"""int8_matmul: int8 x int8 -> exact int32, with scales, zero points, bias and activation on the way out."""

from __future__ import annotations

import torch

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import check_device, check_floating, check_tensor, fail, refuse_gradient
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.int8_matmul import autograd as autograd
from pykernels.ops.int8_matmul.arguments import (
    Epilogue,
    check_bias,
    check_int8,
    check_out_dtype,
    check_product,
    vector,
    widest,
)
from pykernels.ops.int8_matmul.op import INT8_MATMUL, INT8_MATMUL_SCALED, QUANTIZE_INT8
from pykernels.ops.int8_matmul.reference import quantize_int8_reference, reference

__all__ = ["int8_linear", "int8_matmul", "quantize_int8"]


def int8_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    a_scale: torch.Tensor | None = None,
    b_scale: torch.Tensor | None = None,
    a_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype = torch.int32,
    backend: str | None = None,
) -> torch.Tensor:
    """Matrix product of int8 matrices with exact sums, then scale, bias, activation and cast, in one pass.

    With the arguments that are None left out::

        sums = (a.long() - a_zero_point[:, None]) @ b.long()       # exact
        y = act(a_scale[:, None] * b_scale * sums + bias).to(out_dtype)

    Without any of them it equals ``torch._int_mm(a, b)``, for any shape and strides.

    Args:
        a: (M, K), int8; fastest with contiguous rows.
        b: (K, N), int8; fastest with contiguous rows or columns (the ``.t()`` of a Linear's weight).
        a_scale: One element, (M,) or (M, 1), of a floating dtype.
        b_scale: One element, (N,) or (1, N), of a floating dtype.
        a_zero_point: One element, (M,) or (M, 1), int32, within [-128, 127].
        bias: (N,), of a floating dtype; added after the scales.
        activation: One of `pykernels.ops.ACTIVATIONS`, leaky_relu with a slope of 0.01.
        out_dtype: ``torch.int32`` for the sums themselves (a zero point is allowed, nothing else);
            ``torch.float32``; ``torch.bfloat16``; ``torch.float16`` (on a CPU the reference's); or ``torch.int8``: the
            float result rounded to nearest even and saturated to [-128, 127], NaN giving 0. There is no output scale:
            fold its inverse into ``b_scale`` and ``bias``.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (M, N), contiguous, of ``out_dtype``.

    The sums are exact, and so an int32 output is equal to the bit on every backend and for every number of threads. To
    keep them so, K may be 131071 at most (K * 2^14 < 2^31), and 65793 with a zero point (K * 255 * 128 < 2^31). The
    float epilogue is computed in float32 (in float64 by the reference if a scale or the bias is float64): a few
    roundings, and that of the sum to float32 from 2^24 on. The same input gives the same bits.

    On a CPU the op packs ``b`` at every call, except for up to four rows, for which it reads ``b`` as it lies;
    `pykernels.nn.Int8Linear` packs its weight once.
    Scales and bias are differentiable, for float outputs. The kernel form, b interleaved so that one instruction sums
    two (``pmaddwd``) or four (``vpdpbusd``) products exactly, is the blocked product of Goto and van de Geijn, Anatomy
    of High-Performance Matrix Multiplication.

    Raises:
        TypeError: An argument is not a tensor, or has the wrong dtype.
        ValueError: A shape, a device, K, ``out_dtype``, ``activation`` or ``backend`` is wrong. The message names it.
        RuntimeError: The requested backend cannot run, or a zero point lies outside [-128, 127]. On a CUDA device the
            op does not look, because it would have to wait: the sums are then right modulo 2^32.
    """
    op = "int8_matmul"
    code = activation_code(op, activation)
    check_product(op, a, b, a_zero_point is not None)
    of_rows, of_columns, device = (a.shape[0], 1), (1, b.shape[1]), a.device
    a_scale = vector(op, "a_scale", a_scale, of_rows, device, "a's")
    b_scale = vector(op, "b_scale", b_scale, of_columns, device, "a's")
    a_zero_point = vector(op, "a_zero_point", a_zero_point, of_rows, device, "a's", torch.int32)
    check_bias(op, bias, b.shape[1], device, "a's")
    check_out_dtype(op, out_dtype, a_scale is None and b_scale is None and bias is None and activation == "none")
    call = Epilogue(a_scale, b_scale, a_zero_point, bias, code, out_dtype)
    product = INT8_MATMUL if out_dtype == torch.int32 else INT8_MATMUL_SCALED
    where = choose(product, device, widest(out_dtype, *call.floats()), backend, op)
    if where == "reference":
        _check_zero_point(op, call.a_zero_point)
        return reference(a, b, call)
    return kernels(where, INT8_MATMUL).int8_matmul(a, b, *call.narrow())


def quantize_int8(
    x: torch.Tensor, *, axis: int | None = None, symmetric: bool = True, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantises to int8, with one scale for the tensor or one for each slice along an axis.

    For a slice v of ``x``, in float32 (float64 for float64)::

        symmetric:   scale = v.abs().max() / 127
                     zero_point = 0
                     q = (v / scale).round().clamp(-127, 127)
        asymmetric:  low, high = v.min().clamp(max=0), v.max().clamp(min=0)
                     scale = high / 255 - low / 255
                     zero_point = (-128 - low / scale).round().clamp(-128, 127)
                     q = ((v / scale).round() + zero_point).clamp(-128, 127)

    Thus ``(q - zero_point) * scale`` is about ``v``, and exactly 0 where ``v`` is 0. Rounding is to nearest even. A
    scale of 0 (all zeros, or numbers so small that it underflows) becomes 1 with zero_point 0 and q 0. A slice that
    holds a NaN gets scale NaN, and one that holds an infinity scale inf; both get zero_point 0 and q 0. So the result
    dequantises to a visible NaN, and no device has to wait for a check.

    Args:
        x: Of any shape and floating dtype.
        axis: None, or the axis along which each slice has a scale: 0 for the rows of a matrix, 1 for its columns.
        symmetric: Whether the range is symmetric about 0.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        ``q`` int8 of ``x``'s shape, contiguous; ``scale`` float32 (float64 for float64) and ``zero_point`` int32, 0-d,
        or of length ``x.shape[axis]``. The kernels equal the reference to the bit.

    Raises:
        TypeError: ``x`` is not a tensor of a floating dtype.
        ValueError: ``axis`` or ``backend`` is wrong.
        RuntimeError: The requested backend cannot run, or ``x`` requires a gradient, which quantisation lacks.
    """
    op = "quantize_int8"
    check_tensor(op, "x", x)
    check_floating(op, "x", x)
    if axis is not None and not (isinstance(axis, int) and -x.dim() <= axis < x.dim()):
        fail(ValueError, op, "axis", f"None or an axis of shape {tuple(x.shape)}", repr(axis))
    refuse_gradient(op, x=x)
    axis = None if axis is None else axis % x.dim()
    where = choose(QUANTIZE_INT8, x.device, x.dtype, backend)
    if where == "reference":
        return quantize_int8_reference(x, axis=axis, symmetric=symmetric)
    q, scale, zero_point = kernels(where, QUANTIZE_INT8).quantize_int8(x, -1 if axis is None else axis, symmetric)
    return q, scale, zero_point


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """``act(x @ (weight * weight_scale).T + bias)`` with the rows of ``x`` quantised to int8 on the way in.

    It computes the same as::

        q, scale, _ = quantize_int8(x, axis=0)
        int8_matmul(q, weight.t(), a_scale=scale, b_scale=weight_scale, bias=bias, activation=activation,
                    out_dtype=x.dtype)

    Args:
        x: (M, K), float32, bfloat16, or on a CUDA device float16 (other floating dtypes run as plain PyTorch).
        weight: (N, K), int8.
        weight_scale: One element or (N,).
        bias: (N,).
        activation: As in `int8_matmul`.
        backend: As in `int8_matmul`.

    Returns:
        (M, N) in ``x``'s dtype.
    """
    op = "int8_linear"
    code = activation_code(op, activation)
    check_tensor(op, "x", x)
    check_floating(op, "x", x)
    if x.dim() != 2:
        fail(ValueError, op, "x", "a matrix", f"shape {tuple(x.shape)}")
    check_int8(op, "weight", weight)
    check_device(op, "weight", weight, x.device)
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        fail(ValueError, op, "weight", f"shape (N, {x.shape[1]})", tuple(weight.shape))
    n = weight.shape[0]
    scale = vector(op, "weight_scale", check_tensor(op, "weight_scale", weight_scale), (1, n), x.device)
    assert scale is not None
    check_bias(op, bias, n, x.device)
    refuse_gradient(op, x=x, weight_scale=scale, bias=bias)
    x = cast(autocast_dtype(x), x)
    dtype = x.dtype
    where = choose(INT8_MATMUL_SCALED, x.device, dtype, backend, op)
    if where == "reference":
        q, x_scale, _ = quantize_int8_reference(x, axis=0)
        return reference(q, weight.t(), Epilogue(x_scale, scale, None, bias, code, dtype))
    bias = None if bias is None else bias.float()
    return kernels(where, INT8_MATMUL_SCALED).int8_linear(x, weight.t(), scale.float(), bias, code)


def _check_zero_point(op: str, zero_point: torch.Tensor | None) -> None:
    """As the kernels do, where looking at the values does not mean waiting for a device."""
    if zero_point is None or not zero_point.is_cpu or torch.compiler.is_compiling() or zero_point.numel() == 0:
        return
    if type(zero_point) is torch.Tensor and not -128 <= int(zero_point.min()) <= int(zero_point.max()) <= 127:
        raise RuntimeError(f"pykernels.{op}: a_zero_point: expected values in [-128, 127]")
