"""Random calls of the int8 ops on each instruction set of this machine, which must give the reference's bits.

    python tools/int8_cases.py                          # 10,000 calls of each op; minutes
    python tools/int8_cases.py --count 500 int8_conv2d  # of one op

The samples of the specs, which `python -m pykernels check` runs, cover what somebody thought of; these cover the rest:
sizes on both sides of every tile, strides, zero points, extremes, layouts and threads, in combinations that nobody
chose.
Where activations stay float (weight_only_linear, int8_lstm_weight_only) sums round, and the result has to be within
bounds of float64's that come from the numbers.
A call that fails is printed with its seed: `--seed N --count 1` makes it again. The exit code is 1 then.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pykernels as pk
from pykernels.ops._check import forced_isa, host_isas, map_tensors, tensors_of
from pykernels.ops._spec import lay_out
from pykernels.ops.int8_conv2d.arguments import int8_conv_call
from pykernels.ops.int8_matmul import int8_linear

#: With these the float arithmetic of an epilogue rounds alike everywhere.
ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu")
FLOATS = (torch.float32, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "sliced")
#: A call of an op without its backend.
Call = Callable[[str], Any]


class Draw:
    """Random arguments: the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, most: int, least: int = 1) -> int:
        """A size: mostly small, and often one of a tile or beside it."""
        r = self.random
        near = r.choice((4, 8, 16, 32, 64, 128, 512)) + r.randint(-1, 1)
        return max(least, min(most, r.choice((r.randint(least, least + 8), near, r.randint(least, max(least, most))))))

    def one_of(self, *values: Any) -> Any:
        """One of them."""
        return self.random.choice(values)

    def int8(self, *shape: int) -> Tensor:
        """Numbers of all 256, or the two extremes alone, whose sums are the largest."""
        t = torch.randint(-128, 128, shape, generator=self.generator, dtype=torch.int8)
        return t if self.random.random() < 0.8 else torch.where(t < 0, -128, 127).to(torch.int8)

    def narrow(self, zero_point: int, *shape: int) -> Tensor:
        """Numbers as they are in a network: within 7 bits of ``zero_point``, and a few of all."""
        least = -128 if zero_point < -64 else 0 if zero_point > 64 else zero_point - 64
        near = torch.randint(least, least + 128, shape, generator=self.generator)
        is_far = torch.rand(shape, generator=self.generator) < self.one_of(0.0, 0.01, 0.1)
        return torch.where(is_far, self.int8(*shape), near.to(torch.int8))

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normally distributed, of any size from 1e-3 to 1e3."""
        return (torch.randn(shape, generator=self.generator) * 10.0 ** self.random.randint(-3, 3)).to(dtype)

    def positive(self, *shape: int) -> Tensor:
        """Scales."""
        return torch.rand(shape, generator=self.generator) * 0.01 + 1e-4

    def zero_point(self) -> int:
        """Of any grid, often 0."""
        return self.one_of(0, -128, 127, self.random.randint(-128, 127))


def matmul(draw: Draw) -> Call:
    """int8_matmul: sums, or with scales that are powers of two. Of others the bits are not promised."""
    m, n, k = draw.size(40), draw.size(150), draw.size(700, 0)
    a, b = draw.int8(m, k), draw.int8(k, n) if draw.one_of(True, False) else draw.int8(n, k).t()
    given: dict[str, Any] = {}
    if draw.one_of(True, False):
        given["a_zero_point"] = torch.tensor([draw.zero_point() for _ in range(m)], dtype=torch.int32)
    if draw.one_of(True, False):
        given["a_scale"] = draw.one_of(None, torch.exp2(torch.randint(-8, 0, (m,), generator=draw.generator)))
        given["b_scale"] = torch.exp2(torch.randint(-12, -4, (n,), generator=draw.generator))
        given |= {"bias": draw.one_of(None, draw.floats(n)), "activation": draw.one_of("none", "relu", "leaky_relu")}
        given["out_dtype"] = draw.one_of(*FLOATS, torch.int8)
    return lambda backend: pk.ops.int8_matmul(a, b, **given, backend=backend)


def linear(draw: Draw) -> Call:
    """int8_linear, whose rows are quantised on the way in; to a few roundings."""
    m, n, k, dtype = draw.size(20), draw.size(150), draw.size(700), draw.one_of(*FLOATS)
    x, weight, scale = draw.floats(m, k, dtype=dtype), draw.int8(n, k), draw.positive(n)
    return lambda backend: int8_linear(x, weight, scale, None, "relu", backend=backend)


def quantize(draw: Draw) -> Call:
    """quantize_int8 along any axis."""
    shape = [draw.size(40) for _ in range(draw.random.randint(1, 3))]
    x, axis = draw.floats(*shape, dtype=draw.one_of(*FLOATS)), draw.one_of(None, *range(len(shape)))
    symmetric = draw.one_of(True, False)
    return lambda backend: pk.ops.quantize_int8(x, axis=axis, symmetric=symmetric, backend=backend)


def conv(draw: Draw) -> Call:
    """int8_conv2d: any geometry, layout, residual and result. The weight is packed for the one call."""
    x, weight, given = geometry(draw)
    if draw.random.random() < 0.2:
        return lambda backend: pk.ops.int8_conv2d(x, weight, **given, out_dtype=torch.int32, backend=backend)
    scale, shift, residual, rest = epilogue(draw, x, weight, given)
    return lambda backend: pk.ops.int8_conv2d(
        x, weight, scale, shift, residual=residual, **given, **rest, backend=backend
    )


def bound_conv(draw: Draw) -> Call:
    """The same with a weight that is packed before, mostly 3x3 at stride 1, which may go by Winograd's algorithm."""
    x, weight, given = geometry(draw)
    if draw.random.random() < 0.8:
        c, padding = draw.one_of(32, 64, 128, 16 * draw.size(12)), draw.size(2, 0)
        h, w = (draw.size(20, max(1, 3 - 2 * padding)) for _ in "hw")
        x = lay_out(draw.int8(draw.size(2), c, h, w), draw.one_of(*LAYOUTS))
        weight, given = draw.int8(draw.size(70), c, 3, 3), {"padding": padding, "x_zero_point": draw.zero_point()}
    scale, shift, residual, rest = epilogue(draw, x, weight, given)

    def call(backend: str) -> Tensor:
        if backend == "reference":
            return pk.ops.int8_conv2d(x, weight, scale, shift, residual=residual, **given, **rest, backend=backend)
        names = "activation", "out_dtype", "negative_slope", "residual_scale", "out_scale"
        zeros = given["x_zero_point"], rest["residual_zero_point"], rest["out_zero_point"]
        flat = int8_conv_call(
            x, weight, residual, given.get("stride", 1), given["padding"], given.get("dilation", 1),
            given.get("groups", 1), zero_points=zeros, **{name: rest[name] for name in names},
        ).flat()  # fmt: skip
        bound = torch.ops.pykernels.int8_conv_bind(weight, scale, shift, None, *flat)
        return torch.ops.pykernels.int8_conv2d_bound(x, bound, residual, rest["out_dtype"])

    return call


