"""The spec of int8_conv2d: samples that cover the contract, and the layers of ResNets to time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.conv_bn_act.arguments import geometry, output_size
from pykernels.ops.int8_conv2d import int8_conv2d
from pykernels.ops.int8_conv2d.op import INT8_CONV2D


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

        x, weight = lay_out(integers(*x_shape), layout), integers(k, c // g.groups, r, s)
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
            options["residual"] = lay_out(added if residual == "int8" else (added / 64).to(dtype), layout)
            options["residual_scale"] = 2.0**-6 if exact or residual == "int8" else 0.7
        if exact:
            options["out_scale"] = 0.5
        return (x, weight, *vectors), options

    # Roundings: of the sum, the scale, the additions, and a few of the activation; see int8_matmul's.
    return Sample(
        name, make, reduction=8, flops=2 * n * k * p * q * terms, bytes=n * c * h * w + k * (terms + n * p * q),
        bench=bench,
    )  # fmt: skip


int8_conv2d_reference = partial(int8_conv2d, backend="reference")

INT8_CONV2D_SPEC = OpSpec(
    op=INT8_CONV2D,
    has_int8=True,
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
)  # fmt: skip

SPECS: tuple[OpSpec, ...] = (INT8_CONV2D_SPEC,)
