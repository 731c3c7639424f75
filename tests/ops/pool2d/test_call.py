"""The pools: the native ops against the reference and torch, NaN, gradients, traces, bad arguments."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import avg_pool2d, global_avg_pool2d, max_pool2d
from pykernels.ops.pool2d.arguments import PoolCall
from tests.harness import (
    FORMATS,
    assert_one_graph,
    assert_threads_change_nothing,
    native,
    normal,
)

OPS = torch.ops.pykernels


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (1, 1, 6, 7), (3, 4, 1, 5), (2, 3, 5, 1), (0, 3, 6, 6)], ids=str)
def test_shapes_and_strides_are_torchs(shape, layout):
    x = normal(*shape, layout=layout)
    small = tuple(min(2, n) for n in shape[2:])
    for size, stride, ceil in itertools.product((1, small), (None, 1, (3, 2)), (False, True)):
        for ours, theirs in ((max_pool2d, F.max_pool2d), (avg_pool2d, F.avg_pool2d)):
            y, expected = ours(x, size, stride, ceil_mode=ceil), theirs(x, size, stride, ceil_mode=ceil)
            assert (y.shape, y.stride()) == (expected.shape, expected.stride())
            torch.testing.assert_close(y, expected)
    if shape[0]:
        y, expected = global_avg_pool2d(x), F.adaptive_avg_pool2d(x, 1)
        assert (y.shape, y.stride()) == (expected.shape, expected.stride())
        torch.testing.assert_close(y, expected)
    torch.testing.assert_close(global_avg_pool2d(x, keepdim=False), x.mean((2, 3)))
    assert OPS.global_avg_pool2d(x, False).stride() == x.mean((2, 3)).stride()


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_what_is_not_finite_is_as_in_torch(layout, stride):
    x = normal(2, 21, 11, 19)
    x.flatten()[::13] = torch.nan
    x.flatten()[::17] = torch.inf
    x.flatten()[::7] = -torch.inf
    x = x.contiguous(memory_format=layout)
    for y, expected in (
        (max_pool2d(x, 3, stride, 1), F.max_pool2d(x, 3, stride, 1)),
        (max_pool2d(x, 1, stride), F.max_pool2d(x, 1, stride)),
        (avg_pool2d(x, 2, stride), F.avg_pool2d(x, 2, stride)),
        (global_avg_pool2d(x), F.adaptive_avg_pool2d(x, 1)),
    ):
        torch.testing.assert_close(y, expected, equal_nan=True)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_pool2d_out_writes_where_it_is_told(layout):
    x = normal(2, 6, 8, 9, layout=layout)
    expected = F.max_pool2d(x, 3, 2, 1)
    call = torch.tensor(PoolCall(False, (3, 3), (2, 2), (1, 1)).numbers())
    for memory_format in FORMATS:
        wide = torch.full((2, 10, 4, 5), 7.0).contiguous(memory_format=memory_format)
        OPS.pool2d_out(x, call, wide[:, 2:8])
        assert torch.equal(wide[:, 2:8], expected)
        assert (wide[:, :2] == 7).all()
        assert (wide[:, 8:] == 7).all()
    mean, out = torch.tensor(PoolCall(True, (0, 0)).numbers()), torch.empty(2, 6, 1, 1)
    OPS.pool2d_out(x, mean, out)
    torch.testing.assert_close(out, x.mean((2, 3), keepdim=True))
    bound = OPS.pool2d_bound(x, call)
    assert torch.equal(bound, expected)
    assert bound.stride() == expected.stride()


@native
def test_pool2d_out_refuses_what_does_not_fit():
    x, call = normal(1, 3, 6, 6), torch.tensor(PoolCall(False, (2, 2), (2, 2)).numbers())
    for bad, words in (
        ((x, call[:5], torch.empty(1, 3, 3, 3)), "call: expected 13 int64 numbers"),
        ((x, call, torch.empty(1, 3, 3, 2)), r"out: expected shape \(1, 3, 3, 3\)"),
        ((x, call, torch.empty(1, 3, 3, 1).expand(1, 3, 3, 3)), "out: expected elements that do not overlap"),
        ((x, call, torch.empty(1, 3, 3, 3).double()), "out: expected torch.float32"),
        ((x[0], call, torch.empty(1, 3, 3, 3)), "x: expected 4 dimensions"),
        ((x, call * -1, torch.empty(1, 3, 3, 3)), "kernel_size: expected sizes of 1"),
        ((x, torch.tensor([7, *call.tolist()[1:]]), torch.empty(1, 3, 3, 3)), "kind: expected"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.pool2d_out: {words}"):
            OPS.pool2d_out(*bad)
    with pytest.raises(RuntimeError, match=r"pykernels.pool2d_bound: call: expected 13 int64 numbers"):
        OPS.pool2d_bound(x, call[:5])


def int8_image(*shape, layout=torch.contiguous_format):
    return (normal(*shape) * 60).round().clamp(-128, 127).to(torch.int8).contiguous(memory_format=layout)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_int8_keeps_its_grid(layout):
    x = int8_image(2, 37, 9, 11, layout=layout)
    real = x.double() - 7
    mean = F.avg_pool2d(real, 3, 2, 1, count_include_pad=False)
    for y, expected in (
        (max_pool2d(x, 3, 2, 1), F.max_pool2d(real, 3, 2, 1) + 7),
        (avg_pool2d(x, 3, 2, 1, count_include_pad=False, zero_point=7), mean.float().round() + 7),
        (avg_pool2d(x, 3, 2, 1, zero_point=7), F.avg_pool2d(real, 3, 2, 1).float().round() + 7),
        (global_avg_pool2d(x, zero_point=7), real.mean((2, 3), keepdim=True).float().round() + 7),
    ):
        assert y.dtype == torch.int8
        assert torch.equal(y.double(), expected.double())
        assert y.is_contiguous(memory_format=layout)
    # An average is saturated where a divisor makes it large.
    y = avg_pool2d(x, 3, 2, 1, divisor_override=-1)
    assert torch.equal(y.double(), F.avg_pool2d(x.double(), 3, 2, 1, divisor_override=-1).clamp(-128, 127))


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_means_of_int8_are_floats_where_a_scale_is_given(layout):
    x = int8_image(2, 37, 9, 11, layout=layout)
    y = global_avg_pool2d(x, scale=0.1, zero_point=7)
    torch.testing.assert_close(y, 0.1 * (x.float() - 7).mean((2, 3), keepdim=True))
    assert y.is_contiguous(memory_format=layout)
    assert global_avg_pool2d(x[0], False, scale=0.1).shape == (37,)
    for out in (torch.empty(2, 37), torch.empty(2, 37, 1, 1)):
        OPS.int8_global_avg_pool2d_out(x, 0.1, 7, out)
        assert torch.equal(out.flatten(), y.flatten())
    with pytest.raises(RuntimeError, match=r"int8_global_avg_pool2d_out: out: expected torch.float32"):
        OPS.int8_global_avg_pool2d_out(x, 0.1, 7, torch.empty(2, 37).double())
    call = torch.tensor(PoolCall(True, (3, 3), (2, 2), (1, 1), zero_point=7).numbers())
    made = torch.empty(2, 37, 5, 6, dtype=torch.int8)
    OPS.pool2d_out(x, call, made)
    assert torch.equal(made, avg_pool2d(x, 3, 2, 1, zero_point=7))
    opcheck(OPS.int8_global_avg_pool2d.default, (x, 0.1, 7, True))
    opcheck(OPS.int8_global_avg_pool2d.default, (x, 0.1, 7, False))
    opcheck(OPS.int8_global_avg_pool2d_out.default, (x, 0.1, 7, torch.empty(2, 37)))
    opcheck(OPS.avg_pool2d.default, (x, [3, 2], [2, 1], [1, 0], False, False, 3, 7))
    opcheck(OPS.global_avg_pool2d.default, (x, True, 7))


@native
def test_threads_change_nothing():
    x = normal(2, 96, 30, 30, layout="channels_last")
    assert_threads_change_nothing(lambda: [max_pool2d(x, 3, 2), avg_pool2d(x, 3), global_avg_pool2d(x)], (1, 2, 3))


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients(backend):
    x = normal(2, 3, 5, 6, dtype=torch.float32 if backend == "cpu" else torch.float64).requires_grad_()
    for ours, theirs in (
        (lambda x: max_pool2d(x, 3, 2, 1, backend=backend), lambda x: F.max_pool2d(x, 3, 2, 1)),
        (lambda x: max_pool2d(x, 2, 1, 0, 2, backend=backend), lambda x: F.max_pool2d(x, 2, 1, 0, 2)),
        (
            lambda x: avg_pool2d(x, 3, 2, 1, True, False, backend=backend),
            lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        ),
        (
            lambda x: avg_pool2d(x, 2, divisor_override=3, backend=backend),
            lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        ),
        (lambda x: global_avg_pool2d(x, backend=backend), lambda x: F.adaptive_avg_pool2d(x, 1)),
        (lambda x: global_avg_pool2d(x, False, backend=backend), lambda x: x.mean((2, 3))),
    ):
        found = []
        for f in (ours, theirs):
            y = f(x)
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            found.append((y, g, *torch.autograd.grad(g.square().sum(), x)))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)


@native
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout, requires_grad):
    x = normal(2, 4, 6, 5, layout=layout).requires_grad_(requires_grad)
    opcheck(OPS.max_pool2d.default, (x, [3, 2], [2, 1], [1, 0], [1, 2], True))
    opcheck(OPS.avg_pool2d.default, (x, [3, 2], [2, 1], [1, 0], False, False, 3))
    opcheck(OPS.global_avg_pool2d.default, (x, True))
    opcheck(OPS.global_avg_pool2d.default, (x, False))
    if not requires_grad:
        call = torch.tensor(PoolCall(True, (2, 2), (2, 2)).numbers())
        opcheck(OPS.pool2d_out.default, (x, call, torch.empty(2, 4, 3, 2)))
        opcheck(OPS.pool2d_bound.default, (x, call))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    def f(x):
        return max_pool2d(x, 3, 2, 1) + 1, avg_pool2d(x, 2), global_avg_pool2d(x)

    calls = [(normal(n, 4, h, 9, layout=layout),) for n, h in ((2, 8), (3, 10), (5, 7))]
    assert_one_graph(f, calls)


def test_autocast_leaves_them_alone():
    x = normal(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert {f.dtype for f in (max_pool2d(x, 2), avg_pool2d(x, 2), global_avg_pool2d(x))} == {torch.float32}


def test_other_dtypes_and_devices_run_as_torchs():
    x = normal(1, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(max_pool2d(x, 2), F.max_pool2d(x, 2))
    with pytest.raises(RuntimeError, match="max_pool2d: backend='triton' cannot run: torch's own pool"):
        pk.ops.max_pool2d(x, 2, backend="triton")


X = torch.zeros(1, 3, 6, 6)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (max_pool2d, {"ceil_mode": 1}, TypeError, "ceil_mode: expected a bool, got int"),
        (avg_pool2d, {"ceil_mode": "no"}, TypeError, "ceil_mode: expected a bool, got str"),
        (avg_pool2d, {"count_include_pad": None}, TypeError, "count_include_pad: expected a bool, got NoneType"),
        (max_pool2d, {"x": torch.zeros(2, 0, 6, 6)}, ValueError, "x: expected at least 1 channel"),
        (avg_pool2d, {"x": torch.zeros(0, 6, 6)}, ValueError, "x: expected at least 1 channel"),
        (max_pool2d, {"kernel_size": 0}, ValueError, "kernel_size: expected an int or two ints >= 1"),
        (max_pool2d, {"kernel_size": "3"}, TypeError, "kernel_size: expected an int or two ints"),
        (max_pool2d, {"kernel_size": 7}, ValueError, r"x: expected an image no smaller than the window \(7, 7\)"),
        (max_pool2d, {"stride": 0}, ValueError, "stride: expected an int or two ints >= 1"),
        (max_pool2d, {"padding": 2}, ValueError, r"padding: expected at most half the window, \(1, 1\), got \(2, 2\)"),
        (max_pool2d, {"dilation": 0}, ValueError, "dilation: expected an int or two ints >= 1"),
        (max_pool2d, {"x": X.int()}, TypeError, "x: expected a floating dtype"),
        (max_pool2d, {"x": X[0, 0]}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\)"),
        (avg_pool2d, {"x": X[..., :0]}, ValueError, "x: expected H and W of at least 1"),
        (avg_pool2d, {"zero_point": 3}, ValueError, "zero_point: expected 0, because x is torch.float32, got 3"),
        (avg_pool2d, {"zero_point": 128}, ValueError, "zero_point: expected an int in"),
        (avg_pool2d, {"divisor_override": 0}, ValueError, "divisor_override: expected an int other than 0"),
        (avg_pool2d, {"divisor_override": 1.5}, TypeError, "divisor_override: expected an int"),
        (avg_pool2d, {"padding": (0, 2)}, ValueError, r"padding: expected at most half the window"),
    ],
)
def test_bad_arguments_are_named(function, arguments, error, words):
    with pytest.raises(error, match=f"pykernels.{function.__name__}: {words}"):
        function(**{"x": X, "kernel_size": 2, **arguments})


def test_a_mean_of_no_channels_is_none():
    for shape in ((2, 0, 4, 4), (0, 4, 4)):
        x = torch.zeros(shape, requires_grad=True)
        assert global_avg_pool2d(x).shape == F.adaptive_avg_pool2d(x, 1).shape
        assert global_avg_pool2d(x, keepdim=False).shape == shape[:-2]


def test_global_avg_pool2d_names_a_bad_argument():
    with pytest.raises(TypeError, match=r"pykernels.global_avg_pool2d: keepdim: expected a bool, got int"):
        global_avg_pool2d(X, keepdim=0)
    with pytest.raises(TypeError, match=r"pykernels.global_avg_pool2d: x: expected a tensor, got int"):
        global_avg_pool2d(3)
