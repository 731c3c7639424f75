"""The specs of the int8 family: exact sums, the scaled product, quantisation; and the shapes to time."""

from __future__ import annotations

from typing import Any

import torch

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._spec import OpSpec, Sample, lay_out
from pykernels.ops.int8_matmul import int8_matmul, quantize_int8
from pykernels.ops.int8_matmul.op import INT8_MATMUL, INT8_MATMUL_SCALED, QUANTIZE_INT8
from pykernels.ops.int8_matmul.reference import int8_matmul_reference, quantize_int8_reference

#: Of a scaled product: of the sum, of the scales' product, of the multiply-add, and a few of the activation.
ROUNDINGS = 8


def _integers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def _product(
    name: str, m: int, n: int, k: int, *, a: str = "", b: str = "", extremes: bool = False, zero_point: str = "",
    bench: bool = False,
) -> Sample:  # fmt: skip
    """The plain sum; ``a`` and ``b`` are layouts."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        left, right = _integers(generator, m, k), _integers(generator, k, n)
        if extremes:
            left, right = (torch.where(t % 2 == 0, 127, -128).to(torch.int8) for t in (left, right))
        options = {}
        if zero_point:
            options["a_zero_point"] = _integers(generator, *((m,) if zero_point == "rows" else ())).int()
        return (lay_out(left, a), lay_out(right, b)), options

    return Sample(name, make, reduction=k, flops=2 * m * n * k, bytes=m * k + k * n + 4 * m * n, bench=bench)


def _scaled(
    name: str, m: int, n: int, k: int, *, a_scale: str = "rows", b_scale: str = "columns", zero_point: str = "",
    bias: bool = True, activation: str = "none", out: torch.dtype | None = None, b: str = "transposed",
    bench: bool = False,
) -> Sample:  # fmt: skip
    """The product with an epilogue; ``out`` None is the dtype of the scales, and float32 for float64."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def scale(kind: str, rows: int, size: float) -> torch.Tensor:
            shape = {"one": (), "rows": (rows,), "columns": (rows,), "(n, 1)": (rows, 1), "(1, n)": (1, rows)}[kind]
            if out == torch.int8:  # powers of two: then the result is exact, and so is its rounding
                return torch.exp2(-torch.randint(3, 8, shape, generator=generator)).to(dtype)
            return (size * (0.5 + torch.rand(shape, generator=generator))).to(dtype)

        options: dict[str, Any] = {"activation": activation, "out_dtype": out or dtype}
        if options["out_dtype"] == torch.float64:
            options["out_dtype"] = torch.float32
        # The result has about unit variance.
        if a_scale:
            options["a_scale"] = scale(a_scale, m, 1 / 74)
        if b_scale:
            options["b_scale"] = scale(b_scale, n, 1 / (74 * max(k, 1) ** 0.5))
        if zero_point:
            options["a_zero_point"] = _integers(generator, *((m,) if zero_point == "rows" else (1,))).int()
        if bias:
            options["bias"] = torch.randint(-8, 9, (n,), generator=generator).to(dtype) / 8
        return (_integers(generator, m, k), lay_out(_integers(generator, k, n), b)), options

    width = 1 if out == torch.int8 else 4
    return Sample(
        name, make, reduction=ROUNDINGS, flops=2 * m * n * k, bytes=m * k + k * n + width * m * n, bench=bench
    )


def _quantized(
    name: str, shape: tuple[int, ...], *, axis: int | None = None, symmetric: bool = True, kind: str = "normal",
    bench: bool = False,
) -> Sample:  # fmt: skip
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind == "zeros":
            x = torch.zeros_like(x)
        elif kind == "positive":
            x = x.abs() + 3
        elif kind == "ties":  # multiples of half a step
            x = (2 * x).round().clamp(-9, 9) / 2
            x.view(-1)[0] = 127
        elif kind == "wide":
            x = x * torch.exp2(torch.randint(-60, 60, shape, generator=generator))
        elif kind == "sliced":
            x = torch.stack((x, torch.full_like(x, 1e6)), -1).flatten(-2)[..., ::2]
        return (x.to(dtype),), {"axis": axis, "symmetric": symmetric}

    n = torch.Size(shape).numel()
    return Sample(name, make, reduction=1, flops=4 * n, bytes=9 * n, bench=bench)


