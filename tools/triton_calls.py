"""The calls whose launches the compile gate (tools/triton_gate.py) records: every Triton op, on meta tensors.

Shapes are those of ResNet-50, of LSTMs and of linear layers that the specs' bench samples time; dtypes and epilogues
are those that change the code. A call costs the compile time of what it launches, about a second a kernel and target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

#: Label -> a call. Labels name lines of the table, so they say what is special about the call.
Calls = dict[str, Callable[[], object]]

f16, bf16, f32, i8, i32 = torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32


def meta(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A contiguous tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def int8_matmul() -> Calls:
    """The product's tiles and epilogues, and quantisation."""
    from pykernels.ops._activation import ACTIVATIONS
    from pykernels.ops.int8_matmul import triton as ops

    none, relu, gelu = (ACTIVATIONS.index(name) for name in ("none", "relu", "gelu"))

    def product(m, n, k, out, act=none, *, scales=True, zero_point=False, bias=True, plain_b=False):
        b = meta(i8, k, n) if plain_b else meta(i8, n, k).t()
        ops.int8_matmul(
            meta(i8, m, k), b, meta(f32, m) if scales else None, meta(f32, n) if scales else None,
            meta(i32, m) if zero_point else None, meta(f32, n) if bias else None, act, out,
        )  # fmt: skip

    return {
        "1024x1024x1024 to int32": lambda: product(1024, 1024, 1024, i32, scales=False, bias=False, plain_b=True),
        "1024x1024x1024 gelu to f16": lambda: product(1024, 1024, 1024, f16, gelu),
        "1024x1024x1024 zero points to bf16": lambda: product(1024, 1024, 1024, bf16, zero_point=True),
        "4096x4096x1024 relu to int8": lambda: product(4096, 4096, 1024, i8, relu),
        "4096x4096x1024 gelu to f32": lambda: product(4096, 4096, 1024, f32, gelu),
        "16x4096x4096 to f32": lambda: product(16, 4096, 4096, f32),
        "32x1000x2048 to f16": lambda: product(32, 1000, 2048, f16),
        "64x4096x4096 gelu to bf16": lambda: product(64, 4096, 4096, bf16, gelu),
        "100x999x333 to f32": lambda: product(100, 999, 333, f32),
        "256x4096x4096 silu to f16": lambda: product(256, 4096, 4096, f16, ACTIVATIONS.index("silu")),
        "linear 1x4096x4096 f16": lambda: ops.int8_linear(
            meta(f16, 1, 4096), meta(i8, 4096, 4096).t(), meta(f32, 4096), None, none
        ),
        "linear 2048x5120x5120 gelu bf16": lambda: ops.int8_linear(
            meta(bf16, 2048, 5120), meta(i8, 5120, 5120).t(), meta(f32, 5120), meta(f32, 5120), gelu
        ),
        "rows of 1024x4096 f16": lambda: ops.quantize_int8(meta(f16, 1024, 4096), 0, True),
        "4096x4096 bf16, asymmetric": lambda: ops.quantize_int8(meta(bf16, 4096, 4096), -1, False),
        "columns of 4096x4096 f32": lambda: ops.quantize_int8(meta(f32, 4096, 4096), 1, True),
        "rows of 300x28672 f32, asymmetric": lambda: ops.quantize_int8(meta(f32, 300, 28672), 0, False),
        "channels of 32x64x56x56 f32": lambda: ops.quantize_int8(meta(f32, 32, 64, 56, 56), 1, True),
    }


def lstm_weights(dtype, features, hidden, layers, directions, bias):
    """Those of all layers and directions."""
    weights = []
    for layer in range(layers):
        wide = directions * hidden if layer else features
        shapes = [(4 * hidden, wide), (4 * hidden, hidden)] + [(4 * hidden,)] * (2 if bias else 0)
        weights += [meta(dtype, *shape) for _ in range(directions) for shape in shapes]
    return weights


