"""The specs of conv_bn_act and of its transposed form: samples that cover the contract, and layers to time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.conv_bn_act import conv_bn_act
from pykernels.ops.conv_bn_act.arguments import geometry, output_size
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT, CONV_TRANSPOSE_BN_ACT
from pykernels.ops.conv_bn_act.transposed import conv_transpose_bn_act


def _sample(
    name: str,
    x_shape: tuple[int, ...],
    k: int,
    kernel: int | tuple[int, int],
    *,
    bias: bool = False,
    bn: bool = True,
    affine: bool = True,
    residual: bool = False,
    layout: str = "contiguous",
    activation: str = "relu",
    negative_slope: float = 0.01,
    bench: bool = False,
    **conv: Any,
) -> Sample:
    """A sample of ``x_shape`` (N, C, H, W) or (C, H, W) through ``k`` filters; ``conv`` is the geometry."""
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    *batch, c, h, w = x_shape
    groups = conv.get("groups", 1)
    g = geometry((r, s), conv.get("stride", 1), conv.get("padding", 0), conv.get("dilation", 1), groups)
    p, q = output_size(h, w, (r, s), g)
    y_shape = (*batch, k, p, q)
    n = batch[0] if batch else 1
    terms = c // groups * r * s

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        # As in a trained net: the sum has about unit variance, which the batch norm keeps.
        x, weight = lay_out(normal(*x_shape), layout), (normal(k, c // groups, r, s) / max(terms, 1) ** 0.5).to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        vectors: list[torch.Tensor | None] = [normal(k, dtype=wide) if bias else None]
        if bn:
            variance = 0.5 + torch.rand(k, generator=generator, dtype=torch.float64)
            vectors += [0.5 * normal(k, dtype=wide), variance.to(wide)]
            vectors += [1 + 0.25 * normal(k, dtype=wide), normal(k, dtype=wide)] if affine else [None, None]
        options = {"activation": activation, "negative_slope": negative_slope, **conv}
        if residual:
            options["residual"] = lay_out(normal(*y_shape), layout)
        return (x, weight, *vectors), options

    return Sample(
        name,
        make,
        reduction=terms + 4,  # the sum, then scale, shift, residual, activation
        flops=2 * n * k * p * q * terms,
        bytes=4 * (n * c * h * w + k * terms + (2 if residual else 1) * n * k * p * q),
        bench=bench,
    )


def _sequences(
    name: str,
    x_shape: tuple[int, ...],
    k: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    **rest: Any,
) -> Sample:
    """A sample of ``x_shape`` (N, C, L) or (C, L): the one of images of height 1 without the height."""
    *batch, c, length = x_shape
    pad = padding if isinstance(padding, str) else (0, padding)
    geometry: dict[str, Any] = {"stride": (1, stride), "padding": pad, "dilation": (1, dilation)}
    images = _sample(name, (*batch, c, 1, length), k, (1, kernel), **geometry, **rest)

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x, weight, *vectors), options = images.make(dtype, generator)
        options |= {"stride": stride, "padding": padding, "dilation": dilation}
        if "residual" in options:
            options["residual"] = options["residual"].squeeze(-2)
        return (x.squeeze(-2), weight.squeeze(2), *vectors), options

    return replace(images, make=make)


def _bench(
    name: str, c: int, size: int, k: int, kernel: int, *, stride: int = 1, residual: bool = False, n: int = 1
) -> Sample:
    return _sample(
        name, (n, c, size, size), k, kernel, stride=stride, padding=kernel // 2, residual=residual, bench=True
    )


_CONTRACT = (
    _sample("3x3", (2, 16, 12, 12), 32, 3, padding=1),
    _sample("3x3-residual", (2, 16, 12, 12), 16, 3, padding=1, residual=True),
    _sample("3x3-stride2", (1, 24, 15, 14), 40, 3, padding=1, stride=2),
    _sample("3x3-deep", (1, 256, 7, 7), 64, 3, padding=1),
    _sample("1x1", (2, 64, 9, 7), 48, 1),
    _sample("1x1-residual", (1, 64, 8, 8), 128, 1, residual=True),
    _sample("1x1-stride2", (2, 32, 9, 9), 64, 1, stride=2),
    _sample("7x7-stem", (1, 3, 33, 31), 64, 7, stride=2, padding=3),
    _sample("3x3-stem", (2, 3, 32, 32), 64, 3, padding=1),
    _sample("one-channel", (2, 1, 20, 10), 32, 3, padding=1),
    _sample("5x3-kernel", (2, 10, 11, 13), 20, (5, 3), padding=(2, 1)),
    _sample("stride-2-by-1", (2, 8, 11, 13), 16, 3, stride=(2, 1), padding=(0, 2)),
    _sample("stride-over-kernel", (1, 8, 13, 13), 16, 2, stride=3),
    _sample("dilation", (2, 12, 14, 14), 24, 3, padding=2, dilation=2),
    _sample("dilation-3-by-1", (1, 12, 14, 9), 24, 3, padding=(3, 1), dilation=(3, 1), stride=2),
    _sample("padding-over-kernel", (1, 8, 5, 5), 16, 3, padding=4),
    _sample("same", (1, 8, 9, 9), 16, 3, padding="same"),
    _sample("same-even-kernel", (2, 8, 9, 8), 16, (4, 2), padding="same"),
    _sample("valid", (1, 8, 9, 9), 16, 3, padding="valid"),
    _sample("groups", (2, 32, 10, 10), 64, 3, padding=1, groups=4),
    _sample("groups-odd", (2, 15, 10, 10), 21, 3, padding=1, groups=3),
    _sample("groups-1x1", (2, 32, 10, 10), 48, 1, groups=2, residual=True),
    _sample("depthwise", (2, 40, 12, 12), 40, 3, padding=1, groups=40),
    _sample("depthwise-stride2", (1, 19, 13, 13), 19, 5, padding=2, stride=2, groups=19),
    _sample("depthwise-multiplier", (1, 12, 9, 9), 36, 3, padding=1, groups=12),
    _sample("odd-channels", (2, 13, 11, 11), 37, 3, padding=1, residual=True),
    _sample("one-filter", (2, 9, 8, 8), 1, 3, padding=1, activation="none"),
    _sample("one-pixel", (1, 20, 1, 1), 24, 1),
    _sample("one-pixel-out", (2, 20, 3, 3), 24, 3),
    _sample("one-row", (1, 8, 1, 40), 16, (1, 3), padding=(0, 1)),
    _sample("tiny", (1, 1, 1, 1), 1, 1, bn=False, activation="none"),
    _sample("batch-0", (0, 8, 6, 6), 16, 3, padding=1),
    _sample("no-channels", (2, 0, 6, 6), 8, 3, padding=1),
    _sample("unbatched", (8, 10, 9), 16, 3, padding=1),
    _sample("unbatched-residual", (8, 10, 9), 8, 3, padding=1, residual=True),
    _sample("plain", (2, 8, 9, 9), 16, 3, bn=False, activation="none"),
    _sample("bias-only", (2, 8, 9, 9), 16, 3, bn=False, bias=True),
    _sample("bias-and-bn", (2, 8, 9, 9), 16, 3, bias=True),
    _sample("bn-without-affine", (2, 8, 9, 9), 16, 3, affine=False),
    _sample("residual-only", (2, 16, 9, 9), 16, 3, padding=1, bn=False, residual=True, activation="none"),
    _sample("channels-last", (2, 16, 12, 12), 32, 3, padding=1, layout="channels_last"),
    _sample("channels-last-residual", (2, 24, 9, 9), 24, 3, padding=1, residual=True, layout="channels_last"),
    _sample("channels-last-1x1", (2, 33, 7, 7), 65, 1, layout="channels_last"),
    _sample("channels-last-depthwise", (2, 24, 9, 9), 24, 3, padding=1, groups=24, layout="channels_last"),
    _sample("channels-last-stem", (1, 3, 33, 31), 64, 7, stride=2, padding=3, layout="channels_last"),
    _sample("channels-last-sliced", (2, 16, 9, 9), 16, 3, padding=1, residual=True, layout="sliced_channels_last"),
    _sample("sliced", (2, 16, 9, 9), 16, 3, padding=1, residual=True, layout="sliced"),
    _sample("transposed", (2, 16, 9, 8), 16, 3, padding=1, residual=True, layout="transposed"),
    _sequences("sequence", (2, 16, 30), 24, 5, padding=2),
    _sequences("sequence-residual", (2, 16, 30), 16, 3, padding=1, residual=True),
    _sequences("sequence-stride", (1, 1, 70), 32, 10, stride=5),
    _sequences("sequence-dilation", (2, 12, 40), 20, 3, padding=8, dilation=8),
    _sequences("sequence-same", (2, 8, 21), 16, 4, padding="same"),
    _sequences("sequence-depthwise", (2, 24, 33), 24, 7, padding=3, groups=24),
    _sequences("sequence-groups", (2, 12, 20), 18, 3, groups=3, bias=True),
    _sequences("sequence-pointwise", (2, 33, 19), 48, 1, bn=False, activation="none"),
    _sequences("sequence-unbatched", (8, 25), 8, 3, padding=1, residual=True),
    _sequences("sequence-batch-0", (0, 8, 25), 16, 3),
    _sequences("sequence-channels-last", (2, 16, 30), 16, 3, padding=1, residual=True, layout="channels_last"),
    _sequences("sequence-sliced", (2, 16, 30), 16, 3, padding=1, residual=True, layout="sliced"),
)

_ACTIVATIONS = tuple(
    _sample(f"{a}{layout}", (2, 8, 9, 9), 24, 3, padding=1, residual=True, activation=a, negative_slope=0.2,
            layout=layout[1:].replace("-", "_") or "contiguous")
    for a in ACTIVATIONS
    for layout in ("", "-channels-last")
)  # fmt: skip

# The distinct layers of ResNet-18 and -50 on 224 x 224, and of the cifar form.
_BENCH = (
    _bench("resnet-stem-7x7", 3, 224, 64, 7, stride=2),
    _bench("resnet-3x3-64-56", 64, 56, 64, 3, residual=True),
    _bench("resnet-3x3-64-128-56-s2", 64, 56, 128, 3, stride=2),
    _bench("resnet-3x3-128-28", 128, 28, 128, 3, residual=True),
    _bench("resnet-3x3-128-256-28-s2", 128, 28, 256, 3, stride=2),
    _bench("resnet-3x3-256-14", 256, 14, 256, 3, residual=True),
    _bench("resnet-3x3-256-512-14-s2", 256, 14, 512, 3, stride=2),
    _bench("resnet-3x3-512-7", 512, 7, 512, 3, residual=True),
    _bench("resnet-1x1-64-128-56-s2", 64, 56, 128, 1, stride=2),
    _bench("resnet50-1x1-64-56", 64, 56, 64, 1),
    _bench("resnet50-1x1-64-256-56", 64, 56, 256, 1, residual=True),
    _bench("resnet50-1x1-256-64-56", 256, 56, 64, 1),
    _bench("resnet50-1x1-128-512-28", 128, 28, 512, 1, residual=True),
    _bench("resnet50-1x1-512-128-28", 512, 28, 128, 1),
    _bench("resnet50-1x1-256-1024-14", 256, 14, 1024, 1, residual=True),
    _bench("resnet50-1x1-1024-256-14", 1024, 14, 256, 1),
    _bench("resnet50-1x1-512-2048-7", 512, 7, 2048, 1, residual=True),
    _bench("resnet50-1x1-2048-512-7", 2048, 7, 512, 1),
    _bench("cifar-stem-3x3", 3, 32, 64, 3),
    _bench("cifar-3x3-64-32", 64, 32, 64, 3, residual=True),
    _bench("cifar-3x3-128-16", 128, 16, 128, 3, residual=True),
    _bench("cifar-3x3-256-8", 256, 8, 256, 3, residual=True),
    _bench("cifar-3x3-512-4", 512, 4, 512, 3, residual=True),
    _bench("resnet-3x3-64-56-n16", 64, 56, 64, 3, residual=True, n=16),
    _bench("resnet50-1x1-256-1024-14-n16", 256, 14, 1024, 1, residual=True, n=16),
)

conv_bn_act_reference = partial(conv_bn_act, backend="reference")

CONV_BN_ACT_SPEC = OpSpec(
    op=CONV_BN_ACT,
    function=conv_bn_act,
    reference=conv_bn_act_reference,
    samples=(*_CONTRACT, *_ACTIVATIONS, *_BENCH),
)


def _transposed(
    name: str,
    x_shape: tuple[int, ...],
    k: int,
    kernel: int | tuple[int, int],
    *,
    bn: bool = True,
    residual: bool = False,
    layout: str = "contiguous",
    activation: str = "relu",
    bench: bool = False,
    **conv: Any,
) -> Sample:
    """A sample of ``x_shape`` (N, C, H, W) or (C, H, W) to ``k`` channels; ``conv`` is the geometry."""
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    *batch, c, h, w = x_shape
    groups, n = conv.get("groups", 1), batch[0] if batch else 1
    with torch.device("meta"):
        y_shape = torch.nn.functional.conv_transpose2d(
            torch.empty(x_shape), torch.empty(c, k // groups, r, s), **conv
        ).shape
    terms = c // groups * r * s  # at most: with a stride, each pixel of the result gets a part of the taps

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        x, weight = lay_out(normal(*x_shape), layout), (normal(c, k // groups, r, s) / terms**0.5).to(dtype)
        wide, vectors = torch.promote_types(dtype, torch.float32), []
        if bn:
            variance = (0.5 + torch.rand(k, generator=generator, dtype=torch.float64)).to(wide)
            vectors = [
                normal(k, dtype=wide),
                normal(k, dtype=wide),
                variance,
                normal(k, dtype=wide),
                normal(k, dtype=wide),
            ]
        options: dict[str, Any] = {"activation": activation, **conv}
        if residual:
            options["residual"] = lay_out(normal(*y_shape), layout)
        return (x, weight, *vectors), options

    pixels = prod(y_shape[-2:])
    return Sample(
        name,
        make,
        reduction=terms + 4,
        flops=2 * n * k * h * w * terms,
        bytes=4 * (n * c * h * w + c * k // groups * r * s + (2 if residual else 1) * n * k * pixels),
        bench=bench,
    )


CONV_TRANSPOSE_BN_ACT_SPEC = OpSpec(
    op=CONV_TRANSPOSE_BN_ACT,
    function=conv_transpose_bn_act,
    reference=partial(conv_transpose_bn_act, backend="reference"),
    samples=(
        _transposed("4x4-stride2", (2, 19, 9, 11), 21, 4, stride=2, padding=1),
        _transposed("4x4-stride2-residual", (2, 16, 8, 8), 16, 4, stride=2, padding=1, residual=True),
        _transposed("2x2-stride2", (1, 32, 7, 6), 24, 2, stride=2),
        _transposed("3x3", (2, 12, 9, 8), 20, 3, padding=1),
        _transposed("3x3-stride2-output-padding", (2, 12, 6, 7), 20, 3, stride=2, padding=1, output_padding=1),
        _transposed("5x3-stride-2-by-1", (1, 8, 9, 8), 12, (5, 3), stride=(2, 1), padding=(1, 0)),
        _transposed("stride-over-kernel", (1, 8, 5, 5), 12, 2, stride=3),
        _transposed("dilation", (1, 10, 7, 7), 12, 3, stride=2, dilation=2, padding=2),
        _transposed("groups", (2, 12, 6, 6), 18, 4, stride=2, padding=1, groups=3),
        _transposed("plain", (2, 8, 6, 6), 12, 4, stride=2, padding=1, bn=False, activation="none"),
        _transposed("unbatched", (8, 6, 6), 12, 4, stride=2, padding=1),
        _transposed("channels-last", (2, 16, 8, 9), 24, 4, stride=2, padding=1, layout="channels_last"),
        _transposed("gan-4x4-256-128-16", (1, 256, 16, 16), 128, 4, stride=2, padding=1, bench=True),
        _transposed("unet-2x2-128-64-56", (1, 128, 56, 56), 64, 2, stride=2, bn=False, bench=True),
    ),
)

SPECS: tuple[OpSpec, ...] = (CONV_BN_ACT_SPEC, CONV_TRANSPOSE_BN_ACT_SPEC)