INT8_MATMUL_SPEC = OpSpec(
    op=INT8_MATMUL,
    has_int8=True,
    has_floats=False,
    function=int8_matmul,
    reference=int8_matmul_reference,
    samples=(
        _product("square", 64, 64, 64),
        _product("one", 1, 1, 1),
        _product("row", 1, 96, 300),
        _product("column", 70, 1, 129),
        _product("odd", 13, 37, 71),
        _product("few-rows", 3, 137, 171),
        _product("few-rows-transposed", 4, 70, 331, b="transposed", extremes=True),
        _product("few-rows-sliced", 2, 70, 131, b="sliced"),
        _product("b-transposed", 33, 65, 130, b="transposed"),
        _product("a-transposed", 33, 65, 130, a="transposed"),
        _product("sliced", 20, 30, 40, a="sliced", b="sliced"),
        _product("expanded", 20, 30, 40, a="expanded", b="expanded"),
        _product("tall", 300, 20, 50),
        _product("deep", 10, 40, 1100),
        _product("wide", 5, 700, 33),
        _product("blocks", 110, 300, 600, b="transposed"),
        _product("extremes", 17, 33, 515, extremes=True),
        _product("zero-point", 9, 33, 40, zero_point="one"),
        _product("zero-points", 30, 33, 40, zero_point="rows", extremes=True),
        _product("no-rows", 0, 5, 7),
        _product("no-columns", 5, 0, 7),
        _product("no-terms", 5, 7, 0),
        _product("1024", 1024, 1024, 1024, bench=True),
        _product("16x4096x4096", 16, 4096, 4096, b="transposed", bench=True),
        _product("1x4096x4096", 1, 4096, 4096, b="transposed", bench=True),
    ),
    exact=True,
)

INT8_MATMUL_SCALED_SPEC = OpSpec(
    op=INT8_MATMUL_SCALED,
    has_int8=True,
    function=int8_matmul,
    reference=int8_matmul_reference,
    samples=(
        _scaled("rows-columns", 33, 65, 130),
        _scaled("one-one", 33, 65, 130, a_scale="one", b_scale="one"),
        _scaled("matrix-scales", 20, 30, 40, a_scale="(n, 1)", b_scale="(1, n)"),
        _scaled("no-scales", 20, 30, 4, a_scale="", b_scale=""),
        _scaled("no-bias", 20, 30, 40, bias=False),
        _scaled("row", 1, 70, 300),
        _scaled("few-rows", 3, 70, 300, b="", activation="relu"),
        _scaled("zero-points", 20, 47, 40, zero_point="rows"),
        _scaled("zero-point", 20, 47, 40, zero_point="one", activation="relu"),
        _scaled("deep", 7, 40, 1100, b=""),
        _scaled("int8-out", 20, 50, 40, a_scale="one", bias=False, out=torch.int8),
        _scaled("int8-out-bias-relu", 20, 45, 40, activation="relu", out=torch.int8),
        _scaled("no-rows", 0, 5, 7),
        _scaled("no-columns", 5, 0, 7),
        _scaled("no-terms", 5, 7, 0),
        *(_scaled(activation, 9, 70, 50, activation=activation) for activation in ACTIVATIONS),
        _scaled("1024-gelu", 1024, 1024, 1024, activation="gelu", bench=True),
        _scaled("4096x1024x4096-int8-out", 4096, 4096, 1024, activation="relu", out=torch.int8, bench=True),
        _scaled("16x4096x4096-f32-out", 16, 4096, 4096, bench=True),
    ),
)

QUANTIZE_INT8_SPEC = OpSpec(
    op=QUANTIZE_INT8,
    function=quantize_int8,
    reference=quantize_int8_reference,
    samples=(
        *(
            _quantized(f"{name}{'' if symmetric else '-asymmetric'}", shape, axis=axis, symmetric=symmetric, kind=kind)
            for symmetric in (True, False)
            for name, shape, axis, kind in (
                ("tensor", (37, 53), None, "normal"),
                ("rows", (37, 53), 0, "normal"),
                ("columns", (37, 53), -1, "normal"),
                ("middle", (5, 7, 11), 1, "normal"),
                ("last-of-3", (5, 7, 11), 2, "normal"),
                ("0-d", (), None, "normal"),
                ("one-slice", (1, 40), 0, "normal"),
                ("large", (200, 700), None, "normal"),
                ("zeros", (6, 30), 0, "zeros"),
                ("positive", (6, 30), 0, "positive"),
                ("ties", (6, 30), None, "ties"),
                ("wide-range", (40, 40), 0, "wide"),
                ("sliced", (12, 21), 0, "sliced"),
                ("empty", (0, 5), None, "normal"),
                ("empty-slices", (5, 0), 0, "normal"),
                ("no-slices", (0, 5), 0, "normal"),
            )
        ),
        _quantized("1024x4096-rows", (1024, 4096), axis=0, bench=True),
        _quantized("4096x4096", (4096, 4096), bench=True),
    ),
)

SPECS: tuple[OpSpec, ...] = (INT8_MATMUL_SPEC, INT8_MATMUL_SCALED_SPEC, QUANTIZE_INT8_SPEC)