def lstm() -> Calls:
    """Persistent with W_hh resident or streamed, a launch a step, the cell."""
    from pykernels.ops.lstm import triton as ops

    def sequence(dtype, time, batch, features, hidden, *, layers=1, both=False, bias=True, packed=False, save=False):
        directions = 2 if both else 1
        x = meta(dtype, time * batch, features) if packed else meta(dtype, time, batch, features)
        state = meta(dtype, layers * directions, batch, hidden)
        weights = lstm_weights(dtype, features, hidden, layers, directions, bias)
        sizes = meta(torch.int64, time) if packed else None
        ops.lstm(x, state, state, weights, sizes, layers, both, False, bias, save)

    def cell(dtype, batch, features, hidden, save=False):
        state = meta(dtype, batch, hidden)
        biases = meta(dtype, 4 * hidden), meta(dtype, 4 * hidden)
        weights = meta(dtype, 4 * hidden, features), meta(dtype, 4 * hidden, hidden)
        ops.lstm_cell(meta(dtype, batch, features), state, state, *weights, *biases, save)

    return {
        "forward t64 b1 h512 f16": lambda: sequence(f16, 64, 1, 256, 512, layers=2),
        "forward t64 b16 h768 bf16, saved": lambda: sequence(bf16, 64, 16, 768, 768, save=True),
        "forward t64 b32 h1024 both f16": lambda: sequence(f16, 64, 32, 256, 1024, both=True),
        "forward t50 b1 h128 both f32": lambda: sequence(f32, 50, 1, 1280, 128, both=True),
        "forward t64 b32 h512 f32, saved": lambda: sequence(f32, 64, 32, 256, 512, save=True),
        "forward t64 b300 h1024 f16": lambda: sequence(f16, 64, 300, 1024, 1024),
        "forward t4 b2000 h1024 f32, saved": lambda: sequence(f32, 4, 2000, 1024, 1024, save=True),
        "forward t9 b5 h29 both packed f32, saved": lambda: sequence(
            f32, 9, 5, 13, 29, both=True, bias=False, packed=True, save=True
        ),
        "forward cell b64 h512 f16": lambda: cell(f16, 64, 512, 512),
        "forward cell b1 h512 bf16, saved": lambda: cell(bf16, 1, 512, 512, save=True),
        "forward cell b1 h128 f32": lambda: cell(f32, 1, 128, 128),
    }


def lstm_backward() -> Calls:
    """Persistent and a launch a step, few and many sequences; the products behind them."""
    from pykernels.ops.lstm.triton import backward as ops
    from pykernels.ops.lstm.triton.layout import reserve_size

    def sequence(dtype, time, batch, features, hidden, *, layers=1, both=False, bias=True, packed=False):
        directions = 2 if both else 1
        x = meta(dtype, time * batch, features) if packed else meta(dtype, time, batch, features)
        output = meta(dtype, *x.shape[:-1], directions * hidden)
        state = meta(dtype, layers * directions, batch, hidden)
        weights = lstm_weights(dtype, features, hidden, layers, directions, bias)
        ops.lstm_backward(
            output, state, None, x, state, state, weights, meta(torch.int64, time) if packed else None, output,
            meta(dtype, reserve_size(time * batch, hidden, layers, directions)), layers, both, False, bias,
        )  # fmt: skip

    def cell(dtype, batch, features, hidden):
        state, reserve = meta(dtype, batch, hidden), meta(dtype, 5 * batch * hidden)
        weights = meta(dtype, 4 * hidden, features), meta(dtype, 4 * hidden, hidden)
        ops.lstm_cell_backward(state, None, meta(dtype, batch, features), state, state, *weights, reserve, True)

    return {
        "backward t64 b1 h512 f16": lambda: sequence(f16, 64, 1, 256, 512, layers=2),
        "backward t64 b32 h512 f32": lambda: sequence(f32, 64, 32, 256, 512),
        "backward t50 b1 h128 both bf16": lambda: sequence(bf16, 50, 1, 1280, 128, both=True),
        "backward t64 b64 h1024 f16": lambda: sequence(f16, 64, 64, 1024, 1024),
        "backward t64 b500 h1024 f16": lambda: sequence(f16, 64, 500, 1024, 1024),
        "backward t4 b2000 h1024 f32": lambda: sequence(f32, 4, 2000, 1024, 1024),
        "backward t9 b5 h29 both packed f32": lambda: sequence(f32, 9, 5, 13, 29, both=True, bias=False, packed=True),
        "backward cell b64 h512 f16": lambda: cell(f16, 64, 512, 512),
        "backward cell b1 h128 f32": lambda: cell(f32, 1, 128, 128),
    }


