"""Int8Conv2d: a convolution with int8 weights on int8 activations, whose scales are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pykernels.nn._packed import Pack, PacksWeights, Slot
from pykernels.nn._replaceable import check_replaceable
from pykernels.nn.int8 import _quantize_rows
from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import check_int, check_number, fail, refuse_gradient
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import geometry
from pykernels.ops.int8_conv2d import int8_conv2d
from pykernels.ops.int8_conv2d.arguments import Int8ConvCall
from pykernels.ops.int8_conv2d.op import INT8_CONV2D_BOUND

#: Activations with act(s t) = s act(t) for s > 0: the output's scale goes into those of the sums.
HOMOGENEOUS = ("none", "relu", "leaky_relu")


class Grid(NamedTuple):
    """What int8 numbers stand for: ``scale * (q - zero_point)``."""

    scale: float
    zero_point: int = 0

    def quantize(self, x: Tensor) -> Tensor:
        """``x`` to the nearest of these, ties to even; NaN as 0."""
        q = torch.where(x.isnan(), 0, x / self.scale).round() + self.zero_point
        return q.clamp(-128, 127).to(torch.int8)

    def dequantize(self, q: Tensor) -> Tensor:
        """The float32 numbers that ``q`` stands for."""
        return self.scale * (q.float() - self.zero_point)


class Grids(NamedTuple):
    """Those of a convolution's tensors; None for one that is float, or that there is not."""

    x: Grid | None
    residual: Grid | None
    out: Grid | None

    @classmethod
    def of(cls, x: tuple[Any, Any], residual: tuple[Any, Any], out: tuple[Any, Any]) -> Grids:
        """From scales and zero points that a user gave; raises where one is wrong."""
        return cls(_grid("x", *x), _grid("residual", *residual), _grid("out", *out))

    def zero_points(self) -> tuple[int, int, int]:
        """Theirs; 0 where there is no grid."""
        x, residual, out = (0 if grid is None else grid.zero_point for grid in self)
        return x, residual, out


class Factors(NamedTuple):
    """What int8_conv2d multiplies by: sums and bias, the residual, and the activation's result."""

    sums: float
    residual: float
    out: float


def factors_of(activation: str, residual: Grid | None, out: Grid | None) -> Factors:
    """Those of a convolution with this activation, whose residual and result lie on these grids, or are float."""
    scale = 1.0 if residual is None else residual.scale
    if out is None:
        return Factors(1.0, scale, 1.0)
    if activation in HOMOGENEOUS:
        return Factors(1 / out.scale, scale / out.scale, 1.0)
    return Factors(1.0, scale, 1 / out.scale)


