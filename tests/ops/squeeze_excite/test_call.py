"""squeeze_excite: the native op against the reference, strides, gradients, traces, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from pykernels.ops import ACTIVATIONS, int8_squeeze_excite, squeeze_excite
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
RELU, SIGMOID = ACTIVATIONS.index("relu"), ACTIVATIONS.index("sigmoid")


def weights(channels, between, dtype=torch.float32):
    shapes = (between, channels), (between,), (channels, between), (channels,)
    return [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes, 1)]


@native
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_on_both_sides(name):
    x, rest = normal(2, 21, 5, 6), weights(21, 13)
    for names in ({"activation": name}, {"gate": name}):
        expected = squeeze_excite(x.double(), *(t.double() for t in rest), **names)
        assert relative_l2(squeeze_excite(x, *rest, **names), expected) < 2e-6


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (1, 1, 6, 7), (3, 4, 1, 5), (2, 3, 5, 1), (0, 3, 6, 6)], ids=str)
def test_shapes_and_strides_are_torchs(shape, layout):
    x, rest = normal(*shape, layout=layout), weights(shape[1], 3)
    y, expected = squeeze_excite(x, *rest), x * torch.ones(*shape[:2], 1, 1)
    assert y.shape == expected.shape
    if shape[0]:
        assert y.stride() == expected.stride()
    torch.testing.assert_close(y, squeeze_excite(x, *rest, backend="reference"))


@native
@pytest.mark.parametrize("shape", [(2, 40, 70, 30), (1, 5500, 130, 1), (1, 3, 300, 290)], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_maps_that_are_summed_in_strips(shape, layout):
    x, rest = normal(*shape, layout=layout) + normal(shape[1], 1, 1, seed=9), weights(shape[1], 3)
    rest[0] /= shape[1] ** 0.5
    expected = squeeze_excite(x.double(), *(t.double() for t in rest))
    for isa in host_isas():
        with forced_isa(isa):
            assert relative_l2(squeeze_excite(x, *rest), expected) < 1e-6


@native
@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3])
def test_products_are_added_in_many_short_sums(value):
    # Additions of equal terms round the same way: one sum of 2048 errs by up to 440 units of roundoff.
    n = 2048
    x, w = torch.full((1, n, 1, 1), 0.9), torch.full((n, n), value)
    got = squeeze_excite(x, w, None, torch.eye(n), None, activation="none", gate="none")
    exact = float(w[0, 0].double() * x[0, 0].double()) * n * float(x[0, 0])
    units = (got.double() - exact).abs() / exact * 2**24
    # At most 32 products of a lane, the lanes in pairs, a sum for each 32 vectors, the other product, the gate.
    lanes = 4
    assert units.max() <= 32 + 4 + n / (32 * lanes) + 2


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_out_may_be_a_slice_and_x_itself(layout):
    x, rest = normal(2, 6, 8, 9, layout=layout), weights(6, 4)
    expected = squeeze_excite(x, *rest)
    for memory_format in FORMATS:
        wide = torch.full((2, 10, 8, 9), 7.0).contiguous(memory_format=memory_format)
        OPS.squeeze_excite_out(x, *rest, RELU, SIGMOID, wide[:, 2:8])
        torch.testing.assert_close(wide[:, 2:8], expected)
        assert (wide[:, :2] == 7).all()
        assert (wide[:, 8:] == 7).all()
    OPS.squeeze_excite_out(x, *rest, RELU, SIGMOID, x)
    assert torch.equal(x, expected)


@native
def test_the_ops_refuse_what_does_not_fit():
    x, (w1, b1, w2, b2) = normal(1, 3, 6, 6), weights(3, 2)
    for bad, words in (
        ((x[0], w1, b1, w2, b2, RELU, SIGMOID), "x: expected 4 dimensions"),
        ((x.double(), w1, b1, w2, b2, RELU, SIGMOID), "x: expected torch.float32"),
        ((x, w1.double(), b1, w2, b2, RELU, SIGMOID), "reduce_weight: expected torch.float32"),
        ((x, w1[:, :2], b1, w2, b2, RELU, SIGMOID), r"reduce_weight: expected shape \(2, 3\)"),
        ((x, w1, b2, w2, b2, RELU, SIGMOID), r"reduce_bias: expected shape \(2\)"),
        ((x, w1, b1, w1, b2, RELU, SIGMOID), r"expand_weight: expected shape \(3, 2\)"),
        ((x, w1, b1, w2, b1, RELU, SIGMOID), r"expand_bias: expected shape \(3\)"),
        ((x, w1, b1, w2, b2, RELU, 99), "activation: expected a code"),
        ((x[..., :0], w1, b1, w2, b2, RELU, SIGMOID), "x: expected H and W"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.squeeze_excite: {words}"):
            OPS.squeeze_excite(*bad)
    for out, words in (
        (torch.empty(1, 3, 6, 5), "expected shape"),
        (torch.empty(1, 3, 6, 6).double(), "expected torch.float32"),
        (torch.empty(1, 3, 6, 1).expand(1, 3, 6, 6), "expected elements that do not overlap"),
    ):
        with pytest.raises(RuntimeError, match=f"pykernels.squeeze_excite_out: out: {words}"):
            OPS.squeeze_excite_out(x, w1, b1, w2, b2, RELU, SIGMOID, out)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_threads_change_nothing(layout):
    x, rest = normal(2, 200, 30, 30, layout=layout), weights(200, 50)
    assert_threads_change_nothing(lambda: squeeze_excite(x, *rest), (1, 2, 3))


@native
def test_not_finite_is_not_finite():
    x, rest = normal(1, 20, 4, 4), weights(20, 8)
    for value in (torch.nan, torch.inf):
        x[0, 3, 1, 1] = value
        torch.testing.assert_close(
            squeeze_excite(x, *rest), squeeze_excite(x, *rest, backend="reference"), equal_nan=True
        )


@native
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("names", [("relu", "sigmoid"), ("silu", "hardsigmoid"), ("hardswish", "tanh")], ids=str)
@pytest.mark.parametrize("filters", [False, True])
def test_gradients(backend, names, filters):
    dtype = torch.float32 if backend == "cpu" else torch.float64
    w1, b1, w2, b2 = weights(3, 4, dtype)
    w1, w2 = (w[:, :, None, None] if filters else w for w in (w1, w2))
    leaves = [t.detach().requires_grad_() for t in (normal(2, 3, 5, 6, dtype=dtype), w1, b1, w2, b2)]

    def theirs(x, w1, b1, w2, b2):
        functions = {"relu": F.relu, "silu": F.silu, "hardswish": F.hardswish}
        gates = {"sigmoid": torch.sigmoid, "hardsigmoid": lambda t: F.relu6(t + 3) / 6, "tanh": torch.tanh}
        hidden = functions[names[0]](F.linear(x.mean((2, 3)), w1.flatten(1), b1))
        return x * gates[names[1]](F.linear(hidden, w2.flatten(1), b2))[:, :, None, None]

    found = []
    for f in (lambda *t: squeeze_excite(*t, activation=names[0], gate=names[1], backend=backend), theirs):
        y = f(*leaves)
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append((y, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@native
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_opcheck(layout, requires_grad):
    x, (w1, b1, w2, b2) = normal(2, 4, 6, 5, layout=layout).requires_grad_(requires_grad), weights(4, 3)
    opcheck(OPS.squeeze_excite.default, (x, w1, b1, w2, b2, RELU, SIGMOID))
    opcheck(OPS.squeeze_excite.default, (x, w1[:, :, None, None], None, w2[:, :, None, None], None, RELU, SIGMOID))
    if not requires_grad:
        opcheck(OPS.squeeze_excite_out.default, (x, w1, b1, w2, b2, RELU, SIGMOID, torch.empty(2, 4, 6, 5)))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_one_graph_serves_every_size(layout):
    rest = weights(3, 4)
    calls = [(normal(n, 3, h, 9, layout=layout),) for n, h in ((2, 8), (3, 10), (5, 7))]
    assert_one_graph(lambda x: squeeze_excite(x, *rest) + 1, calls)


def test_autocast_leaves_it_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert squeeze_excite(normal(1, 3, 6, 6), *weights(3, 2)).dtype is torch.float32


@pytest.mark.parametrize("backend", [None, "reference"])
def test_autocast_gives_the_weights_the_dtype_of_x(backend):
    x, rest = normal(1, 3, 6, 6).bfloat16(), weights(3, 2)
    expected = squeeze_excite(x, *(t.bfloat16() for t in rest), backend=backend)
    leaves = [t.requires_grad_() for t in rest]
    with pytest.raises(TypeError, match="reduce_weight: expected x's dtype"):
        squeeze_excite(x, *leaves, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = squeeze_excite(x, *leaves, backend=backend)
        assert squeeze_excite(x, *(t[..., None, None] if t.dim() == 2 else None for t in rest)).dtype is x.dtype
    torch.testing.assert_close(y, expected)
    assert {g.dtype for g in torch.autograd.grad(y.sum(), leaves)} == {torch.float32}


@native
def test_autocast_behind_a_convolution():
    conv, rest = torch.nn.Conv2d(3, 3, 1), weights(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = squeeze_excite(conv(normal(1, 3, 6, 6)), *rest)
        compiled = torch.compile(lambda x: squeeze_excite(conv(x), *rest), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(normal(1, 3, 6, 6)), y)
    assert y.dtype is torch.bfloat16


@native
@pytest.mark.parametrize("names", [("relu", "sigmoid"), ("silu", "hardsigmoid")], ids=str)
def test_gradients_of_bfloat16_are_rounded_once(names):
    leaves = [t.bfloat16().requires_grad_() for t in (normal(2, 48, 9, 9) + 1, *weights(48, 24))]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    weight = normal(2, 48, 9, 9, seed=7).bfloat16()
    named = {"activation": names[0], "gate": names[1]}
    found = torch.autograd.grad((squeeze_excite(*leaves, **named) * weight).sum(), leaves)
    exact = torch.autograd.grad((squeeze_excite(*wide, **named) * weight).sum(), wide)
    for got, expected in zip(found, exact, strict=True):
        assert got.dtype is torch.bfloat16
        assert ((got.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-4 * expected.abs().max()).all()


@native
def test_gradients_that_nobody_asked_for_are_not_computed():
    tensors = [normal(2, 16, 5, 5), *weights(16, 8)]
    flops = {}
    for wanted in (range(5), (0,), (4,), (3,)):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        y = squeeze_excite(*leaves)
        with FlopCounterMode(display=False) as counter:
            grads = torch.autograd.grad(y.sum(), [leaves[i] for i in wanted])
        flops[tuple(wanted)] = counter.get_total_flops()
        whole = [t.detach().requires_grad_() for t in tensors]
        expected = torch.autograd.grad(squeeze_excite(*whole).sum(), [whole[i] for i in wanted])
        assert all(map(torch.equal, grads, expected))
    once = 2 * 2 * 16 * 8  # of a product
    assert flops == {(0, 1, 2, 3, 4): 6 * once, (0,): 4 * once, (4,): 2 * once, (3,): 3 * once}


X = torch.zeros(1, 3, 6, 6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"x": X[0, 0]}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\)"),
        ({"x": X[..., :0]}, ValueError, "x: expected H and W of at least 1"),
        ({"reduce_weight": torch.zeros(3)}, ValueError, r"reduce_weight: expected \(M, C\) or \(M, C, 1, 1\)"),
        ({"reduce_weight": torch.zeros(2, 4)}, ValueError, r"reduce_weight: expected shape \(2, 3\)"),
        ({"expand_weight": torch.zeros(3, 2, 2, 2)}, ValueError, r"expand_weight: expected shape \(3, 2, 1, 1\)"),
        ({"reduce_bias": torch.zeros(3)}, ValueError, r"reduce_bias: expected shape \(2,\)"),
        ({"expand_bias": torch.zeros(2)}, ValueError, r"expand_bias: expected shape \(3,\)"),
        ({"gate": "sigmoids"}, ValueError, "gate: expected one of"),
        ({"gate": 3}, ValueError, "gate: expected one of"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    named = {
        "x": X, "reduce_weight": torch.zeros(2, 3), "reduce_bias": torch.zeros(2), "expand_weight": torch.zeros(3, 2),
        "expand_bias": torch.zeros(3), **change,
    }  # fmt: skip
    with pytest.raises(error, match=f"pykernels.squeeze_excite: {words}"):
        squeeze_excite(**named)


INT8 = (normal(2, 21, 5, 6) * 60).round().clamp(-128, 127).to(torch.int8)
GRIDS = (0.04, 0.03, 5, -9)


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_int8_maps_are_near_the_real_values(name, layout):
    x, rest = INT8.contiguous(memory_format=layout), weights(21, 13)
    x_scale, out_scale, x_zero, out_zero = GRIDS
    for names in ({"activation": name}, {"gate": name}):
        y = int8_squeeze_excite(x, *rest, *GRIDS, **names)
        real = squeeze_excite((x.double() - x_zero) * x_scale, *(t.double() for t in rest), **names)
        on_grid = (real / out_scale + out_zero).clamp(-128, 127)
        assert (y.double() - on_grid).abs().max() < 0.502
        assert y.is_contiguous(memory_format=layout)


@native
def test_int8_squeeze_excite_out_writes_where_it_is_told_and_may_be_x():
    for layout in FORMATS:
        x, rest = INT8.contiguous(memory_format=layout), weights(21, 13)
        expected = int8_squeeze_excite(x, *rest, *GRIDS)
        for target in FORMATS:
            wide = torch.full((2, 25, 5, 6), 77, dtype=torch.int8).contiguous(memory_format=target)
            OPS.int8_squeeze_excite_out(x, *rest, *GRIDS, RELU, SIGMOID, wide[:, 1:22])
            assert torch.equal(wide[:, 1:22], expected)
            assert (wide[:, :1] == 77).all()
            assert (wide[:, 22:] == 77).all()
        OPS.int8_squeeze_excite_out(x, *rest, *GRIDS, RELU, SIGMOID, x)
        assert torch.equal(x, expected)


@native
def test_int8_threads_change_nothing():
    x, rest = INT8.repeat(2, 3, 5, 7).contiguous(memory_format=torch.channels_last), weights(63, 13)
    assert_threads_change_nothing(lambda: int8_squeeze_excite(x, *rest, *GRIDS), (1, 2, 3))


@native
def test_int8_opcheck_and_one_graph():
    rest = weights(21, 13)
    opcheck(OPS.int8_squeeze_excite.default, (INT8, *rest, *GRIDS, RELU, SIGMOID))
    opcheck(OPS.int8_squeeze_excite_out.default, (INT8, *rest, *GRIDS, RELU, SIGMOID, torch.empty_like(INT8)))

    def calls():
        for n, h in ((2, 5), (3, 4), (5, 3)):
            x = INT8[:, :, :h].repeat(n, 1, 1, 1)
            torch._dynamo.maybe_mark_dynamic(x, (0, 2))
            yield (x,)

    assert_one_graph(lambda x: int8_squeeze_excite(x, *rest, *GRIDS), calls(), dynamic=None)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": INT8.float()}, TypeError, "x: expected torch.int8, got torch.float32"),
        ({"x_scale": 0.0}, ValueError, "x_scale: expected a number of"),
        ({"out_zero_point": 128}, ValueError, "out_zero_point: expected an int in"),
        ({"expand_weight": torch.ones(21, 13).double()}, TypeError, "expand_weight: expected reduce_weight's dtype"),
        ({"reduce_bias": torch.ones(12)}, ValueError, "reduce_bias: expected shape"),
        ({"gate": "a"}, ValueError, "gate: expected one of"),
    ],
)
def test_int8_bad_arguments(change, error, words):
    names = ("x", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "x_scale", "out_scale")
    given = dict(zip(names, (INT8, *weights(21, 13), 0.04, 0.03), strict=True))
    with pytest.raises(error, match=f"^pykernels.int8_squeeze_excite: {words}"):
        int8_squeeze_excite(**(given | change))


def test_int8_has_no_gradient():
    rest = [t.requires_grad_() for t in weights(21, 13)]
    with pytest.raises(RuntimeError, match=r"int8_squeeze_excite: reduce_weight: expected a tensor that requires no"):
        int8_squeeze_excite(INT8, *rest, *GRIDS)