def batch_norm() -> Calls:
    """Training's batch norm: both layouts, whole and divided channels, the ways to the activation's slope."""
    from pykernels.ops._activation import ACTIVATIONS
    from pykernels.ops.batch_norm_act import triton as ops

    last, planes = torch.channels_last, torch.contiguous_format

    def train(dtype, shape, layout, activation, with_residual):
        def like():
            return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)

        vectors = [meta(f32, shape[1]) for _ in range(4)]
        x, residual, rest = like(), like() if with_residual else None, (True, 1e-5, ACTIVATIONS.index(activation), 0.1)
        ops.batch_norm_statistics(x, *vectors[:2], 0.1)
        _, mask = ops.batch_norm_act(x, *vectors, residual, *rest)
        kept = residual if mask.numel() == 0 else None
        ops.batch_norm_act_backward(like(), x, *vectors, kept, mask, *rest, with_residual)

    calls: Calls = {}
    for name, dtype, shape, layout, activation, with_residual in (
        ("f16 64x64x56x56 relu", f16, (64, 64, 56, 56), last, "relu", False),
        ("f16 64x256x56x56 + relu", f16, (64, 256, 56, 56), last, "relu", True),
        ("bf16 64x1024x14x14 + gelu", bf16, (64, 1024, 14, 14), last, "gelu", True),
        ("f32 64x256x56x56 + leaky_relu", f32, (64, 256, 56, 56), last, "leaky_relu", True),
        ("f16 4x512x7x7 + relu", f16, (4, 512, 7, 7), last, "relu", True),
        ("f16 64x100x9x9 silu", f16, (64, 100, 9, 9), last, "silu", False),
        ("f16 64x64x56x56 relu, planes", f16, (64, 64, 56, 56), planes, "relu", False),
        ("f16 64x1024x14x14 + relu, planes", f16, (64, 1024, 14, 14), planes, "relu", True),
        ("f16 64x2048x7x7 + relu, planes", f16, (64, 2048, 7, 7), planes, "relu", True),
        ("f32 64x256x56x56 + hardswish, planes", f32, (64, 256, 56, 56), planes, "hardswish", True),
        ("f32 4x512x7x7 + gelu, planes", f32, (4, 512, 7, 7), planes, "gelu", True),
    ):
        calls[f"batch norm {name}"] = functools.partial(train, dtype, shape, layout, activation, with_residual)
    return calls


