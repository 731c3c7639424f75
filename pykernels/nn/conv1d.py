"""ConvBNAct1d: Conv1d, BatchNorm1d, residual add and activation as one module."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from pykernels.nn.conv import ConvBNAct, ConvPack
from pykernels.ops.conv_bn_act.arguments import Geometry, for_height_1, geometry


class ConvBNAct1d(ConvBNAct):
    """Conv1d, BatchNorm1d, residual add and activation as one module.

    It computes what these modules of torch compute one after the other, in one pass over memory::

        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        bn = nn.BatchNorm1d(out_channels, eps, momentum)
        y = act(bn(conv(x)) + residual)

    >>> block = pk.nn.ConvBNAct1d(64, 128, 3, padding=1, activation="relu").eval()
    >>> with torch.no_grad():
    ...     y = block(x)                       # x: (N, 64, L); y: (N, 128, L)

    Args:
        in_channels: C, the channels of ``x``.
        out_channels: K, the channels of the result.
        kernel_size: S, the taps.
        stride: One int.
        padding: One int, ``"valid"``, or ``"same"`` (stride 1 only).
        dilation: One int.
        groups: Divides C and K.
        bias: Whether the convolution has a bias. Unlike torch's, it has none unless asked for: a batch norm follows.
        padding_mode: What the padding holds, as for `torch.nn.Conv1d`.
        device: The device to make the parameters on.
        dtype: The parameters' dtype.
        batch_norm: False leaves the batch norm out (``bn`` is then None).
        eps: Added to the variance.
        momentum: The share of a batch in the running statistics; None for a cumulative average.
        affine: Whether the batch norm has a weight and a bias.
        track_running_stats: Whether it keeps running statistics; without them it always takes each batch's own.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.

    Sequences are images of height 1, in the same memory and by the same kernels. Children, training, packed weights and
    threads are as in `ConvBNAct2d`. On a GPU training runs torch's own batch norm.

    Raises:
        ValueError: ``activation`` is unknown, or torch's own modules refuse an argument.
    """

    conv: nn.Conv1d
    bn: nn.BatchNorm1d | None
    _conv_class = nn.Conv1d
    _norm_class = nn.BatchNorm1d
    _rank = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        batch_norm: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        bn = None
        if batch_norm:
            bn = nn.BatchNorm1d(out_channels, eps, momentum, affine, track_running_stats, device, dtype)
        self._assemble(conv, bn, activation, negative_slope)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Computes ``act(bn(conv(x)) + residual)``.

        Args:
            x: (N, C, L), or (C, L) unbatched, of the parameters' dtype and device, with any strides.
            residual: Added before the activation; of the result's shape and ``x``'s dtype.

        Returns:
            (N, K, Q), or (K, Q) for unbatched input, in ``x``'s dtype.

        Raises:
            TypeError: ``x`` or ``residual`` is not a tensor, or its dtype does not go with the parameters'.
            ValueError: A shape or a device is wrong. The message names it.
        """
        return super().forward(x, residual)

    def _run_images(self, pack: ConvPack, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        residual = None if residual is None else residual.unsqueeze(-2)
        return super()._run_images(pack, x.unsqueeze(-2), residual).squeeze(-2)

    def _geometry_of(self, conv: Any, padding: Any) -> Geometry:
        given = {"stride": conv.stride, "padding": padding, "dilation": conv.dilation}
        pairs: dict[str, Any] = {k: for_height_1(v, 0 if k == "padding" else 1) for k, v in given.items()}
        return geometry((1, conv.weight.shape[2]), **pairs, groups=conv.groups)
