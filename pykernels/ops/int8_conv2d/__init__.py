"""int8_conv2d: int8 x int8 -> exact int32, then scale, bias, residual, activation and a cast in the same pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pykernels.ops._arguments import refuse_gradient
from pykernels.ops._dispatch import asked_backend, choose, kernels
from pykernels.ops.conv_bn_act.arguments import with_channels
from pykernels.ops.int8_conv2d import autograd as autograd
from pykernels.ops.int8_conv2d.arguments import OP, int8_conv_call
from pykernels.ops.int8_conv2d.op import INT8_CONV2D
from pykernels.ops.int8_conv2d.reference import reference
from pykernels.ops.int8_matmul.arguments import check_bias, check_out_dtype, vector, widest


def int8_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
    out_scale: float = 1.0,
    out_dtype: torch.dtype = torch.float32,
    x_zero_point: int = 0,
    residual_zero_point: int = 0,
    out_zero_point: int = 0,
    backend: str | None = None,
) -> torch.Tensor:
    """2-d convolution of int8 tensors with exact sums, then scale, bias, residual, activation and cast, in one pass.

    With the arguments that are None left out::

        sums = F.conv2d(x.double() - x_zero_point, weight.double(), None, stride, padding, dilation, groups)  # exact
        y = sums.float() * scale[:, None, None] + bias[:, None, None]
        y = act(y + residual_scale * (residual - residual_zero_point)) * out_scale
        y = y.to(out_dtype)                           # for torch.int8: (y.round() + out_zero_point).clamp(-128, 127)

    Args:
        x: (N, C, H, W), or (C, H, W) unbatched, int8; contiguous, channels_last (the fastest) or any other strides.
        weight: (K, C / groups, R, S), int8.
        scale: One element or (K,), of a floating dtype: the scale of ``x`` times those of ``weight``.
        bias: (K,), of a floating dtype.
        residual: Of the output's shape, int8 or of a floating dtype.
        residual_scale: The scale of ``residual``.
        stride: One int or (vertical, horizontal).
        padding: One int, (vertical, horizontal), ``"valid"``, or ``"same"`` (stride 1 only).
        dilation: One int or (vertical, horizontal).
        groups: Divides C and K.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        out_scale: For an int8 output the inverse of its scale.
        out_dtype: ``torch.int32`` for the sums themselves (then nothing else may be given); ``torch.float32``;
            ``torch.bfloat16``; ``torch.float16``; or ``torch.int8``: the float result rounded to nearest even and
            saturated to [-128, 127], NaN giving what 0 gives.
        x_zero_point: The int8 that stands for 0 in ``x``, which is padded with it. Not on GPUs.
        residual_zero_point: That of an int8 ``residual``. Not on GPUs.
        out_zero_point: That of an int8 output, added after the rounding. Not on GPUs.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, K, P, Q), or (K, P, Q) for unbatched input, of ``out_dtype``, in ``x``'s memory format.

    The sums are exact, so an int32 output is equal to the bit on every backend. To keep them so, C / groups * R * S may
    be 131071 at most, with an x_zero_point 65793. The rest is computed in float32 (in float64 by the reference if a
    tensor is float64). On a CPU each operation above is a rounding of its own, in the order of the formula: with an
    activation of none, relu, relu6 or leaky_relu the output has the reference's bits on every instruction set, for any
    number of threads and in every memory format. There is no gradient.

    Raises:
        TypeError: An argument is not a tensor, or has the wrong dtype.
        ValueError: A shape, a device, the geometry, ``out_dtype``, ``activation`` or ``backend`` is wrong. The message
            names it.
        RuntimeError: The requested backend cannot run, or a tensor requires a gradient, which quantisation lacks.
    """
    call = int8_conv_call(
        x, weight, residual, stride, padding, dilation, groups, activation, out_dtype,
        (x_zero_point, residual_zero_point, out_zero_point),
        residual_scale=residual_scale, negative_slope=negative_slope, out_scale=out_scale,
    )  # fmt: skip
    k = weight.shape[0]
    scale = vector(OP, "scale", scale, (1, k), x.device)
    check_bias(OP, bias, k, x.device)
    plain = scale is None and bias is None and residual is None and call.activation == 0 and call.out_scale == 1
    check_out_dtype(OP, out_dtype, plain)
    refuse_gradient(OP, scale=scale, bias=bias, residual=residual)
    x, weight = with_channels(x, weight, groups)
    where = choose(INT8_CONV2D, x.device, widest(out_dtype, scale, bias, residual), backend)
    if where in ("cuda", "triton") and any(call.zero_points()):
        if (backend or asked_backend()) != "auto":
            raise RuntimeError(f"pykernels.{OP}: backend={where!r} cannot run: its kernels have no zero points")
        where = "reference"
    if where == "reference":
        return reference(x, weight, scale, bias, residual, call)
    unbatched = x.dim() == 3
    if unbatched:
        x, residual = x[None], None if residual is None else residual[None]
    scale = None if scale is None else scale.float().expand(k)
    bias = None if bias is None else bias.float()
    y = kernels(where, INT8_CONV2D).int8_conv2d(x, weight, scale, bias, residual, *call.flat())
    return y[0] if unbatched else y
