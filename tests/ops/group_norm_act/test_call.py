"""group_norm_act: the native op against the reference, large means, gradients, traces, bad arguments."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from pykernels.ops import ACTIVATIONS, group_norm_act
from pykernels.ops._activation import apply_activation
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


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_a_large_mean_costs_two_of_its_roundings(mean, groups, layout):
    x = (normal(2, 32, 60, 61) + mean).contiguous(memory_format=layout)
    y = group_norm_act(x, groups, activation="none")
    exact = F.group_norm(x.double(), groups)
    assert (y - exact).abs().max() <= 2**-24 * (2 * mean + 32)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("step", [1, 2])
def test_the_error_does_not_grow_with_the_group(step, mean, layout):
    x = (normal(1, 4 * step, 1024, 1024) + mean).contiguous(memory_format=layout)[:, ::step]
    exact = F.group_norm(x.double(), 1)
    for isa in host_isas():
        with forced_isa(isa):
            y = group_norm_act(x, 1, activation="none")
        assert (y - exact).abs().max() <= 2**-24 * (2 * mean + 16)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 9, 8), (1, 1, 6, 7), (3, 4, 1, 5), (2, 3, 5, 1), (0, 3, 6, 6)], ids=str)
def test_shapes_and_strides_are_torchs(shape, layout):
    x = normal(*shape, layout=layout)
    for groups in {1, shape[1]}:
        y, expected = group_norm_act(x, groups, activation="none"), torch.group_norm(x, groups)
        assert (y.shape, y.stride()) == (expected.shape, expected.stride())
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@native
def test_a_nan_stays_in_its_group():
    for layout in FORMATS:
        x = normal(2, 8, 5, 6, layout=layout)
        x[1, 5, 2, 3] = torch.nan
        y = group_norm_act(x, 4)
        assert y[1, 4:6].isnan().all()
        assert y.isnan().sum() == 2 * 30


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_group_norm_act_out_writes_where_it_is_told(layout):
    x, weight, bias = normal(2, 6, 8, 9, layout=layout), normal(6), normal(6, seed=1)
    expected = group_norm_act(x, 3, weight, bias, residual=x, activation="silu")
    call = torch.tensor([3, 1e-5, ACTIVATIONS.index("silu"), 0.01], dtype=torch.float64)
    assert torch.equal(OPS.group_norm_act_bound(x, weight, bias, x, call), expected)
    for memory_format in FORMATS:
        wide = torch.full((2, 10, 8, 9), 7.0).contiguous(memory_format=memory_format)
        OPS.group_norm_act_out(x, weight, bias, x, call, wide[:, 2:8])
        torch.testing.assert_close(wide[:, 2:8], expected, atol=1e-6, rtol=1e-6)
        assert (wide[:, :2] == 7).all()
        assert (wide[:, 8:] == 7).all()


@native
def test_group_norm_act_out_refuses_what_does_not_fit():
    x, call, out = normal(1, 4, 6, 6), torch.tensor([2, 1e-5, 1, 0]).double(), torch.empty(1, 4, 6, 6)
    v = torch.ones(4)
    for bad, words in (
        ((x, v, v, None, call[:3], out), "call: expected 4 float64 numbers"),
        ((x, v, v, None, call.float(), out), "call: expected 4 float64 numbers"),
        ((x, v, v, None, torch.tensor([3, 1e-5, 1, 0]).double(), out), "groups: expected a divisor"),
        ((x, v, v, None, torch.tensor([torch.nan, 1e-5, 1, 0]).double(), out), "groups: expected an int >= 0"),
        ((x, v, v, None, torch.tensor([2, -1, 1, 0]).double(), out), "eps: expected a number that is not negative"),
        ((x, v, v, None, torch.tensor([2, 1e-5, 99, 0]).double(), out), "activation: expected a code in"),
        ((x, v[:3], v, None, call, out), r"weight: expected shape \(4\)"),
        ((x, v, v.double(), None, call, out), "bias: expected torch.float32"),
        ((x, v, torch.ones(8)[::2], None, call, out), "bias: expected adjacent elements"),
        ((x, v, v, x[:, :2], call, out), r"residual: expected shape \(1, 4, 6, 6\)"),
        ((x, v, v, None, call, torch.empty(1, 4, 6, 5)), r"out: expected shape \(1, 4, 6, 6\)"),
        (
            (x, v, v, None, call, torch.empty(1, 4, 6, 1).expand(1, 4, 6, 6)),
            "out: expected elements that do not overlap",
        ),
        ((x, v, v, None, call, out.double()), "out: expected torch.float32"),
        ((x[0], v, v, None, call, out), "x: expected 4 dimensions"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.group_norm_act_out: {words}"):
            OPS.group_norm_act_out(*bad)


@native
def test_threads_change_nothing():
    for shape, layout in itertools.product(((5, 64, 20, 20), (1, 64, 120, 121)), FORMATS):
        x = normal(*shape, layout=layout)
        assert_threads_change_nothing(lambda x=x: [group_norm_act(x, 8), group_norm_act(x, 64, residual=x)], (1, 2, 3))


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_gradients(activation, backend):
    dtype = torch.float32 if backend == "cpu" else torch.float64
    x, weight, bias, residual = [
        t.requires_grad_() for t in (normal(2, 4, 5, 6, dtype=dtype), *(normal(4, dtype=dtype, seed=i) for i in (1, 2)),
                                     normal(2, 4, 5, 6, dtype=dtype, seed=3))
    ]  # fmt: skip

    def ours(weight, bias, residual):
        return group_norm_act(x, 2, weight, bias, residual=residual, activation=activation, backend=backend)

    def theirs(weight, bias, residual):
        z = F.group_norm(x, 2, weight, bias)
        return apply_activation(z if residual is None else z + residual, activation)

    for given in ((weight, bias, residual), (None, None, None)):
        used = [t for t in (x, *given) if t is not None]
        found = []
        for f in (ours, theirs):
            y = f(*given)
            first = torch.autograd.grad((y * y.detach().cos()).sum(), used, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), used, allow_unused=True)
            found.append((y, *first, *(g for g in second if g is not None)))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@native
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout, requires_grad):
    x, residual = (normal(2, 4, 6, 5, layout=layout, seed=i).requires_grad_(requires_grad) for i in (0, 1))
    weight, bias = (normal(4, seed=i).requires_grad_(requires_grad) for i in (2, 3))
    code = ACTIVATIONS.index("silu")
    opcheck(OPS.group_norm_act.default, (x, weight, bias, residual, 2, 1e-5, code, 0.01))
    opcheck(OPS.group_norm_act.default, (x, None, None, None, 0, 1e-5, 0, 0.01))
    if not requires_grad:
        call = torch.tensor([2, 1e-5, code, 0.01], dtype=torch.float64)
        opcheck(OPS.group_norm_act_bound.default, (x, weight, bias, None, call))
        opcheck(OPS.group_norm_act_out.default, (x, weight, bias, None, call, torch.empty(2, 4, 6, 5)))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    def f(x):
        return group_norm_act(x, 2) + 1, group_norm_act(x, 4, activation="gelu")

    def calls():
        for n, h in ((2, 8), (3, 10), (5, 7)):
            x = normal(n, 4, h, 9, layout=layout)
            torch._dynamo.maybe_mark_dynamic(x, (0, 2))
            yield (x,)

    assert_one_graph(f, calls(), dynamic=None)


def test_autocast_leaves_x_alone():
    x = normal(1, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert group_norm_act(x, 2, residual=x.bfloat16()).dtype is torch.float32


def test_other_dtypes_and_devices_run_as_torchs():
    x = normal(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(group_norm_act(x, 2, activation="none"), F.group_norm(x, 2))
    with pytest.raises(RuntimeError, match="group_norm_act: backend='triton' cannot run: torch's own group norm"):
        group_norm_act(x, 2, backend="triton")


X = torch.zeros(1, 4, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"groups": 3}, ValueError, "groups: expected a divisor of the 4 channels, got 3"),
        ({"groups": 0}, ValueError, "groups: expected an int >= 1"),
        ({"groups": 2.0}, TypeError, "groups: expected an int"),
        ({"eps": -1}, ValueError, "eps: expected a number >= 0"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: expected shape \(4,\)"),
        ({"residual": X[:, :2]}, ValueError, "residual: expected x's shape"),
        ({"residual": X.double()}, TypeError, "residual: expected x's dtype"),
        ({"x": X[0, 0, 0]}, ValueError, r"x: expected \(N, C, ...\)"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.group_norm_act: {words}"):
        group_norm_act(**{"x": X, "groups": 2, **arguments})


def test_an_empty_batch_in_any_layout():
    x = torch.randn(0, 8, 16, 16)[:, :, ::2, ::2]
    assert group_norm_act(x, 2).shape == x.shape
