"""batch_norm_act: act(batch_norm(x) + residual), with the statistics of the batch: what training runs."""

from __future__ import annotations

from typing import Any

import torch

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import check_tensor
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.batch_norm_act import autograd as autograd
from pykernels.ops.batch_norm_act.arguments import OP, BatchNormCall, check_call
from pykernels.ops.batch_norm_act.op import BATCH_NORM_ACT
from pykernels.ops.batch_norm_act.reference import reference


def batch_norm_act(
    x: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> torch.Tensor:
    """Batch norm, residual add and activation, fused; two passes over ``x`` forward, two over ``grad_y`` backward.

    It computes the same as::

        y = act(F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps) + residual)

    Args:
        x: (N, C), (N, C, L), (N, C, H, W) or more dimensions; contiguous or channels_last, others are copied.
        running_mean: (C,); with ``training`` it is updated in place, with ``running_var``, if given.
        running_var: (C,).
        weight: (C,); 1 if None.
        bias: (C,); 0 if None.
        training: Whether to normalise by the mean and variance of ``x``, and not by the running ones, which must then
            be given.
        momentum: The share of the batch in the running statistics.
        eps: Added to the variance.
        residual: Added before the activation; of ``x``'s shape and dtype.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        backend: "auto", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        A tensor of ``x``'s shape, dtype and memory format.

    Differentiable twice in ``x``, ``weight``, ``bias`` and ``residual``. For the backward pass ReLU keeps one bit an
    element, and only where there is a residual. The CUDA and Triton kernels take float32, float16 and bfloat16, compute
    in float32 and have a fixed order of summation: the same input on the same GPU model gives the same bits. Elsewhere
    it runs as plain PyTorch; so it does under `torch.func` and forward-mode differentiation. Under autocast ``x`` keeps
    its dtype, as with ``F.batch_norm``, and ``residual`` is cast to it.

    The relative error of what is normalised is a few roundings of float32, plus one of the mean relative to the
    deviation.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not go with ``x``'s.
        ValueError: A shape, a device, ``eps``, ``activation`` or ``backend`` is wrong, or training has one value per
            channel. The message names it.
        RuntimeError: The requested backend cannot run.
    """
    call = BatchNormCall(training, eps, activation_code(OP, activation), negative_slope)
    check_tensor(OP, "x", x)
    if autocast_dtype(x) is not None:
        residual = cast(x.dtype, residual)
    check_call(x, residual, running_mean, running_var, weight, bias, momentum, call)
    where = choose(BATCH_NORM_ACT, x.device, x.dtype, backend)
    if where == "reference":
        return reference(x, running_mean, running_var, weight, bias, residual, momentum, call)
    ops = kernels(where, BATCH_NORM_ACT)
    shape = x.shape
    x = _four(x)
    residual = None if residual is None else _four(residual)
    if training:
        with torch.no_grad():
            mean, var = _statistics(ops, x, running_mean, running_var, momentum)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = running_mean.detach().float(), running_var.detach().float()
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    y, _ = ops.batch_norm_act(x, mean, var, weight, bias, residual, *call)
    return y if y.dim() == len(shape) else y.reshape(shape)


def _statistics(
    ops: Any, x: torch.Tensor, running_mean: torch.Tensor | None, running_var: torch.Tensor | None, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and variance of the batch; the running ones are updated, through a copy where they aren't float32."""
    given = (running_mean, running_var)
    direct = [
        t if t is None or (t.dtype == torch.float32 and t.is_contiguous()) else t.float().contiguous() for t in given
    ]
    mean, var = ops.batch_norm_statistics(x, *direct, momentum)
    for original, updated in zip(given, direct, strict=True):
        if original is None or updated is None:
            continue
        if original is not updated:
            original.copy_(updated)
        elif not torch.compiler.is_compiling() and not original.is_inference():
            torch.autograd.graph.increment_version(original)  # a kernel's writing does not count as a change
    return mean, var


def _four(x: torch.Tensor) -> torch.Tensor:
    """``x`` as (N, C, H, W)."""
    if x.dim() > 4:
        return x.flatten(3)
    return x if x.dim() == 4 else x[(...,) + (None,) * (4 - x.dim())]