def conv_bn_act() -> Calls:
    """ResNet-50's layers in both memory formats, few channels, groups, depthwise, splits; and int8's epilogues."""
    from pykernels.ops._activation import ACTIVATIONS
    from pykernels.ops.conv_bn_act import triton as ops

    relu, silu, gelu = (ACTIVATIONS.index(name) for name in ("relu", "silu", "gelu"))

    def tensor(dtype, shape, planes):
        return meta(dtype, *shape) if planes else meta(dtype, *shape).to(memory_format=torch.channels_last)

    # rest: the output's type, of int8; whether by tf32, of the others
    def conv(dtype, n, c, size, k, kernel, *, stride=1, groups=1, residual=False, planes=False, act=relu, **rest):
        x, w = tensor(dtype, (n, c, size, size), planes), tensor(dtype, (k, c // groups, kernel, kernel), False)
        p = (size + 2 * (kernel // 2) - kernel) // stride + 1
        added = tensor(dtype, (n, k, p, p), planes) if residual else None
        geometry = ([stride] * 2, [kernel // 2] * 4, [1, 1], groups)
        if dtype == i8:
            ops.int8_conv2d(x, w, meta(f32, k), meta(f32, k), added, 0.5, *geometry, act, 0.01, 0.5, rest["out"])
        else:
            ops.conv_bn_act(x, w, meta(f32, k), meta(f32, k), added, *geometry, act, 0.01, rest.get("tf32", False))

    return {
        f"conv {label}": call
        for label, call in {
            "3->64 7x7/2 @224 n32 f16": lambda: conv(f16, 32, 3, 224, 64, 7, stride=2),
            "3->64 7x7/2 @224 n32 f16 NCHW": lambda: conv(f16, 32, 3, 224, 64, 7, stride=2, planes=True),
            "3->64 7x7/2 @224 f32 NCHW": lambda: conv(f32, 1, 3, 224, 64, 7, stride=2, planes=True),
            "64->64 3x3 @56 n32 f16": lambda: conv(f16, 32, 64, 56, 64, 3),
            "64->256 1x1 @56 n32 f16, residual": lambda: conv(f16, 32, 64, 56, 256, 1, residual=True),
            "256->512 1x1/2 @56 n32 bf16 NCHW": lambda: conv(bf16, 32, 256, 56, 512, 1, stride=2, planes=True),
            "128->128 3x3 @28 n32 f16, residual": lambda: conv(f16, 32, 128, 28, 128, 3, residual=True),
            "256->256 3x3 @14 n32 f16 NCHW, residual": lambda: conv(
                f16, 32, 256, 14, 256, 3, residual=True, planes=True
            ),
            "512->512 3x3 @7 f16": lambda: conv(f16, 1, 512, 7, 512, 3),
            "512->512 3x3 @7 n32 f16 NCHW, residual": lambda: conv(f16, 32, 512, 7, 512, 3, residual=True, planes=True),
            "2048->512 1x1 @7 f16": lambda: conv(f16, 1, 2048, 7, 512, 1),
            "64->64 3x3 @56 n32 f32, residual, silu": lambda: conv(f32, 32, 64, 56, 64, 3, residual=True, act=silu),
            "512->512 3x3 @7 n32 f32 NCHW, residual": lambda: conv(f32, 32, 512, 7, 512, 3, residual=True, planes=True),
            "128->128 3x3 @28 n32 f32 by tf32": lambda: conv(f32, 32, 128, 28, 128, 3, tf32=True),
            "33->37 3x3 @15 n32 f16, residual, gelu": lambda: conv(f16, 32, 33, 15, 37, 3, residual=True, act=gelu),
            "16->32 3x3 @56 n32 f16": lambda: conv(f16, 32, 16, 56, 32, 3),
            "128->128 3x3 @56 n32 groups 32 f16": lambda: conv(f16, 32, 128, 56, 128, 3, groups=32),
            "512->512 3x3 @14 n32 groups 32 f16": lambda: conv(f16, 32, 512, 14, 512, 3, groups=32),
            "96 3x3 @56 n32 depthwise f16": lambda: conv(f16, 32, 96, 56, 96, 3, groups=96, residual=True),
            "96 5x5 @56 n32 depthwise f32 NCHW": lambda: conv(f32, 32, 96, 56, 96, 5, groups=96, planes=True),
            "96 9x9 @56 n32 depthwise bf16": lambda: conv(bf16, 32, 96, 56, 96, 9, groups=96),
            "3->64 7x7/2 @224 n32 int8": lambda: conv(i8, 32, 3, 224, 64, 7, stride=2, out=i8),
            "64->64 3x3 @56 n32 int8": lambda: conv(i8, 32, 64, 56, 64, 3, out=i8),
            "128->128 3x3 @28 n32 int8, residual": lambda: conv(i8, 32, 128, 28, 128, 3, residual=True, out=i8),
            "256->256 3x3 @14 n32 int8 NCHW": lambda: conv(i8, 32, 256, 14, 256, 3, planes=True, out=i8),
            "512->512 3x3 @7 int8 to f16": lambda: conv(i8, 1, 512, 7, 512, 3, out=f16),
            "64->256 1x1 @56 n32 int8 to f32": lambda: conv(i8, 32, 64, 56, 256, 1, residual=True, out=f32),
            "96 3x3 @56 n32 depthwise int8": lambda: conv(i8, 32, 96, 56, 96, 3, groups=96, out=i8),
        }.items()
    }


FAMILIES: tuple[Callable[[], Calls], ...] = (conv_bn_act, batch_norm, lstm, lstm_backward, int8_matmul)


def calls() -> Calls:
    """All of them."""
    return {label: call for family in FAMILIES for label, call in family().items()}
