"""group_norm_act: act(group_norm(x) + residual), for inference on a CPU."""

from __future__ import annotations

from torch import Tensor

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import check_tensor
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.group_norm_act import autograd as autograd
from pykernels.ops.group_norm_act.arguments import OP, GroupNormCall, check_call
from pykernels.ops.group_norm_act.op import GROUP_NORM_ACT
from pykernels.ops.group_norm_act.reference import reference


def group_norm_act(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """Group norm, residual add and activation in two passes over ``x``; instance norm with one group a channel.

    It computes the same as::

        y = act(F.group_norm(x, groups, weight, bias, eps) + residual)

    Args:
        x: (N, C), (N, C, L), (N, C, H, W) or more dimensions, of any memory format.
        groups: The number of groups of channels, each normalised by itself; a divisor of C.
        weight: (C,); 1 if None.
        bias: (C,); 0 if None.
        eps: Added to the variance.
        residual: Added before the activation; of ``x``'s shape and dtype.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        backend: "auto", "cpu" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        A tensor of ``x``'s shape, dtype and, with four dimensions, memory format.

    Differentiable any number of times in all tensors, by plain PyTorch. The CPU kernels take float32 and bfloat16 and
    compute in float32, moments in blocks that are merged, so that the variance is right however large the mean is; the
    bits do not depend on the number of threads. Elsewhere torch's own ops run, on a GPU too. Under autocast ``x`` keeps
    its dtype, and ``residual`` is cast to it.

    The relative error of what is normalised is a few roundings of float32, plus two of the mean relative to the
    deviation.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not go with ``x``'s.
        ValueError: A shape, a device, ``groups``, ``eps``, ``activation`` or ``backend`` is wrong; the message names
            it.
        RuntimeError: The requested backend cannot run.
    """
    call = GroupNormCall(groups, eps, activation_code(OP, activation), negative_slope)
    check_tensor(OP, "x", x)
    if autocast_dtype(x) is not None:
        residual = cast(x.dtype, residual)
    check_call(x, weight, bias, residual, call)
    where = choose(GROUP_NORM_ACT, x.device, x.dtype, backend)
    if where == "reference" or x.numel() == 0:
        return reference(x, weight, bias, residual, call)
    weight = None if weight is None else weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    residual = None if residual is None else _four(residual)
    y = kernels(where, GROUP_NORM_ACT).group_norm_act(_four(x), weight, bias, residual, *call)
    return y if x.dim() == 4 else y.reshape(x.shape)


def _four(x: Tensor) -> Tensor:
    """``x`` as (N, C, H, W)."""
    if x.dim() > 4:
        return x.flatten(3)
    return x if x.dim() == 4 else x[(...,) + (None,) * (4 - x.dim())]
