"""The specs of conv_bn_act, batch_norm_act and int8_conv2d: samples that cover the contract, and layers to time."""

from __future__ import annotations

import math
from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import FLOATS, OpSpec, Sample
from pykernels.ops.conv_bn_act import conv_bn_act
from pykernels.ops.conv_bn_act.arguments import geometry, output_size
from pykernels.ops.conv_bn_act.batch_norm import batch_norm_act
from pykernels.ops.conv_bn_act.int8_conv import int8_conv2d
from pykernels.ops.conv_bn_act.reference import batch_norm_act_reference, conv_bn_act_reference, int8_conv2d_reference


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
        x, weight = _lay_out(normal(*x_shape), layout), (normal(k, c // groups, r, s) / max(terms, 1) ** 0.5).to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        vectors: list[torch.Tensor | None] = [normal(k, dtype=wide) if bias else None]
        if bn:
            variance = 0.5 + torch.rand(k, generator=generator, dtype=torch.float64)
            vectors += [0.5 * normal(k, dtype=wide), variance.to(wide)]
            vectors += [1 + 0.25 * normal(k, dtype=wide), normal(k, dtype=wide)] if affine else [None, None]
        options = {"activation": activation, "negative_slope": negative_slope, **conv}
        if residual:
            options["residual"] = _lay_out(normal(*y_shape), layout)
        return (x, weight, *vectors), options

    return Sample(
        name,
        make,
        reduction=terms + 4,  # the sum, then scale, shift, residual, activation
        flops=2 * n * k * p * q * terms,
        bytes=4 * (n * c * h * w + k * terms + (2 if residual else 1) * n * k * p * q),
        bench=bench,
    )


def _lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced":  # every second column of a wider tensor
        between = torch.full_like(x, torch.nan if x.is_floating_point() else 99)
        return torch.stack((x, between), -1).flatten(-2)[..., ::2]
    if layout == "sliced_channels_last":  # the first channels of more
        wide = torch.cat((x, torch.full_like(x, torch.nan)), -3)
        return wide.to(memory_format=torch.channels_last)[:, : x.shape[1]]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x


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

CONV_BN_ACT = OpSpec(
    name="conv_bn_act",
    function=conv_bn_act,
    reference=conv_bn_act_reference,
    samples=(*_CONTRACT, *_ACTIVATIONS, *_BENCH),
    backends={
        "cpu": None,
        "cuda": None,
        "triton": None,
    },
    dtypes=FLOATS,
)


def _norm(
    name: str,
    shape: tuple[int, ...],
    *,
    training: bool = True,
    running: bool = True,
    affine: bool = True,
    residual: bool = False,
    layout: str = "channels_last",
    activation: str = "relu",
    mean: float = 0.5,
    bench: bool = False,
) -> Sample:
    """A sample of batch_norm_act."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def vector() -> torch.Tensor:
            return normal(shape[1]).to(torch.promote_types(dtype, torch.float32))

        x = _lay_out((2 * normal(*shape) + mean).to(dtype), layout)
        vectors: list[torch.Tensor | None] = [vector(), vector().square() + 0.5] if running else [None, None]
        vectors += [1 + 0.25 * vector(), vector()] if affine else [None, None]
        options: dict[str, Any] = {"training": training, "activation": activation, "negative_slope": 0.2}
        if residual:
            options["residual"] = _lay_out(normal(*shape).to(dtype), layout)
        return (x, *vectors), options

    elements = math.prod(shape)
    return Sample(
        name,
        make,
        reduction=elements // max(shape[1], 1) + 4,
        flops=10 * elements,
        bytes=4 * elements * (2 + training + residual),
        bench=bench,
    )


_NORM = (
    _norm("channels-last", (3, 24, 7, 5)),
    _norm("channels-last-residual", (3, 16, 9, 9), residual=True),
    _norm("channels-last-odd", (2, 13, 7, 9), residual=True),
    _norm("contiguous", (3, 6, 8, 8), layout="contiguous"),
    _norm("contiguous-residual", (3, 6, 7, 7), layout="contiguous", residual=True),
    _norm("sliced", (2, 8, 6, 6), layout="sliced", residual=True),
    _norm("transposed", (2, 8, 6, 5), layout="transposed"),
    _norm("matrix", (17, 9), layout="contiguous"),
    _norm("sequence", (4, 9, 11), layout="contiguous", residual=True),
    _norm("volume", (2, 5, 3, 4, 6), layout="contiguous"),
    _norm("one-channel", (4, 1, 5, 5), residual=True),
    _norm("two-values", (2, 8, 1, 1), layout="contiguous", activation="none"),
    _norm("no-running-statistics", (3, 16, 5, 5), running=False),
    _norm("no-weight", (3, 16, 5, 5), affine=False),
    _norm("fixed-statistics", (3, 16, 5, 5), training=False, residual=True),
    _norm("batch-0", (0, 16, 5, 5), residual=True),
    *(_norm(f"{a}-residual", (3, 16, 6, 6), residual=True, activation=a) for a in ACTIVATIONS),
    *(_norm(a, (3, 11, 6, 6), activation=a, layout="contiguous") for a in ACTIVATIONS),
    _norm("resnet50-64-56-n64", (64, 64, 56, 56), bench=True),
    _norm("resnet50-256-56-n64", (64, 256, 56, 56), residual=True, bench=True),
    _norm("resnet50-1024-14-n64", (64, 1024, 14, 14), residual=True, bench=True),
    _norm("resnet50-2048-7-n64", (64, 2048, 7, 7), residual=True, bench=True),
)

BATCH_NORM_ACT = OpSpec(
    name="batch_norm_act",
    function=batch_norm_act,
    reference=batch_norm_act_reference,
    samples=_NORM,
    backends={
        "cpu": "its kernels are for GPUs alone: on a CPU torch's own batch norm runs",
        "cuda": None,
        "triton": None,
    },
    dtypes=FLOATS,
)


def _int8(
    name: str, x_shape: tuple[int, ...], k: int, kernel: int | tuple[int, int], *, scale: str = "filters",
    bias: bool = True, residual: str = "", activation: str = "none", out: torch.dtype | None = None,
    layout: str = "channels_last", extremes: bool = False, bench: bool = False, **conv: Any,
) -> Sample:  # fmt: skip
    """A sample of int8_conv2d; ``out`` None is the dtype of the vectors, and float32 for float64."""
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    *batch, c, h, w = x_shape
    g = geometry((r, s), *(conv.get(a, d) for a, d in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))))
    p, q = output_size(h, w, (r, s), g)
    y_shape, terms, n = (*batch, k, p, q), c // g.groups * r * s, batch[0] if batch else 1

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def integers(*shape: int) -> torch.Tensor:
            t = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
            return torch.where(t % 2 == 0, 127, -128).to(torch.int8) if extremes else t

        x, weight = _lay_out(integers(*x_shape), layout), integers(k, c // g.groups, r, s)
        options: dict[str, Any] = {"activation": activation, "negative_slope": 0.25, **conv}
        options["out_dtype"] = out or (torch.float32 if dtype == torch.float64 else dtype)
        if out == torch.int32:
            return (x, weight), options
        # The result has about unit variance. For int8, powers of two: then it is exact, and so is its rounding.
        size, exact = 1 / (74 * 74 * max(terms, 1) ** 0.5), out == torch.int8
        vectors: list[torch.Tensor | None] = [None, None]
        if scale:
            shape = () if scale == "one" else (k,)
            powers = torch.exp2(torch.randint(-10, -6, shape, generator=generator))
            vectors[0] = (powers if exact else size * (0.5 + torch.rand(shape, generator=generator))).to(dtype)
        if bias:
            vectors[1] = torch.randint(-8, 9, (k,), generator=generator).to(dtype) / 8
        if residual:
            added = integers(*y_shape)
            options["residual"] = _lay_out(added if residual == "int8" else (added / 64).to(dtype), layout)
            options["residual_scale"] = 2.0**-6 if exact or residual == "int8" else 0.7
        if exact:
            options["out_scale"] = 0.5
        return (x, weight, *vectors), options

    # Roundings: of the sum, the scale, the additions, and a few of the activation; see int8_matmul's.
    return Sample(
        name, make, reduction=8, flops=2 * n * k * p * q * terms, bytes=n * c * h * w + k * (terms + n * p * q),
        bench=bench,
    )  # fmt: skip


INT8_CONV2D = OpSpec(
    name="int8_conv2d",
    function=int8_conv2d,
    reference=int8_conv2d_reference,
    samples=(
        _int8("sums", (2, 16, 9, 9), 24, 3, padding=1, out=torch.int32),
        _int8("sums-extremes", (1, 40, 6, 6), 16, 3, out=torch.int32, extremes=True),
        _int8("sums-contiguous", (2, 13, 9, 7), 21, (3, 2), stride=2, layout="contiguous", out=torch.int32),
        _int8("sums-groups", (2, 12, 8, 8), 18, 3, groups=3, out=torch.int32),
        _int8("3x3-relu", (2, 16, 9, 9), 24, 3, padding=1, activation="relu"),
        _int8("1x1-one-scale", (2, 64, 7, 7), 32, 1, scale="one", bias=False),
        _int8("1x1-residual", (2, 32, 7, 7), 48, 1, residual="int8", activation="relu"),
        _int8("3x3-float-residual", (2, 16, 9, 9), 16, 3, padding=1, residual="float"),
        _int8("stem", (1, 3, 17, 15), 24, 7, stride=2, padding=3, activation="relu"),
        _int8("no-scale", (1, 2, 6, 6), 8, 1, scale=""),  # float16 holds it
        _int8("dilation-contiguous", (1, 9, 12, 11), 10, 3, padding=(2, 1), dilation=2, layout="contiguous"),
        _int8("depthwise", (2, 24, 9, 9), 24, 3, padding=1, groups=24, activation="hardswish"),
        _int8("same-unbatched", (8, 9, 8), 12, (4, 3), padding="same", layout="contiguous"),
        _int8("sliced", (2, 8, 7, 7), 16, 3, layout="sliced", residual="float"),
        _int8("int8-out", (2, 16, 9, 9), 24, 3, padding=1, out=torch.int8),
        _int8("int8-out-residual-relu", (2, 16, 9, 9), 16, 3, padding=1, residual="int8", activation="relu",
              out=torch.int8),
        _int8("int8-out-contiguous", (2, 7, 9, 9), 11, 3, padding=1, layout="contiguous", out=torch.int8),
        _int8("batch-0", (0, 8, 6, 6), 16, 3, padding=1, layout="contiguous"),
        _int8("no-channels", (2, 0, 6, 6), 8, 3, padding=1, layout="contiguous"),
        *(_int8(f"{a}-residual", (1, 8, 6, 6), 12, 1, activation=a, residual="int8") for a in ACTIVATIONS),
        _int8("resnet-3x3-64-56-n16", (16, 64, 56, 56), 64, 3, padding=1, residual="int8", activation="relu",
              out=torch.int8, bench=True),
        _int8("resnet50-1x1-256-1024-14-n16", (16, 256, 14, 14), 1024, 1, activation="relu", out=torch.int8,
              bench=True),
    ),
    backends={
        "cpu": "its kernels are for GPUs alone: on a CPU it runs as plain PyTorch",
        "cuda": "its kernels are Triton's: the one of csrc/cuda is not bound",
        "triton": None,
    },
    dtypes=FLOATS,
)  # fmt: skip

SPECS: tuple[OpSpec, ...] = (CONV_BN_ACT, BATCH_NORM_ACT, INT8_CONV2D)