def geometry(draw: Draw) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """An image, a weight, and the arguments that say how the one goes over the other."""
    groups, many = draw.one_of(1, 1, 1, 2, 3), draw.random.random() < 0.2
    c, k = (draw.random.randint(64, 132) if many else draw.size(70) for _ in "ck")
    r, s = draw.size(5), draw.size(5)
    if draw.one_of(True, False):
        r = s = draw.one_of(1, 3)
    if draw.random.random() < 0.25:
        c = groups = k
    else:
        c, k = c * groups, k * groups
    padding, dilation = (draw.size(2, 0), draw.size(2, 0)), (draw.size(2), draw.size(2))
    stride = (draw.size(3), draw.size(3)) if draw.one_of(True, False) else (1, 1)
    h, w = (draw.size(20, max(1, d * (f - 1) + 1 - 2 * p)) for d, f, p in zip(dilation, (r, s), padding, strict=True))
    zero, shape = draw.zero_point(), (draw.size(2), c, h, w)
    x = lay_out(draw.one_of(draw.int8(*shape), draw.narrow(zero, *shape)), draw.one_of(*LAYOUTS))
    given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, draw.int8(k, c // groups, r, s), given | {"x_zero_point": zero}


def epilogue(
    draw: Draw, x: Tensor, weight: Tensor, given: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None, dict[str, Any]]:
    """The scales, biases and residual of a convolution, and what says how they are used."""
    k = weight.shape[0]
    rest: dict[str, Any] = {
        "activation": draw.one_of(*ACTIVATIONS), "out_dtype": draw.one_of(*FLOATS, torch.int8, torch.int8),
        "out_scale": draw.one_of(1.0, 0.37), "negative_slope": 0.2, "residual_scale": 1.0, "residual_zero_point": 0,
    }  # fmt: skip
    rest["out_zero_point"] = draw.zero_point() if rest["out_dtype"] == torch.int8 else 0
    scale, shift = draw.positive(k), draw.one_of(None, draw.floats(k))
    kind = draw.one_of(None, torch.int8, *FLOATS)
    if kind is None:
        return scale, shift, None, rest
    like = {name: given[name] for name in ("stride", "padding", "dilation", "groups") if name in given}
    shape = torch.nn.functional.conv2d(x.to("meta"), weight.to("meta"), **like).shape
    residual = draw.int8(*shape) if kind is torch.int8 else draw.floats(*shape, dtype=kind)
    rest |= {"residual_scale": 0.13, "residual_zero_point": draw.zero_point() if kind is torch.int8 else 0}
    return scale, shift, lay_out(residual, draw.one_of(*LAYOUTS)), rest


def lstm(draw: Draw) -> Call:
    """int8_lstm: layers, directions, packed sequences."""
    arguments, given = _lstm(draw, torch.float32)  # the dtype of which the bits are promised
    return lambda backend: pk.ops.int8_lstm(*arguments, **given, backend=backend)


def _lstm(draw: Draw, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden, features, batch, steps = draw.size(70), draw.size(70, 0), draw.size(6), draw.size(5)
    layers, directions = draw.random.randint(1, 2), draw.random.randint(1, 2)
    weights: list[Tensor] = []
    scales: list[Tensor] = []
    has_bias = draw.one_of(True, False)
    for layer in range(layers):
        for _ in range(directions):
            wide = directions * hidden if layer else features
            weights += [draw.int8(4 * hidden, wide), draw.int8(4 * hidden, hidden)]
            weights += [draw.floats(4 * hidden).clamp(-9, 9) for _ in range(2 * has_bias)]
            scales += [draw.positive(4 * hidden), draw.positive(4 * hidden)]
    sizes = draw.one_of(None, sorted((draw.random.randint(1, batch) for _ in range(steps)), reverse=True))
    given: dict[str, Any] = {"num_layers": layers, "bidirectional": directions == 2}
    batch = batch if sizes is None else sizes[0]
    states = tuple(draw.floats(layers * directions, batch, hidden, dtype=dtype) for _ in range(2))
    shape = (steps, batch, features) if sizes is None else (sum(sizes), features)
    given["batch_sizes"] = None if sizes is None else torch.tensor(sizes)
    return (draw.floats(*shape, dtype=dtype), states, weights, scales), given


class Within(NamedTuple):
    """Results of float64, and how far off one may be: tensors of the same shapes, and the dtype it should have."""

    expected: list[Tensor]
    limits: list[Tensor]
    dtype: torch.dtype


def _wide(value: Any, dtype: torch.dtype) -> Any:
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _stored(dtype: torch.dtype) -> float:
    """What rounding to ``dtype`` once more may cost."""
    return 0.0 if dtype is torch.float32 else torch.finfo(dtype).eps


def weight_only_linear(draw: Draw) -> Call:
    """weight_only_linear, packed and as it lies: within (k + 8) roundings of the sum of the products' magnitudes.

    And within what VNNI's digits round, half a unit of 127 * 2^16 for the largest of a row.
    """
    m, n, k, dtype = draw.size(60), draw.size(200), draw.size(700, 0), draw.one_of(*FLOATS)
    x, weight, scale = draw.floats(m, k, dtype=dtype), draw.int8(n, k), draw.positive(n)
    x = lay_out(x, draw.one_of("", "sliced", "transposed"))
    bias, activation, packs = draw.one_of(None, draw.floats(n)), draw.one_of("none", "relu"), draw.one_of(True, False)

    def call(backend: str) -> Any:
        if backend == "reference":
            given = _wide((x, weight, scale, bias), torch.float64)
            y = pk.ops.weight_only_linear(*given, activation, backend=backend)
            steps = (weight.double() * scale.double()[:, None]).abs().t()
            largest = x.double().abs() @ steps + (0 if bias is None else bias.double().abs())
            most = x.double().abs().amax(1, keepdim=True) if k else torch.zeros(m, 1)
            digits = most * steps.sum(0) / (2 * 127 * 2**16)
            return Within([y], [(k + 8) * 2.0**-24 * largest + digits + _stored(dtype) * y.abs()], dtype)
        if not packs:
            return pk.ops.weight_only_linear(x, weight, scale, bias, activation, backend=backend)
        packed = torch.ops.pykernels.weight_only_linear_pack(weight, scale, bias)
        return torch.ops.pykernels.weight_only_linear_packed(x, packed, n, pk.ops.ACTIVATIONS.index(activation))

    return call


def weight_only_lstm(draw: Draw) -> Call:
    """int8_lstm with weight_only: four times as far off as plain float32, which random gates throw about too."""
    dtype = draw.one_of(*FLOATS)
    (x, states, weights, scales), given = _lstm(draw, dtype)
    arguments = x.clamp(-4, 4), map_tensors(states, lambda t: t.clamp(-4, 4)), weights, scales

    def call(backend: str) -> Any:
        run = functools.partial(pk.ops.int8_lstm, **given, weight_only=True, backend=backend)
        if backend != "reference":
            return run(*arguments)
        exact, plain = (tensors_of(run(*_wide(arguments, wide))) for wide in (torch.float64, torch.float32))
        limits = []
        for e, p in zip(exact, plain, strict=True):
            noise = 4 * (p - e).abs().max() if e.numel() else torch.zeros(())
            limits.append(noise + 2.0**-18 + 4 * _stored(dtype) * (1 + e.abs()))
        return Within(exact, limits, dtype)

    return call


def images(draw: Draw) -> Tensor:
    """int8 maps in any memory format."""
    return lay_out(draw.int8(draw.size(2), draw.size(70), draw.size(20), draw.size(20)), draw.one_of(*LAYOUTS))


def add(draw: Draw) -> Call:
    """int8_add of two memory formats."""
    a = images(draw)
    b = lay_out(draw.int8(*a.shape), draw.one_of(*LAYOUTS))
    scales, zeros = draw.positive(3).tolist(), [draw.zero_point() for _ in range(3)]
    activation = draw.one_of(*ACTIVATIONS)
    return lambda backend: pk.ops.int8_add(a, b, *scales, *zeros, activation, 0.2, backend=backend)


def rounding(draw: Draw) -> Call:
    """int8_quantize, int8_dequantize and int8_lookup."""
    q, scale, zero = images(draw), float(draw.positive(1)), draw.zero_point()
    x, table = draw.floats(*q.shape, dtype=draw.one_of(*FLOATS)), draw.int8(256)
    dtype = draw.one_of(*FLOATS)

    def call(backend: str) -> tuple[Tensor, ...]:
        return (
            pk.ops.int8_quantize(x, scale, zero, backend=backend),
            pk.ops.int8_dequantize(q, scale, zero, dtype, backend=backend),
            pk.ops.int8_lookup(q, table, backend=backend),
        )

    return call


def affine(draw: Draw) -> Call:
    """int8_affine of one tensor or of several."""
    first = images(draw)
    n, c, h, w = first.shape
    pieces = [first] + [lay_out(draw.int8(n, draw.size(40), h, w), draw.one_of(*LAYOUTS)) for _ in range(draw.size(4))]
    if draw.one_of(True, False):
        pieces = [first]
    c = sum(piece.shape[1] for piece in pieces)
    scale, shift = draw.positive(c), draw.floats(c)
    given = float(draw.positive(1)), draw.zero_point(), draw.one_of(*ACTIVATIONS), 0.2
    return lambda backend: pk.ops.int8_affine(pieces, scale, shift, *given, backend=backend)


def pool(draw: Draw) -> Call:
    """The three pools."""
    x, zero = images(draw), draw.zero_point()
    kernel = tuple(draw.size(min(5, n)) for n in x.shape[2:])
    padding = tuple(draw.size(k // 2, 0) for k in kernel)
    stride, ceil = (draw.size(3), draw.size(3)), draw.one_of(True, False)
    count, scale = draw.one_of(True, False), draw.one_of(None, float(draw.positive(1)))

    def call(backend: str) -> tuple[Tensor, ...]:
        return (
            pk.ops.max_pool2d(x, kernel, stride, padding, 1, ceil, backend=backend),
            pk.ops.avg_pool2d(x, kernel, stride, padding, ceil, count, zero_point=zero, backend=backend),
            pk.ops.global_avg_pool2d(x, scale=scale, zero_point=zero, backend=backend),
        )

    return call


def moved(draw: Draw) -> Call:
    """Resizes and shuffles."""
    x, size = images(draw), (draw.size(40), draw.size(40))
    mode = draw.one_of("nearest", "nearest-exact", "bilinear")
    corners, groups, r = mode == "bilinear" and draw.one_of(True, False), draw.size(4), draw.size(4)
    h, w = x.shape[2:]
    wide = lay_out(draw.int8(1, groups * draw.size(20), h, w), draw.one_of(*LAYOUTS))
    deep = lay_out(draw.int8(1, r * r * draw.size(20), h, w), draw.one_of(*LAYOUTS))
    large = lay_out(draw.int8(1, draw.size(20), h * r, w * r), draw.one_of(*LAYOUTS))

    def call(backend: str) -> tuple[Tensor, ...]:
        return (
            pk.ops.upsample2d(x, size, mode=mode, align_corners=corners or None, backend=backend),
            pk.ops.channel_shuffle(wide, groups, backend=backend),
            pk.ops.pixel_shuffle(deep, r, backend=backend),
            pk.ops.pixel_unshuffle(large, r, backend=backend),
        )

    return call


def squeeze_excite(draw: Draw) -> Call:
    """int8_squeeze_excite; its gates may differ in their last bits."""
    x, m = images(draw), draw.size(40)
    c = x.shape[1]
    weights = draw.floats(m, c), draw.floats(m), draw.floats(c, m), draw.floats(c)
    grids = *draw.positive(2).tolist(), draw.zero_point(), draw.zero_point()
    gate = draw.one_of("sigmoid", "hardsigmoid")
    return lambda backend: pk.ops.int8_squeeze_excite(x, *weights, *grids, gate=gate, backend=backend)


OPS: dict[str, Callable[[Draw], Call]] = {
    "int8_matmul": matmul,
    "int8_linear": linear,
    "quantize_int8": quantize,
    "int8_conv2d": conv,
    "int8_conv2d_bound": bound_conv,
    "int8_lstm": lstm,
    "weight_only_linear": weight_only_linear,
    "int8_lstm_weight_only": weight_only_lstm,
    "int8_add": add,
    "int8_quantize": rounding,
    "int8_affine": affine,
    "pools": pool,
    "resizes": moved,
    "int8_squeeze_excite": squeeze_excite,
}
#: Of these the bits are not promised.
NEAR = ("int8_linear", "int8_squeeze_excite")


def same(a: Any, b: Any, exact: bool) -> bool:
    """Have two results the same dtypes and shapes, and the same bits (but for those of NaN), or about the same?"""
    if isinstance(b, Within):
        return all(
            x.dtype == b.dtype and x.shape == y.shape and bool(((x.double() - y).abs() <= limit).all())
            for x, y, limit in zip(tensors_of(a), b.expected, b.limits, strict=True)
        )
    return all(
        x.dtype == y.dtype and x.shape == y.shape and (torch.equal(_key(x), _key(y)) if exact else _near(x, y))
        for x, y in zip(tensors_of(a), tensors_of(b), strict=True)
    )


def _key(t: Tensor) -> Tensor:
    if not t.is_floating_point():
        return t
    return torch.where(t.isnan(), -1, t.float().contiguous().view(torch.int32))


def _near(x: Tensor, y: Tensor) -> bool:
    """Within a number of the grid, or four roundings, of float32 and of the dtype: a sum off by one is further away."""
    if x.dtype == torch.int8:
        return bool(((x.int() - y.int()).abs() <= 1).all())
    few = 2 * torch.finfo(torch.float32).eps + (0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps)
    return bool(((x.double() - y.double()).abs() <= few * y.double().abs()).all())


def main() -> int:
    """Draws, compares and tells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="op", help=f"one of {', '.join(OPS)}; all if there is none")
    parser.add_argument("--count", type=int, default=10_000, help="calls of each op")
    parser.add_argument("--seed", type=int, default=0, help="that of the first call")
    given = parser.parse_args()
    if unknown := [name for name in given.ops if name not in OPS]:
        parser.error(f"op: expected one of {', '.join(OPS)}; got {unknown[0]!r}")
    bad, isas = 0, host_isas()
    for name in given.ops or OPS:
        begun = time.monotonic()
        for seed in range(given.seed, given.seed + given.count):
            call = OPS[name](Draw(seed))
            expected = call("reference")
            torch.set_num_threads(1 + seed % 2)
            for isa in isas:
                with forced_isa(isa):
                    if not same(call("cpu"), expected, name not in NEAR):
                        bad += 1
                        print(f"{name}: another result on {isa}: --seed {seed} --count 1 {name}")
        print(f"{name}: {given.count} calls on {', '.join(isas)}, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
