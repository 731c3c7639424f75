"""ConvBNAct1d: Conv1d, BatchNorm1d, residual add and activation as one module."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from pykernels.nn.conv import ConvBNAct, _ConvPack
from pykernels.ops.conv_bn_act.arguments import Geometry, for_height_1, geometry


class ConvBNAct1d(ConvBNAct):
    """``act(bn(conv(x)) + residual)``, the same as the torch modules one after the other, in one pass.

    The arguments are those of `torch.nn.Conv1d`, then those of `torch.nn.BatchNorm1d` (``batch_norm=False`` for none),
    then the activation of `pykernels.ops.conv_bn_act`. All else is as in `ConvBNAct2d`: sequences are images of height
    1, convolved in the same memory by the same kernels. On a GPU training runs torch's own batch norm.

    >>> block = pk.nn.ConvBNAct1d(64, 128, 3, padding=1, activation="relu").eval()
    >>> with torch.no_grad():
    ...     y = block(x, residual)             # x: (N, 64, L) or (64, L); residual: y's shape, or None

    Raises:
        ValueError: An argument is wrong; torch names those of its own modules.
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
        """(N, C, L) or (C, L) to (N, K, Q) or (K, Q), in ``x``'s dtype."""
        return super().forward(x, residual)

    def _run_images(self, pack: _ConvPack, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        residual = None if residual is None else residual.unsqueeze(-2)
        return super()._run_images(pack, x.unsqueeze(-2), residual).squeeze(-2)

    def _geometry_of(self, conv: Any, padding: Any) -> Geometry:
        given = {"stride": conv.stride, "padding": padding, "dilation": conv.dilation}
        pairs: dict[str, Any] = {k: for_height_1(v, 0 if k == "padding" else 1) for k, v in given.items()}
        return geometry((1, conv.weight.shape[2]), **pairs, groups=conv.groups)