class Int8Conv2d(PacksWeights, nn.Module):
    """``activation(conv(x) + residual)`` on int8 numbers, for inference.

    ``x`` is int8 on the grid ``x_scale * (q - x_zero_point)``, or float, and then it is rounded to that grid first. The
    output is int8 on the grid of ``out_scale`` and ``out_zero_point``; without an ``out_scale`` it is float32. A
    ``residual`` is int8 on its grid where there is a ``residual_scale``, else float. Sums are exact, and what follows
    them is `pykernels.ops.int8_conv2d`'s: with an activation of none, relu, relu6 or leaky_relu the output is the same
    to the bit on every CPU.

    There are no parameters, but three buffers: ``weight`` (K, C / groups, R, S) int8, ``weight_scale`` (K,), and
    ``bias`` (K,) or None, both float32 whatever the module is cast to. The grids are plain numbers, `x_grid`,
    `residual_grid` and `out_grid`; a state_dict has them as its extra state.

    >>> conv8 = pk.nn.Int8Conv2d.from_torch(conv, bn, x_scale=0.02, out_scale=0.05, activation="relu")
    >>> y = conv8(x)                           # x: (N, C, H, W) int8 or float; y: (N, K, P, Q) int8

    Quantisation has no gradient: the module refuses an input that requires one, except under ``torch.no_grad()``. It
    refuses the state_dict of a `torch.nn.Conv2d` too, which has no grids; `from_torch` takes such a module. The weight
    is packed at the first call, and again when it or a grid has changed
    (`pykernels.nn._packed`).

    Args:
        in_channels: C, the channels of ``x``.
        out_channels: K, the channels of the output.
        kernel_size: (R, S), or one int for both.
        stride: The step of the filter, an int or a pair.
        padding: An int, a pair, 'same' or 'valid'. The padded pixels are zeros, of value ``x_zero_point`` on the grid.
        dilation: The distance of the filter's taps, an int or a pair.
        groups: C and K are divisible by it.
        bias: Whether there is a bias.
        device: Where the buffers lie.
        x_scale: The scale of ``x``'s grid.
        x_zero_point: Its zero point, in [-128, 127].
        out_scale: The scale of the output's grid; None for a float32 output.
        out_zero_point: Its zero point, in [-128, 127].
        residual_scale: The scale of the residual's grid; None for a float residual, or for none.
        residual_zero_point: Its zero point, in [-128, 127].
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.

    Raises:
        ValueError: A scale, a zero point or the shape of ``x`` is wrong; ``activation`` is unknown.
        TypeError: ``x`` or ``residual`` has another dtype than its grid asks for.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    _most_compared = 0  # packing saves less here than a comparison costs

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        *,
        x_scale: float,
        x_zero_point: int = 0,
        out_scale: float | None = None,
        out_zero_point: int = 0,
        residual_scale: float | None = None,
        residual_zero_point: int = 0,
        activation: str = "none",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device)
        grids = Grids.of((x_scale, x_zero_point), (residual_scale, residual_zero_point), (out_scale, out_zero_point))
        self._assemble(conv, None, grids, activation, negative_slope)

    @classmethod
    def from_torch(
        cls,
        conv: nn.Conv2d,
        bn: nn.BatchNorm2d | None = None,
        *,
        x_scale: float,
        x_zero_point: int = 0,
        out_scale: float | None = None,
        out_zero_point: int = 0,
        residual_scale: float | None = None,
        residual_zero_point: int = 0,
        activation: str = "none",
        negative_slope: float = 0.01,
    ) -> Int8Conv2d:
        """Makes the int8 form of ``conv``, ``bn`` by its running statistics, and ``activation``; both stay as they are.

        Args:
            conv: A `torch.nn.Conv2d` that pads with zeros.
            bn: The `torch.nn.BatchNorm2d` that follows it, or None.
            x_scale: The scale of ``x``'s grid.
            x_zero_point: Its zero point, in [-128, 127].
            out_scale: The scale of the output's grid; None for a float32 output.
            out_zero_point: Its zero point, in [-128, 127].
            residual_scale: The scale of the residual's grid; None for a float residual, or for none.
            residual_zero_point: Its zero point, in [-128, 127].
            activation: One of `pykernels.ops.ACTIVATIONS`.
            negative_slope: The slope of leaky_relu below 0.

        Raises:
            TypeError: ``conv`` or ``bn`` is not torch's, or overrides ``forward``.
            ValueError: They have hooks, ``conv`` pads otherwise than with zeros, or ``bn`` has no statistics.
        """
        where = "Int8Conv2d.from_torch"
        check_replaceable(where, "conv", conv, nn.Conv2d)
        if bn is not None:
            check_replaceable(where, "bn", bn, nn.BatchNorm2d)
            if bn.num_features != conv.out_channels:
                expected = f"{conv.out_channels} features (conv's output channels)"
                fail(ValueError, where, "bn", expected, bn.num_features)
            if bn.running_mean is None:
                fail(ValueError, where, "bn", "running statistics", None)
        if conv.padding_mode != "zeros":
            fail(ValueError, where, "conv", "padding_mode 'zeros'", repr(conv.padding_mode))
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        grids = Grids.of((x_scale, x_zero_point), (residual_scale, residual_zero_point), (out_scale, out_zero_point))
        self._assemble(conv, bn, grids, activation, negative_slope)
        return self.train(conv.training)

    def _assemble(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, grids: Grids, activation: str, negative_slope: float
    ) -> None:
        activation_code("Int8Conv2d", activation)
        check_number("Int8Conv2d", "negative_slope", negative_slope)
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.activation, self.negative_slope = conv.padding, activation, negative_slope
        if grids.x is None:
            fail(ValueError, "Int8Conv2d", "x_scale", "a number", None)
        self.x_grid: Grid = grids.x
        self.residual_grid: Grid | None = grids.residual
        self.out_grid: Grid | None = grids.out
        weight, bias = conv.weight.detach(), conv.bias
        if bn is not None:
            scale, bias = fold_batch_norm(bias, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
            weight = weight if scale is None else weight * scale.detach()[:, None, None, None]
        q, weight_scale = _quantize_rows(weight.flatten(1))
        self.register_buffer("weight", q.view(conv.weight.shape))
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes the convolution of int8 numbers, and what follows it.

        Args:
            x: (N, C, H, W), or (C, H, W) unbatched: int8 on its grid, or float, which is rounded to that grid first.
            residual: Added before the activation; of the result's shape, int8 if there is a ``residual_scale``, else
                float.

        Returns:
            (N, K, P, Q), or (K, P, Q) for unbatched input: int8 on the output's grid, or float32 without one.

        Raises:
            TypeError: ``x`` or ``residual`` is not a tensor, or has another dtype than its grid asks for.
            ValueError: A shape or a device is wrong. The message names it.
            RuntimeError: ``x`` or ``residual`` requires a gradient.
        """
        self._check_residual(residual)
        if isinstance(x, Tensor) and x.is_floating_point():
            refuse_gradient("Int8Conv2d", x=x)
            x = self.x_grid.quantize(x)
        # None where a compiled graph, which is to hold no copies, or the reference runs.
        pack = self._current_pack(INT8_CONV2D_BOUND, (x, residual), torch.int8)
        if pack is None or x.dim() != 4:
            return self._run_plain(x, residual)
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return torch.ops.pykernels.int8_conv2d_bound.default(x, pack.value, residual, self._out_dtype())
        except RuntimeError as problem:
            return self._after_failure(pack, problem, self._run_plain, x, residual)

    if TYPE_CHECKING:
        __call__ = forward

    def _check_residual(self, residual: Tensor | None) -> None:
        if not isinstance(residual, Tensor):
            return
        if self.residual_grid is not None and residual.dtype != torch.int8:
            expected = "torch.int8, because there is a residual_scale"
            fail(TypeError, "Int8Conv2d", "residual", expected, residual.dtype)
        if self.residual_grid is None and not residual.is_floating_point():
            expected = "a floating dtype, because there is no residual_scale"
            fail(TypeError, "Int8Conv2d", "residual", expected, residual.dtype)

    def _out_dtype(self) -> torch.dtype:
        return torch.float32 if self.out_grid is None else torch.int8

    def _grids(self) -> Grids:
        return Grids(self.x_grid, self.residual_grid, self.out_grid)

    def _factors(self) -> Factors:
        return factors_of(self.activation, self.residual_grid, self.out_grid)

    def _vectors(self, weight_scale: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What int8_conv2d takes as scale and bias."""
        factor = self._factors().sums
        return weight_scale.float() * (self.x_grid.scale * factor), None if bias is None else bias.float() * factor

    def _run_plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        scale, bias = self._vectors(self.weight_scale, self.bias)
        factors, (x_zero, residual_zero, out_zero) = self._factors(), self._grids().zero_points()
        return int8_conv2d(
            x, self.weight, scale, bias, residual=residual, residual_scale=factors.residual, stride=self.stride,
            padding=self.padding, dilation=self.dilation, groups=self.groups, activation=self.activation,
            negative_slope=self.negative_slope, out_scale=factors.out, out_dtype=self._out_dtype(), x_zero_point=x_zero,
            residual_zero_point=0 if residual is None else residual_zero, out_zero_point=out_zero,
        )  # fmt: skip

    def _slots(self) -> Sequence[Slot]:
        buffers = self._buffers
        return [(buffers, "weight"), (buffers, "weight_scale"), (buffers, "bias")]

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable) -> Pack | None:
        return super()._new_pack(slots, dtype, key) if self.weight.dtype is torch.int8 else None

    def _key(self) -> Hashable:
        call = self.stride, self.padding, self.dilation, self.groups, self.activation, self.negative_slope
        return call, self._grids()

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> Any:
        weight, weight_scale, bias = tensors
        scale, bias = self._vectors(weight_scale, bias)
        factors = self._factors()
        g = geometry(weight.shape[2:], self.stride, self.padding, self.dilation, self.groups)
        code = activation_code("Int8Conv2d", self.activation)
        call = Int8ConvCall(
            factors.residual,
            g,
            code,
            self.negative_slope,
            factors.out,
            self._out_dtype(),
            *self._grids().zero_points(),
        )
        return torch.ops.pykernels.int8_conv_bind.default(weight, scale, bias, None, *call.flat())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: self._buffers[name] for name in ("weight_scale", "bias")}
        super()._apply(fn, recurse)
        for name, before in kept.items():  # half() and bfloat16() would cost precision
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def get_extra_state(self) -> Tensor:
        """The grids of x, the residual and the output: (3, 2) float64, of scale and zero point; NaN for none."""
        rows = [(math.nan, 0.0) if grid is None else tuple(map(float, grid)) for grid in self._grids()]
        return torch.tensor(rows, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the grids of another module's state.

        Args:
            state: What `get_extra_state` gave.

        Raises:
            ValueError: There is no scale of ``x`` in it.
        """
        x, residual, out = (None if math.isnan(s) else Grid(s, int(z)) for s, z in state.tolist())
        if x is None:
            fail(ValueError, "Int8Conv2d", "_extra_state", "a scale of x", None)
        self.x_grid, self.residual_grid, self.out_grid = x, residual, out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.dtype is not torch.int8:  # a copy would cut it to whole numbers
            expected = f"pykernels.Int8Conv2d: {prefix}weight: expected torch.int8, got {weight.dtype}"
            rest[-1].append(f"{expected}; make the module by from_torch, because a state of floats has no grids")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """As nn.Conv2d's, the activation, and the grids."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding not in (0, (0, 0)):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        parts.append(f"activation={self.activation!r}")
        for name, grid in self._grids()._asdict().items():
            if grid is not None:
                parts.append(f"{name}_scale={grid.scale:.4g}")
                if grid.zero_point:
                    parts.append(f"{name}_zero_point={grid.zero_point}")
        return ", ".join(parts)


def _grid(name: str, scale: Any, zero_point: Any) -> Grid | None:
    check_int("Int8Conv2d", f"{name}_zero_point", zero_point, -128)
    if zero_point > 127:
        fail(ValueError, "Int8Conv2d", f"{name}_zero_point", "an int in [-128, 127]", zero_point)
    if scale is None:
        if zero_point != 0:
            fail(ValueError, "Int8Conv2d", f"{name}_scale", f"a number, because {name}_zero_point is given", None)
        return None
    check_number("Int8Conv2d", f"{name}_scale", scale)
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= scale <= limits.max:
        fail(ValueError, "Int8Conv2d", f"{name}_scale", "a normal float32 number above 0", scale)
    return Grid(float(scale), int(zero_point))
