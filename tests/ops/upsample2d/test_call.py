"""upsample2d: the native op against the reference and torch, gradients, traces, bad arguments."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import upsample2d
from pykernels.ops._spec import ROUNDOFF
from tests.harness import (
    FORMATS,
    assert_one_graph,
    assert_threads_change_nothing,
    forced_isa,
    host_isas,
    native,
    normal,
)

OPS = torch.ops.pykernels
NEAREST = ("nearest", "nearest-exact")


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("mode", NEAREST)
@pytest.mark.parametrize("scale", [None, 1.0, 1.02, 1.3, 1.5, 1.7, 2.0, 2.1, 3.0, 5.5, 8.0, 0.5, 0.7])
def test_nearest_pixels_are_torchs_to_the_bit(scale, mode, layout):
    for n in (1, 2, 3, 5, 7, 8, 13, 14, 27, 40, 56, 113):
        x = torch.arange(2.0 * 5 * 3 * n).reshape(2, 5, 3, n).contiguous(memory_format=layout)
        wide = [{"scale_factor": (1.0, scale)}] if scale else [{"size": (3, m)} for m in (n, 2 * n, 3 * n, n + 1, 77)]
        for call in wide:
            if scale and int(n * scale) < 1:
                continue
            y, expected = upsample2d(x, mode=mode, **call), F.interpolate(x, mode=mode, **call)
            assert torch.equal(y, expected), (n, call)
            assert y.stride() == expected.stride()


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("corners", [False, True])
def test_bilinear_is_exact_but_for_seven_roundings(corners, layout):
    x = normal(1, 12, 37, 500, layout=layout)
    for call in ({"scale_factor": 2.0}, {"scale_factor": 1.7}, {"size": (53, 1999)}, {"size": (9, 77)}):
        y = upsample2d(x, mode="bilinear", align_corners=corners, **call)
        exact, sizes = (F.interpolate(t.double(), mode="bilinear", align_corners=corners, **call) for t in (x, x.abs()))
        # Of two weights, of their product or of two products, and of a sum of four.
        assert ((y - exact).abs() <= 7 * ROUNDOFF[torch.float32] * sizes + 1e-12).all()
        torch.testing.assert_close(
            y, F.interpolate(x, mode="bilinear", align_corners=corners, **call), atol=3e-4, rtol=0
        )


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("size", [(4, 4), (8, 4), (4, 8), (8, 8), (7, 7), (2, 4)], ids=str)
@pytest.mark.parametrize("corners", [False, True])
def test_bilinear_spreads_what_is_not_finite_as_torch_does(corners, size, value, layout):
    for c, row, column in itertools.product((1, 3, 21), range(4), range(4)):
        x = normal(1, c, 4, 4, layout=layout)
        x[0, c // 2, row, column] = value
        expected = F.interpolate(x, size=size, mode="bilinear", align_corners=corners)
        for isa in host_isas():
            with forced_isa(isa):
                y = upsample2d(x, size=size, mode="bilinear", align_corners=corners)
            torch.testing.assert_close(y, expected, equal_nan=True)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (1, 1, 6, 7), (3, 4, 1, 5), (2, 3, 5, 1), (0, 3, 6, 6)], ids=str)
def test_shapes_and_strides_are_torchs(shape, layout):
    x = normal(*shape, layout=layout)
    for mode, corners in (*((m, None) for m in NEAREST), ("bilinear", False), ("bilinear", True)):
        for call in ({"scale_factor": 2}, {"scale_factor": [1.5, 3]}, {"size": 4}, {"size": (3, 11)}):
            y, expected = (f(x, mode=mode, align_corners=corners, **call) for f in (upsample2d, F.interpolate))
            assert (y.shape, y.stride()) == (expected.shape, expected.stride())
            torch.testing.assert_close(y, expected)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("mode", range(4))
def test_upsample2d_out_writes_where_it_is_told(mode, layout):
    x = normal(2, 6, 8, 9, layout=layout)
    expected = OPS.upsample2d(x, [16, 18], 2.0, 2.0, mode)
    call = torch.tensor([mode, 2, 2], dtype=torch.float64)
    for size in ([], [16, 18]):
        assert torch.equal(OPS.upsample2d_bound(x, size, call), expected)
    for memory_format in FORMATS:
        wide = torch.full((2, 10, 16, 18), 7.0).contiguous(memory_format=memory_format)
        OPS.upsample2d_out(x, call, wide[:, 2:8])
        torch.testing.assert_close(wide[:, 2:8], expected, atol=1e-6, rtol=0)
        assert (wide[:, :2] == 7).all()
        assert (wide[:, 8:] == 7).all()


@native
def test_upsample2d_out_refuses_what_does_not_fit():
    x, call, out = normal(1, 3, 6, 6), torch.zeros(3, dtype=torch.float64), torch.empty(1, 3, 3, 3)
    for bad, words in (
        ((x, call[:2], out), "call: expected 3 float64 numbers"),
        ((x, call.float(), out), "call: expected 3 float64 numbers"),
        ((x, call - 1, out), "call: expected a mode of 0 to 3"),
        ((x, call + torch.nan, out), "call: expected a mode of 0 to 3"),
        ((x, torch.tensor([0.0, -1, 0]).double(), out), "scale_factor: expected numbers that are not negative"),
        ((x, call, torch.empty(1, 4, 3, 3)), r"out: expected shape \(1, 3, 3, 3\)"),
        ((x, call, torch.empty(1, 3, 3, 0)), "size: expected sizes of 1"),
        ((x, call, torch.empty(1, 3, 3, 1).expand(1, 3, 3, 3)), "out: expected elements that do not overlap"),
        ((x, call, out.double()), "out: expected torch.float32"),
        ((x[0], call, out), "x: expected 4 dimensions"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.upsample2d_out: {words}"):
            OPS.upsample2d_out(*bad)


@native
def test_threads_change_nothing():
    for layout in FORMATS:
        x = normal(2, 36, 30, 30, layout=layout)
        assert_threads_change_nothing(
            lambda x=x: [upsample2d(x, scale_factor=2), upsample2d(x, scale_factor=1.7, mode="bilinear")], (1, 2, 3)
        )


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients(backend):
    x = normal(2, 3, 5, 6, dtype=torch.float32 if backend == "cpu" else torch.float64).requires_grad_()
    for mode, corners in (*((m, None) for m in NEAREST), ("bilinear", False), ("bilinear", True)):
        for call in ({"scale_factor": (2, 1.5)}, {"size": (7, 4)}):
            found = []
            for f in (lambda *a, **k: upsample2d(*a, backend=backend, **k), F.interpolate):
                y = f(x, mode=mode, align_corners=corners, **call)
                (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
                found.append((y, g, *torch.autograd.grad(g.square().sum(), x)))
            for got, expected in zip(*found, strict=True):
                torch.testing.assert_close(got, expected)


@native
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(("layout", "mode"), list(itertools.product(FORMATS, range(4))))
def test_opcheck(layout, mode, requires_grad):
    x = normal(2, 4, 6, 5, layout=layout).requires_grad_(requires_grad)
    opcheck(OPS.upsample2d.default, (x, [12, 7], 2.0, 0.0, mode))
    opcheck(OPS.upsample2d.default, (x, [], 2.0, 1.7, mode))
    if not requires_grad:
        call = torch.tensor([mode, 0, 0], dtype=torch.float64)
        opcheck(OPS.upsample2d_bound.default, (x, [3, 9], call))
        opcheck(OPS.upsample2d_out.default, (x, call, torch.empty(2, 4, 3, 9)))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    def f(x):
        return upsample2d(x, scale_factor=2) + 1, upsample2d(x, (9, 14), mode="bilinear", align_corners=True)

    assert_one_graph(f, [(normal(n, 4, h, 9, layout=layout),) for n, h in ((2, 8), (3, 10), (5, 7))])


def test_autocast_leaves_it_alone():
    x = normal(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert {upsample2d(x, 4, mode=m).dtype for m in ("nearest", "bilinear")} == {torch.float32}


def test_other_dtypes_and_devices_run_as_torchs():
    x = normal(1, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(upsample2d(x, 9, mode="bilinear"), F.interpolate(x, 9, mode="bilinear"))
    with pytest.raises(RuntimeError, match="upsample2d: backend='triton' cannot run: torch's own interpolate"):
        pk.ops.upsample2d(x, 4, backend="triton")


X = torch.zeros(1, 3, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"size": 0}, ValueError, "size: expected an int or two ints >= 1"),
        ({"size": "3"}, TypeError, "size: expected an int or two ints"),
        ({}, ValueError, "size: expected either size or scale_factor, got neither"),
        ({"size": 3, "scale_factor": 2}, ValueError, "size: expected either size or scale_factor, got both"),
        ({"scale_factor": 0}, ValueError, "scale_factor: expected a number or two numbers above 0"),
        ({"scale_factor": (1, 2, 3)}, ValueError, "scale_factor: expected a number or two numbers above 0"),
        ({"scale_factor": torch.nan}, ValueError, "scale_factor: expected a number or two numbers above 0"),
        ({"scale_factor": "2"}, TypeError, "scale_factor: expected a number"),
        ({"scale_factor": 0.1}, ValueError, "scale_factor: expected numbers that leave a pixel"),
        ({"size": 3, "mode": "bicubic"}, ValueError, "mode: expected one of nearest, nearest-exact, bilinear"),
        ({"size": 3, "align_corners": True}, ValueError, 'align_corners: expected None, because mode is "nearest"'),
        ({"x": X.int(), "size": 3}, TypeError, "x: expected a floating dtype"),
        ({"x": X[0, 0], "size": 3}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\)"),
        ({"x": X[..., :0], "size": 3}, ValueError, "x: expected H and W of at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.upsample2d: {words}"):
        upsample2d(**{"x": X, **arguments})


@native
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
def test_int8_is_rounded_once_on_any_grid(mode):
    x = (normal(2, 37, 9, 11) * 60).round().clamp(-128, 127).to(torch.int8)
    for size in ((18, 22), (7, 30), (9, 11)):
        real = upsample2d(x.double(), size, mode=mode)
        results = [upsample2d(x.contiguous(memory_format=layout), size, mode=mode) for layout in FORMATS]
        assert (results[0].double() - real).abs().max() < 0.5 + 1e-4
        assert torch.equal(*results)
        assert torch.equal(results[0], upsample2d(x, size, mode=mode, backend="reference"))
        for layout, y in zip(FORMATS, results, strict=True):
            assert y.is_contiguous(memory_format=layout)
            wide = torch.full((2, 40, *size), 77, dtype=torch.int8).contiguous(memory_format=layout)
            code = ["nearest", "nearest-exact", "bilinear"].index(mode)
            OPS.upsample2d_out(x, torch.tensor([code, 0, 0]).double(), wide[:, 1:38])
            assert torch.equal(wide[:, 1:38], y)
            assert (wide[:, 38:] == 77).all()
