"""conv_bn_act: act(batch_norm(conv2d(x, weight) + bias) + residual) in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.conv_bn_act import autograd as autograd
from pykernels.ops.conv_bn_act.arguments import BatchNorm, as_image, check_batch_norm, conv_call, with_channels
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT
from pykernels.ops.conv_bn_act.reference import reference

__all__ = ["conv_bn_act", "fold_batch_norm"]


def conv_bn_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> torch.Tensor:
    """Convolution in 1 or 2 dimensions, inference-mode batch norm, residual add and activation, in one pass.

    It computes the same as this, without the batch norm where ``running_mean`` and ``running_var`` are None::

        z = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        z = F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, training=False, eps=eps)
        y = act(z + residual)

    A ``weight`` of three dimensions convolves sequences, with one int each for stride, padding and dilation, as
    `F.conv1d` does: these are images of height 1.

    Args:
        x: (N, C, H, W), or (C, H, W) unbatched; contiguous, channels_last or any other strides. Of sequences (N, C, L)
            or (C, L).
        weight: (K, C / groups, R, S), of ``x``'s dtype; for sequences (K, C / groups, S).
        bias: (K,).
        running_mean: (K,); the batch norm's mean, with ``running_var``.
        running_var: (K,); the batch norm's variance.
        bn_weight: (K,); the batch norm's scale, 1 if None.
        bn_bias: (K,); the batch norm's shift, 0 if None.
        eps: Added to the variance.
        residual: Added before the activation; of the output's shape and ``x``'s dtype.
        stride: One int or (vertical, horizontal).
        padding: One int, (vertical, horizontal), ``"valid"``, or ``"same"`` (stride 1 only).
        dilation: One int or (vertical, horizontal).
        groups: Divides C and K.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, K, P, Q), or (K, P, Q) for unbatched input, in ``x``'s dtype and memory format; of sequences without P.

    The vectors of length K may be of any floating dtype; the op folds them to a float32 scale and shift, in float64.
    The kernels take float32 and bfloat16, on CUDA float16 too, and accumulate in float32; other dtypes run as plain
    PyTorch. On a GPU the kernels multiply float32 in three products of TF32, which keep its precision, or, unless
    `torch.get_float32_matmul_precision` is "highest", in one.
    On a CPU the op packs ``weight``, and keeps what it packed of weights that come again unchanged, 128 MB of them and
    their copies at most. It compares the whole ``weight`` at each call; `pykernels.nn.ConvBNAct2d` packs it once.
    Every tensor argument is differentiable, twice. Under autocast ``x``, ``weight`` and ``residual`` are cast as
    ``F.conv2d`` would cast them. Under `torch.func` and forward-mode differentiation it runs as plain PyTorch, and
    refuses an explicit other backend.

    The relative L2 error is about sqrt(C R S / groups) roundings of float32, plus one of ``x``'s dtype. The same input
    gives the same bits. On a CPU, 3x3 filters at stride 1 go by Winograd's method where the shapes of ``x``, the batch
    included, and of ``weight`` make it faster: its error is below 1e-6, and NaN and infinity reach the same outputs.
    That error is relative to the largest values near an output. Where a few are far larger than the rest, set the
    environment variable ``PYKERNELS_WINOGRAD=0`` before the first convolution to sum directly.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not go with ``x``'s.
        ValueError: A shape, a device, the geometry, ``activation`` or ``backend`` is wrong. The message names it.
        RuntimeError: The requested backend cannot run.
    """
    if isinstance(weight, torch.Tensor) and weight.dim() == 3:
        x, residual, pairs = as_image(x, residual, stride=stride, padding=padding, dilation=dilation)
        y = conv_bn_act(
            x, weight.unsqueeze(2), bias, running_mean, running_var, bn_weight, bn_bias, eps=eps, residual=residual,
            groups=groups, activation=activation, negative_slope=negative_slope, backend=backend, **pairs,
        )  # fmt: skip
        return y.squeeze(-2)
    call = conv_call(x, weight, residual, stride, padding, dilation, groups, activation, negative_slope=negative_slope)
    norm = BatchNorm(bias, running_mean, running_var, bn_weight, bn_bias, eps)
    check_batch_norm(x, weight.shape[0], norm)
    x, weight, residual = cast(autocast_dtype(x), (x, weight, residual))
    x, weight = with_channels(x, weight, groups)
    where = choose(CONV_BN_ACT, x.device, x.dtype, backend)
    if where == "reference":
        return reference(x, weight, norm, residual, call)
    scale, shift = fold_batch_norm(*norm)
    unbatched = x.dim() == 3
    if unbatched:
        x = x[None]
        residual = None if residual is None else residual[None]
    y = kernels(where, CONV_BN_ACT).conv_bn_act(x, weight, scale, shift, residual, *call.flat())
    return y[0] if unbatched else y


def fold_batch_norm(
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    bn_weight: torch.Tensor | None,
    bn_bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Float32 (scale, shift) with ``batch_norm(c + bias) = c * scale + shift``, differentiable; None where 1 or 0.

    Computed in float64, and the shift from the scale as rounded: so the rounding of the scale multiplies the normalised
    value, not the raw sum c, which where the mean is large against the deviation would be far more.
    """
    if running_mean is None or running_var is None:
        return None, None if bias is None else bias.float()
    exact = torch.rsqrt(running_var.double() + eps)
    if bn_weight is not None:
        exact = exact * bn_weight.double()
    scale = exact.float()
    offset = -running_mean.double() if bias is None else bias.double() - running_mean.double()
    shift = offset * scale.double()
    if bn_bias is not None:
        shift = shift + bn_bias.double()
    return scale, shift.float()
