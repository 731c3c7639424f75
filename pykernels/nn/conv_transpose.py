"""ConvTransposeBNAct2d: ConvTranspose2d, BatchNorm2d, residual add and activation as one module."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn
from torch._prims_common import suggest_memory_format

from pykernels.nn._packed import Pack, Slot
from pykernels.nn._phases import BoundTransposed, fit, pack_phases
from pykernels.nn.conv import ConvBNAct, Epilogue, frozen
from pykernels.ops._activation import activation_code, apply_activation
from pykernels.ops._arguments import pair
from pykernels.ops.conv_bn_act.transposed import OP, TransposedCall, conv_transpose_bn_act

_MOST_SHAPES = 256


class ConvTransposeBNAct2d(ConvBNAct):
    """ConvTranspose2d, BatchNorm2d, residual add and activation as one module.

    It computes what these modules of torch compute one after the other::

        conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias)
        bn = nn.BatchNorm2d(out_channels, eps, momentum)
        y = act(bn(conv(x)) + residual)

    >>> block = pk.nn.ConvTransposeBNAct2d(128, 64, 4, stride=2, padding=1, activation="relu").eval()
    >>> with torch.no_grad():
    ...     y = block(x)                       # x: (N, 128, H, W); y: (N, 64, 2 H, 2 W)

    Args:
        in_channels: C, the channels of ``x``.
        out_channels: K, the channels of the result.
        kernel_size: One int or (R, S).
        stride: One int or (vertical, horizontal).
        padding: Rows and columns that are cut off at each side of the result.
        output_padding: Rows and columns that are added at the bottom and at the right; less than stride or dilation.
        groups: Divides C and K.
        bias: Whether the convolution has a bias. Unlike torch's, it has none unless asked for: a batch norm follows.
        dilation: One int or (vertical, horizontal).
        device: The device to make the parameters on.
        dtype: The parameters' dtype.
        batch_norm: False leaves the batch norm out (``bn`` is then None).
        eps: Added to the variance.
        momentum: The share of a batch in the running statistics; None for a cumulative average.
        affine: Whether the batch norm has a weight and a bias.
        track_running_stats: Whether it keeps running statistics; without them it always takes each batch's own.
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.

    Children, training, packed weights and threads are as in `ConvBNAct2d`; only the CPU kernels take packed weights.
    ``forward`` has no ``output_size``: use ``output_padding``.

    Raises:
        ValueError: ``activation`` is unknown, or torch's own modules refuse an argument.
    """

    conv: nn.ConvTranspose2d
    bn: nn.BatchNorm2d | None
    _conv_class = nn.ConvTranspose2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: int | tuple[int, int] = 1,
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
        conv = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            device=device, dtype=dtype,
        )  # fmt: skip
        bn = None
        if batch_norm:
            bn = nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats, device, dtype)
        self._assemble(conv, bn, activation, negative_slope)

    def _forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        conv, bn = self.conv, self.bn
        options: Any = {k: getattr(conv, k) for k in ("stride", "padding", "output_padding", "groups", "dilation")}
        act, slope = self.activation, self.negative_slope
        if bn is None or not (bn.training or bn.running_mean is None):
            folded = () if bn is None else (bn.running_mean, bn.running_var, bn.weight, bn.bias)
            return conv_transpose_bn_act(
                x, conv.weight, conv.bias, *folded, eps=1e-5 if bn is None else bn.eps, residual=residual,
                activation=act, negative_slope=slope, **options,
            )  # fmt: skip
        z = bn(conv_transpose_bn_act(x, conv.weight, conv.bias, activation="none", **options))
        return apply_activation(z if residual is None else z + residual, act, slope)

    def _run_images(self, pack: Any, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        unbatched = x.dim() == 3
        if unbatched:
            x, residual = x[None], None if residual is None else residual[None]
        bound = pack.bound_for(x.shape) if x.dim() == 4 else None
        # The plain op runs where a phase reads nothing of x, and says what is wrong with a shape.
        if bound is None or x.shape[1] != pack.channels or (residual is not None and residual.shape != bound.shape):
            y = self._forward(x, residual)
        else:
            y = bound.run(x, residual, suggest_memory_format(x) is torch.channels_last)
        return y[0] if unbatched else y

    def _key(self) -> Hashable:
        key: Any = super()._key()
        conv: Any = self._modules["conv"]
        return *key[:-1], (*key[-1], frozen(conv.output_padding))

    def _features(self, weight: torch.Tensor) -> int:
        return weight.shape[1] * self.conv.groups

    def _pack_of(self, slots: Sequence[Slot], dtype: torch.dtype, key: Any) -> Pack | None:  # type: ignore[override]
        if not self.conv.weight.is_cpu:
            return None
        conv, (_, _, eps, activation, slope, _) = self.conv, key
        pairs: dict[str, Any] = {k: pair(OP, k, getattr(conv, k), n) for k, n in _LEAST.items()}
        call = TransposedCall(
            **pairs, groups=conv.groups, activation=activation_code(OP, activation), negative_slope=slope
        )
        return _TransposedPack(slots, dtype, key, call, Epilogue(eps, activation, slope))


_LEAST = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


class _TransposedPack(Pack):
    """All of a block except its inputs: the packs of the phases, and what is bound for each shape.

    Where a phase has no taps the plain op has to run, and nothing is packed.
    """

    pads = False

    def __init__(
        self, slots: Sequence[Slot], dtype: torch.dtype, key: Any, call: TransposedCall, epilogue: Epilogue
    ) -> None:
        self.call = call
        self.by_shape: dict[torch.Size, BoundTransposed | None] = {}

        def make(twins: list[Any]) -> Any:
            weight, *vectors = twins
            weight = weight.to(dtype)
            self.channels, k, *size = weight.shape
            self.k = k * call.groups
            self.rows, self.columns = call.phases(size)
            if not all(p.taps for p in (*self.rows, *self.columns)):
                return None
            return pack_phases(weight, vectors, self.rows, self.columns, call.groups, epilogue)

        super().__init__(slots, dtype, key, make)

    def bound_for(self, x: torch.Size) -> BoundTransposed | None:
        """What runs an input of shape ``x``; None where the plain op has to, as where a phase reads nothing of it."""
        found = self.by_shape.get(x, self)
        if found is not self:
            return found  # type: ignore[return-value]
        fits = self.value is not None and x[1] == self.channels and fit(self.rows, self.columns, x[2:])
        made = BoundTransposed(self.value, self.call.stride, self.k, x, False) if fits else None
        if len(self.by_shape) >= _MOST_SHAPES:
            self.by_shape.clear()
        self.by_shape[x] = made
        return made
