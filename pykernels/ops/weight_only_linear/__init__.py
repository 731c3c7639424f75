"""weight_only_linear: a linear layer with int8 weights, a scale a row, on float rows."""

from __future__ import annotations

import torch

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import refuse_gradient
from pykernels.ops._autocast import autocast_dtype, autocast_off, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.weight_only_linear import autograd as autograd
from pykernels.ops.weight_only_linear import reference
from pykernels.ops.weight_only_linear.arguments import OP, check_linear
from pykernels.ops.weight_only_linear.op import WEIGHT_ONLY_LINEAR

__all__ = ["weight_only_linear"]


def weight_only_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Multiplies float rows by int8 weights, for inference.

    The rows of ``x`` stay float. It computes::

        act(F.linear(x, weight * weight_scale[:, None], bias))

    Args:
        x: (*, K). The kernels take float32 and bfloat16; the reference takes any floating dtype.
        weight: (N, K), int8; fastest contiguous.
        weight_scale: One element, (N,) or (N, 1), of a floating dtype.
        bias: (N,), of a floating dtype.
        activation: One of `pykernels.ops.ACTIVATIONS`, leaky_relu with a slope of 0.01.
        backend: "auto", "cpu" or "reference" ("cuda" and "triton" have no kernels); None means that of the
            `pykernels.backend` block.

    Returns:
        (*, N), contiguous, of ``x``'s dtype (autocast's, inside autocast).

    Sums, scales, bias and activation are float32, and the result is rounded once. With VNNI the sums are exact, of
    rows rounded to 24 bits relative to their largest magnitude: that is as a rule less than float32's sums round. K may
    be 131071 at most. The bits depend on the shape, but not on strides or the number of threads. There is no gradient.

    A few rows take the time in which the weight is read, a quarter of what float32 weights take. Many rows take that
    of a float32 layer, or three quarters of it with VNNI. Up to four rows read ``weight`` as it lies; for more the op
    packs it at every call, and `pykernels.nn.Int8Linear` with ``weight_only`` packs it once.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not fit; the message says which.
        ValueError: A shape, a device, ``activation`` or ``backend`` is wrong.
        RuntimeError: The requested backend cannot run, or a tensor requires a gradient, which the op lacks.
    """
    code = activation_code(OP, activation)
    scale = check_linear(x, weight, weight_scale, bias)
    refuse_gradient(OP, x=x, weight_scale=weight_scale, bias=bias)
    dtype = autocast_dtype(x)
    x = cast(dtype, x)
    with autocast_off(dtype, x):
        where = choose(WEIGHT_ONLY_LINEAR, x.device, x.dtype, backend)
        if where == "reference":
            return reference.weight_only_linear(x, weight, scale, bias, activation)
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((_rows(x), x.shape[-1]))
        bias = None if bias is None else bias.float()
        y = kernels(where, WEIGHT_ONLY_LINEAR).weight_only_linear.default(rows, weight, scale.float(), bias, code)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])


def _rows(x: torch.Tensor) -> int:
    """How many rows there are, which reshape cannot tell of an empty tensor."""
    return x.shape[:-1].numel()
