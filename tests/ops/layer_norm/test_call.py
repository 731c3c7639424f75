"""layer_norm: exactness, layouts, gradients, the call that writes where it is told, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pykernels.ops import layer_norm
from pykernels.ops._spec import ROUNDOFF
from pykernels.ops.layer_norm.spec import LAYER_NORM_SPEC
from tests.harness import (
    FORMATS,
    assert_one_graph,
    assert_threads_change_nothing,
    forced_isa,
    host_isas,
    native,
    normal,
    relative_l2,
)

OPS = torch.ops.pykernels


def is_near(y, exact, sizes=None):
    """A few roundings of float32 of each number, of the size 1 before weights and bias, and y's own."""
    stored = 0 if y.dtype is torch.float32 else ROUNDOFF[y.dtype] * exact.abs()
    return (
        (y - exact).abs() <= 6 * ROUNDOFF[torch.float32] * (1 + exact.abs() if sizes is None else sizes) + stored
    ).all()


@native
@pytest.mark.parametrize("mean", [0.0, 10.0, 10000.0])
@pytest.mark.parametrize("c", [96, 768, 5000, 300_000])
def test_a_few_roundings_whatever_the_mean(c, mean):
    x = normal(3, c) + mean
    exact = F.layer_norm(x.double(), (c,))
    for isa in host_isas():
        with forced_isa(isa):
            y = layer_norm(x, c)
        assert is_near(y, exact)
        assert mean < 10000 or (y - exact).abs().max() < (F.layer_norm(x, (c,)) - exact).abs().max()


@native
@pytest.mark.parametrize("mean", [0.0, 10000.0])
def test_channels_of_an_image_are_as_exact(mean):
    x = normal(2, 300, 5, 7) + mean
    exact = F.layer_norm(x.double().movedim(1, -1), (300,)).movedim(-1, 1)
    for isa in host_isas():
        for layout in FORMATS:
            with forced_isa(isa):
                y = layer_norm(x.contiguous(memory_format=layout), 300, channels_first=True)
            assert is_near(y, exact)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 9, 8), (1, 1, 6, 7), (3, 4, 1, 5), (2, 3, 5, 1)], ids=str)
def test_an_image_keeps_its_format(shape, layout):
    x = normal(*shape, layout=layout)
    y, expected = layer_norm(x, shape[1], channels_first=True), x + 1
    assert (y.shape, y.stride()) == (expected.shape, expected.stride())


@native
def test_rows_have_torchs_strides():
    for x in (normal(2, 5, 8), normal(2, 8, 5).mT, normal(2, 5, 16)[..., ::2], normal(1, 2, 3, 4, 5), normal(0, 3)):
        y, exact = layer_norm(x, x.shape[-1]), F.layer_norm(x.double(), x.shape[-1:])
        assert y.stride() == F.layer_norm(x, x.shape[-1:]).stride()
        assert is_near(y, exact)


@native
def test_a_nan_and_an_infinity_stay_in_their_rows():
    for layout in FORMATS:
        for bad in (torch.nan, torch.inf):
            x = normal(2, 40, 5, 6, layout=layout)
            x[1, 35, 2, 3] = bad
            y = layer_norm(x, 40, channels_first=True)
            assert y[1, :, 2, 3].isnan().all()
            assert y.isnan().sum() == 40


@native
def test_equal_numbers_give_the_bias():
    bias = normal(50)
    for value in (0.0, 1e-3, 12345.678):
        assert torch.equal(layer_norm(torch.full((3, 50), value), 50, None, bias), bias.expand(3, 50))


