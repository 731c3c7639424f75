"""squeeze_excite: maps times a gate that their means make, in two passes over them."""

from __future__ import annotations

from torch import Tensor

from pykernels.ops._arguments import check_tensor, refuse_gradient
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.squeeze_excite import autograd as autograd
from pykernels.ops.squeeze_excite.arguments import INT8_OP, OP, check_call, check_int8_call
from pykernels.ops.squeeze_excite.op import INT8_SQUEEZE_EXCITE, SQUEEZE_EXCITE
from pykernels.ops.squeeze_excite.reference import int8_reference, reference


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
    backend: str | None = None,
) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018): each channel times a gate that depends on the means of all.

    It computes the same as::

        hidden = activation(F.linear(x.mean((-2, -1)), reduce_weight, reduce_bias))
        y = x * gate(F.linear(hidden, expand_weight, expand_bias))[..., None, None]

    Args:
        x: (N, C, H, W) or (C, H, W), of any memory format.
        reduce_weight: (M, C), or (M, C, 1, 1) as a 1x1 convolution has it.
        reduce_bias: (M,) or None.
        expand_weight: (C, M), or (C, M, 1, 1).
        expand_bias: (C,) or None.
        activation: Between the two products, one of ``pykernels.ops.ACTIVATIONS``; "leaky_relu" with torch's slope of
            0.01.
        gate: After them, of the same names; "sigmoid" and "hardsigmoid" are the usual ones.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``x``'s shape, dtype and memory format.

    Differentiable any number of times. The CPU kernel takes float32 and bfloat16 and computes in float32; elsewhere
    torch's own ops run, on a GPU too. Under autocast ``x`` keeps its dtype, and the weights and biases are cast to it.

    Raises:
        TypeError: An argument has the wrong type, or ``x`` does not have a floating dtype.
        ValueError: A shape or a name is wrong; the message names it.
        RuntimeError: The requested backend cannot run.
    """
    weights = reduce_weight, reduce_bias, expand_weight, expand_bias
    if autocast_dtype(check_tensor(OP, "x", x)) is not None:
        weights = cast(x.dtype, weights)
    call = check_call(x, *weights, activation, gate)
    where = choose(SQUEEZE_EXCITE, x.device, x.dtype, backend)
    if where == "reference":
        return reference(x, call)
    op = kernels(where, SQUEEZE_EXCITE).squeeze_excite
    return op(x, *call) if x.dim() == 4 else op(x[None], *call)[0]


def int8_squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    expand_weight: Tensor,
    expand_bias: Tensor | None,
    x_scale: float,
    out_scale: float,
    x_zero_point: int = 0,
    out_zero_point: int = 0,
    *,
    activation: str = "relu",
    gate: str = "sigmoid",
    backend: str | None = None,
) -> Tensor:
    """Squeeze-and-excitation of int8 maps: means and gates in float32, the maps in int8, on a grid of their own.

    It computes the same as::

        real = (x.float() - x_zero_point) * x_scale
        hidden = activation(F.linear(real.mean((-2, -1)), reduce_weight, reduce_bias))
        y = real * gate(F.linear(hidden, expand_weight, expand_bias))[..., None, None]
        y = ((y / out_scale).round() + out_zero_point).clamp(-128, 127).to(torch.int8)

    Args:
        x: (N, C, H, W) or (C, H, W), int8, of any memory format.
        reduce_weight: (M, C), or (M, C, 1, 1) as a 1x1 convolution has it, of a floating dtype.
        reduce_bias: (M,) or None.
        expand_weight: (C, M), or (C, M, 1, 1).
        expand_bias: (C,) or None.
        x_scale: Of ``x``'s grid, 2^-126 to 2^126; its real values are ``x_scale * (x - x_zero_point)``.
        out_scale: Of the result's grid.
        x_zero_point: The int8 that stands for 0 in ``x``.
        out_zero_point: That of the result.
        activation: Between the two products, one of ``pykernels.ops.ACTIVATIONS``; "leaky_relu" with torch's slope of
            0.01.
        gate: After them, of the same names.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        Of ``x``'s shape and memory format, int8.

    The sums of the maps are exact, and the gates are those of `squeeze_excite` in float32. Both scales go into the
    gates, so that an element is multiplied once and rounded once, to nearest even. As gates may differ in their last
    bit from one instruction set to another, an element that lies between two numbers may be rounded either way. There
    is no gradient. The CPU kernel takes float32 weights; elsewhere plain PyTorch runs.

    Raises:
        TypeError: ``x`` is not int8, or another argument has the wrong type.
        ValueError: A shape, a name, a scale or a zero point is wrong; the message names it.
        RuntimeError: The requested backend cannot run, or a weight requires a gradient, which quantisation lacks.
    """
    weights = reduce_weight, reduce_bias, expand_weight, expand_bias
    scales, zero_points = (x_scale, out_scale), (x_zero_point, out_zero_point)
    call, grids = check_int8_call(x, weights, scales, zero_points, activation, gate)
    refuse_gradient(
        INT8_OP, reduce_weight=reduce_weight, reduce_bias=reduce_bias, expand_weight=expand_weight,
        expand_bias=expand_bias,
    )  # fmt: skip
    where = choose(INT8_SQUEEZE_EXCITE, x.device, reduce_weight.dtype, backend)
    if where == "reference" or x.shape[-2] * x.shape[-1] > 2**23:
        return int8_reference(x, call, grids)
    op = kernels(where, INT8_SQUEEZE_EXCITE).int8_squeeze_excite
    images = x if x.dim() == 4 else x[None]
    y = op(images, *call[:4], *grids, *call[4:])
    return y if x.dim() == 4 else y[0]
