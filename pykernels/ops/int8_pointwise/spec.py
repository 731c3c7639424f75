"""The specs of the ops on each element of int8 tensors: samples that cover the contract, and maps to time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._op import Op
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.int8_pointwise import int8_add, int8_affine, int8_dequantize, int8_lookup, int8_quantize
from pykernels.ops.int8_pointwise.op import INT8_ADD, INT8_AFFINE, INT8_DEQUANTIZE, INT8_LOOKUP, INT8_QUANTIZE

_LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")


def _integers(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> Tensor:
    return lay_out(torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8), layout)


def _quantize(
    shape: tuple[int, ...], layout: str = "contiguous", scale: float = 0.03, zero_point: int = 0, *, bench: bool = False
) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        x[torch.rand(shape, generator=generator) < 0.02] = torch.nan
        x[torch.rand(shape, generator=generator) < 0.02] = torch.inf
        # Half of them lie between two numbers of the grid.
        ties = (x.clamp(-4, 4) / scale).nan_to_num().round() * scale + scale / 2
        x = torch.where(torch.rand(shape, generator=generator) < 0.5, x, ties)
        return (lay_out(x.to(dtype), layout), scale, zero_point), {}

    name = f"{'x'.join(map(str, shape))}-{layout}-{zero_point}"
    return Sample(name, make, reduction=1, bytes=5 * math.prod(shape), bench=bench)


def _dequantize(
    shape: tuple[int, ...], layout: str = "contiguous", scale: float = 0.03, zero_point: int = 0, *, bench: bool = False
) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (_integers(shape, layout, generator), scale, zero_point), {"dtype": dtype}

    name = f"{'x'.join(map(str, shape))}-{layout}-{zero_point}"
    return Sample(name, make, reduction=1, bytes=5 * math.prod(shape), bench=bench)


def _add(
    shape: tuple[int, ...],
    layout: str = "contiguous",
    b_layout: str = "",
    zero_points: tuple[int, int, int] = (0, 0, 0),
    activation: str = "none",
    *,
    scales: tuple[float, float, float] = (0.03, 0.05, 0.07),
    bench: bool = False,
) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        a, b = _integers(shape, layout, generator), _integers(shape, b_layout or layout, generator)
        return (a, b, *scales, *zero_points), {"activation": activation, "negative_slope": 0.25}

    name = f"{'x'.join(map(str, shape))}-{layout}-{b_layout}-{zero_points}-{activation}-{scales[0]}"
    return Sample(name, make, reduction=2, bytes=3 * math.prod(shape), bench=bench)


def _lookup(shape: tuple[int, ...], layout: str = "contiguous", *, bench: bool = False) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (_integers(shape, layout, generator), _integers((256,), "contiguous", generator)), {}

    return Sample(f"{'x'.join(map(str, shape))}-{layout}", make, reduction=1, bytes=2 * math.prod(shape), bench=bench)


def _affine(
    shape: tuple[int, ...],
    layout: str = "contiguous",
    channels: tuple[int, ...] = (),
    out_zero_point: int = 0,
    activation: str = "none",
    *,
    ties: bool = False,
    bench: bool = False,
) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        shapes = [(shape[0], c, *shape[2:]) for c in channels or shape[1:2]]
        x = [_integers(s, layout, generator) for s in shapes]
        scale, shift = torch.randn(2, sum(s[1] for s in shapes), generator=generator)
        if ties:
            scale, shift = (scale * 8).round() / 16, (shift * 8).round() / 2
        out_scale = 1.0 if ties else 0.37
        options = {"activation": activation, "negative_slope": 0.25}
        return (x if channels else x[0], scale, shift, out_scale, out_zero_point), options

    name = f"{'x'.join(map(str, shape))}-{layout}-{'+'.join(map(str, channels))}-{out_zero_point}-{activation}-{ties}"
    elements = math.prod(shape) // max(shape[1], 1) * sum(channels or shape[1:2])
    return Sample(name, make, reduction=2, flops=2 * elements, bytes=2 * elements, bench=bench)


def _spec(op: Op, function: Callable[..., Tensor], *samples: Sample, **facts: Any) -> OpSpec:
    return OpSpec(
        op=op, function=function, reference=partial(function, backend="reference"), samples=samples, exact=True, **facts
    )


#: Shapes and grids that both ops have samples of.
_CALLS: tuple[tuple[Any, ...], ...] = (
    *(((2, 19, 5, 7), layout, 0.03, 3) for layout in _LAYOUTS),
    ((3, 77), "contiguous", 0.0625, 0),
    ((3, 77), "transposed", 0.0625, 0),
    ((5,), "contiguous", 0.03, -128),
    ((), "contiguous", 0.03, 127),
    ((2, 3, 2, 3, 2), "contiguous", 0.7, -5),
    ((1, 3, 33, 31), "channels_last", 0.02, -7),
    ((0, 3, 2, 2), "channels_last", 0.02, 0),
)
INT8_QUANTIZE_SPEC = _spec(
    INT8_QUANTIZE,
    int8_quantize,
    *(_quantize(*call) for call in _CALLS),
    _quantize((4, 100), scale=1.2e-38),
    _quantize((1, 64, 56, 56), "channels_last", bench=True),
    _quantize((1, 3, 224, 224), bench=True),
)
INT8_DEQUANTIZE_SPEC = _spec(
    INT8_DEQUANTIZE,
    int8_dequantize,
    *(_dequantize(*call) for call in _CALLS),
    _dequantize((1, 64, 56, 56), "channels_last", bench=True),
    has_int8=True,
    has_floats=False,
)

#: Scales whose sums often lie between two numbers of the grid.
_TIES = (0.5, 0.5, 1.0)
INT8_ADD_SPEC = _spec(
    INT8_ADD,
    int8_add,
    *(_add((2, 19, 5, 7), layout, "", (3, -4, 5), "relu") for layout in _LAYOUTS),
    _add((2, 19, 5, 7), "channels_last", "contiguous"),
    *(_add((2, 70, 5, 7), "channels_last", "", (0, 0, -128), a) for a in ("none", "relu", "relu6", "leaky_relu")),
    *(_add((3, 77), scales=_TIES, zero_points=(0, 0, zero)) for zero in (0, 7)),
    _add((3, 77), scales=(100.0, 0.001, 0.01)),
    _add(()),
    _add((0, 3, 2, 2), "channels_last"),
    _add((1, 256, 56, 56), "channels_last", activation="relu", bench=True),
    has_int8=True,
    has_floats=False,
)
INT8_LOOKUP_SPEC = _spec(
    INT8_LOOKUP,
    int8_lookup,
    *(_lookup((2, 19, 5, 7), layout) for layout in _LAYOUTS),
    _lookup((2000,)),
    _lookup((3, 77), "transposed"),
    _lookup(()),
    _lookup((0, 3, 2, 2), "channels_last"),
    _lookup((1, 256, 56, 56), "channels_last", bench=True),
    has_int8=True,
    has_floats=False,
)

INT8_AFFINE_SPEC = _spec(
    INT8_AFFINE,
    int8_affine,
    *(_affine((2, 19, 5, 7), layout, (), 5, "relu") for layout in (*_LAYOUTS, "sliced_channels_last")),
    *(_affine((2, 70, 5, 7), "channels_last", (), -128, a) for a in ("none", "relu", "relu6", "leaky_relu")),
    *(_affine((2, 0, 3, 5), layout, (64, 7, 32, 1, 0), 3, "relu") for layout in ("contiguous", "channels_last")),
    *(_affine((3, 77), activation=a, ties=True) for a in ("none", "relu")),
    _affine((3, 20, 33), ties=True, out_zero_point=-7),
    _affine((3, 33, 1), channels=(16, 17)),
    _affine((2, 1, 9, 70), "channels_last", ties=True),
    _affine((0, 3, 2, 2), "channels_last"),
    _affine((1, 256, 28, 28), "channels_last", (), -128, "relu", bench=True),
    has_int8=True,
    has_floats=False,
)

SPECS: tuple[OpSpec, ...] = (
    INT8_QUANTIZE_SPEC,
    INT8_DEQUANTIZE_SPEC,
    INT8_ADD_SPEC,
    INT8_LOOKUP_SPEC,
    INT8_AFFINE_SPEC,
)