@native
@pytest.mark.parametrize("dims", [0, 2])
def test_layer_norm_out_writes_where_it_is_told(dims):
    for layout in FORMATS if dims == 0 else FORMATS[:1]:
        x, shape = normal(2, 6, 8, 9, layout=layout), (6,) if dims == 0 else (8, 9)
        weight, bias = normal(*shape), normal(*shape, seed=1)
        expected = layer_norm(x, shape, weight, bias, channels_first=not dims)
        call = torch.tensor([dims, 1e-5], dtype=torch.float64)
        assert torch.equal(OPS.layer_norm_bound(x, weight, bias, call), expected)
        wide = torch.full((4, 10, 8, 9), 7.0).contiguous(memory_format=layout)
        out = wide[1:3, 2:8] if dims == 0 else wide.view(-1)[: 2 * 6 * 72].view(2, 6, 8, 9)
        OPS.layer_norm_out(x, weight, bias, call, out)
        assert torch.equal(out, expected)
        out.fill_(7)
        assert (wide == 7).all()


@native
def test_layer_norm_out_refuses_what_does_not_fit():
    x, call, out = normal(1, 4, 6, 6), torch.tensor([0, 1e-5]).double(), torch.empty(1, 4, 6, 6)
    v, rows = torch.ones(4), torch.tensor([1, 1e-5]).double()
    for bad, words in (
        ((x, v, v, call[:1], out), "call: expected 2 float64 numbers"),
        ((x, v, v, call.float(), out), "call: expected 2 float64 numbers"),
        ((x, v, v, torch.tensor([5, 1e-5]).double(), out), "dims: expected an int of 0 to x's dimensions"),
        ((x, v, v, torch.tensor([-1, 1e-5]).double(), out), "dims: expected an int of 0 to x's dimensions"),
        ((x, v, v, torch.tensor([0, -1]).double(), out), "eps: expected a number that is not negative"),
        ((x, v[:3], v, call, out), r"weight: expected shape \(4\)"),
        ((x, v, v, rows, out), r"weight: expected shape \(6\)"),
        ((x, v, v.double(), call, out), "bias: expected the weight's dtype torch.float32"),
        ((x, v.bfloat16(), None, call, out), "weight: expected torch.float32"),
        ((x, v, torch.ones(8)[::2], call, out), "bias: expected a contiguous tensor"),
        ((x, v, v, call, torch.empty(1, 4, 6, 5)), r"out: expected shape \(1, 4, 6, 6\)"),
        ((x, v, v, call, torch.empty(1, 4, 6, 1).expand(1, 4, 6, 6)), "out: expected elements that do not overlap"),
        ((x, v, v, call, out.double()), "out: expected torch.float32"),
        ((x[0], v, v, call, out[0]), "x: expected 4 dimensions"),
        ((x.double(), v, v, call, out), "x: expected torch.float32 or torch.bfloat16"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.layer_norm_out: {words}"):
            OPS.layer_norm_out(*bad)


@native
def test_threads_change_nothing():
    x = normal(2, 96, 60, 61)
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_threads_change_nothing(lambda image=image: [layer_norm(image, 96, channels_first=True)], (1, 2, 3))
    assert_threads_change_nothing(lambda: [layer_norm(x, 61)], (1, 2, 3))


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_gradients(channels_first, backend):
    dtype = torch.float32 if backend == "cpu" else torch.float64
    shape = (4,) if channels_first else (5, 6)
    sizes = (2, 4, 5, 6), shape, shape
    tensors = [normal(*s, dtype=dtype, seed=i).requires_grad_() for i, s in enumerate(sizes)]

    def ours(x, weight, bias):
        return layer_norm(x, shape, weight, bias, channels_first=channels_first, backend=backend)

    def theirs(x, weight, bias):  # torch's own has no second derivative with a bias alone
        var, mean = torch.var_mean(x, 1 if channels_first else (2, 3), correction=0, keepdim=True)
        y = (x - mean) * torch.rsqrt(var + 1e-5)
        weight, bias = (t[:, None, None] if channels_first and t is not None else t for t in (weight, bias))
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    for weighted, biased in ((True, True), (False, True), (False, False)):
        found = []
        for f, wide in ((ours, dtype), (theirs, torch.float64)):
            x, weight, bias = (t.detach().to(wide).requires_grad_() for t in tensors)
            given = weight if weighted else None, bias if biased else None
            used = [t for t in (x, *given) if t is not None]
            y = f(x, *given)
            first = torch.autograd.grad((y * y.detach().cos()).sum(), used, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), used, allow_unused=True)
            found.append((y, *first, *(g for g in second if g is not None)))
        for got, exact in zip(*found, strict=True):
            assert relative_l2(got, exact) <= LAYER_NORM_SPEC.bound(dtype, x.numel())  # of sums over all of x, at most


@native
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout, requires_grad):
    x = normal(2, 4, 6, 5, layout=layout).requires_grad_(requires_grad)
    for dims, size in ((0, (4,)), (1, (5,)), (2, (6, 5))):
        weight, bias = (normal(*size, seed=i).requires_grad_(requires_grad) for i in (2, 3))
        opcheck(OPS.layer_norm.default, (x, weight, bias, dims, 1e-5))
        opcheck(OPS.layer_norm.default, (x, None, None, dims, 1e-5))
        if not requires_grad:
            call = torch.tensor([dims, 1e-5], dtype=torch.float64)
            out = torch.empty(2, 4, 6, 5) if dims else torch.empty_like(x)
            opcheck(OPS.layer_norm_out.default, (x, weight, bias, call, out))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    def f(x):
        return layer_norm(x, 4, channels_first=True) + 1, layer_norm(x, (9,))

    def calls():
        for n, h in ((2, 8), (3, 10), (5, 7)):
            x = normal(n, 4, h, 9, layout=layout)
            torch._dynamo.maybe_mark_dynamic(x, (0, 2))
            yield (x,)

    assert_one_graph(f, calls(), dynamic=None)


@native
def test_weights_of_other_dtypes():
    x = normal(3, 40).bfloat16()
    weight, bias = normal(40), normal(40, seed=1)
    for w, b in ((weight, bias), (weight.double(), bias), (weight, bias.half())):
        exact = F.layer_norm(x.double(), (40,), w.double(), b.double())
        assert is_near(layer_norm(x, 40, w, b), exact, (exact - b).abs() + w.abs() + b.abs())


def test_other_dtypes_and_devices_run_as_torchs():
    x = normal(1, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer_norm(x, 6), F.layer_norm(x, (6,)))
    with pytest.raises(RuntimeError, match="layer_norm: backend='triton' cannot run: torch's own layer norm"):
        layer_norm(x, 6, backend="triton")


X = torch.zeros(1, 4, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"normalized_shape": 3}, ValueError, r"normalized_shape: expected the last sizes of x's shape \(1, 4, 6, 6\)"),
        ({"normalized_shape": ()}, ValueError, "normalized_shape: expected the last sizes"),
        ({"normalized_shape": "6"}, TypeError, "normalized_shape: expected an int or ints"),
        ({"normalized_shape": 6.0}, TypeError, "normalized_shape: expected an int or ints"),
        ({"channels_first": True}, ValueError, "normalized_shape: expected the 4 channels"),
        ({"eps": -1}, ValueError, "eps: expected a number >= 0"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: expected shape \(6,\)"),
        ({"bias": torch.ones(1, 6)}, ValueError, r"bias: expected shape \(6,\)"),
        ({"x": X[0, 0, 0], "channels_first": True}, ValueError, r"x: expected \(N, C, ...\)"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.layer_norm: {words}"):
        layer_norm(**{"x": X, "normalized_shape": 6, **arguments})


def test_an_empty_batch_in_any_layout():
    x = torch.randn(0, 8, 16, 16)[:, :, ::2, ::2]
    assert layer_norm(x, 8, channels_first=True).shape == x.shape


def test_values_whose_squares_overflow_give_nan_as_torchs_do():
    x = normal(3, 8) * 1e25
    assert layer_norm(x, 8).isnan().all()
    assert F.layer_norm(x, (8,)).isnan().all()
