"""Triton's batch norm (interpreted where there is no GPU): gradients, running statistics, mask, accuracy, training."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import ACTIVATIONS, batch_norm_act
from pykernels.ops.batch_norm_act import autograd as plain
from pykernels.ops.batch_norm_act.reference import batch_norm_act_reference
from pykernels.ops.batch_norm_act.spec import BATCH_NORM_ACT_SPEC
from tests.harness import inputs_of, map_tensors, relative_l2, to_double, triton_reason

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES = {s.name: s for s in BATCH_NORM_ACT_SPEC.samples if not s.bench}
LAYOUTS = (torch.channels_last, torch.contiguous_format)
SIGNED = ("relu", "leaky_relu")

if triton_reason() is None:
    ops = importlib.import_module("pykernels.ops.batch_norm_act.triton")


def divide(monkeypatch):
    """Small tiles among several programs, as large tensors get them: shapes as small as these have one a channel."""
    monkeypatch.setattr(ops, "config", lambda *_: ops.Config(block_w=16, block_c=8, warps=4, slabs=4, spread=3))


@pytest.fixture(params=["whole", "divided"])
def walk(request, monkeypatch):
    if request.param == "divided":
        divide(monkeypatch)


def normal(*shape, seed=0, layout=torch.contiguous_format, dtype=torch.float32):
    t = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return t.to(DEVICE, dtype).contiguous(memory_format=layout)


def with_gradients(sample, dtype):
    """The sample's arguments, those that can have one requiring a gradient, and these by name; and all in float64."""
    found = []
    for convert in (lambda v: v, to_double):
        args, kwargs = map_tensors(convert(inputs_of(sample, dtype)), lambda t: t.clone().to(DEVICE))
        named = {"x": args[0], "weight": args[3], "bias": args[4], "residual": kwargs.get("residual")}
        named = {name: t.requires_grad_() for name, t in named.items() if t is not None}
        found.append((args, kwargs, named))
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_and_running_statistics(name):
    sample, dtype = SAMPLES[name], torch.bfloat16 if name.startswith("c") else torch.float32
    (args, kwargs, mine), (wide_args, wide_kwargs, theirs) = with_gradients(sample, dtype)
    y = batch_norm_act(*args, **kwargs, backend="triton")
    expected = batch_norm_act_reference(*wide_args, **wide_kwargs)
    tolerance = BATCH_NORM_ACT_SPEC.tolerance(dtype, sample)
    assert relative_l2(y, expected) <= tolerance
    for a, b in zip(args[1:3], wide_args[1:3], strict=True):
        assert a is None or relative_l2(a, b) <= max(tolerance, 1e-6)
    dy = normal(*y.shape, seed=1, dtype=dtype)
    y.backward(dy)
    expected.backward(dy.double())
    for key, t in mine.items():
        assert t.grad.dtype == t.dtype
        if (name, key) != ("two-values", "x"):  # of two values nothing but rounding is left
            assert relative_l2(t.grad, theirs[key].grad) <= 8 * tolerance, key


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("activation", "residual", "training", "divided"),
    [
        *((a, residual, True, False) for a in ACTIVATIONS for residual in (False, True)),
        *((a, True, True, True) for a in ("relu", "gelu", "none")),
        ("leaky_relu", False, True, True),
        ("relu", True, False, True),
        ("silu", False, False, False),
    ],
)
def test_ops_are_those_of_the_cpu(layout, activation, residual, training, divided, monkeypatch):
    if divided:
        divide(monkeypatch)
    code, dtype = ACTIVATIONS.index(activation), torch.float16
    # Tails in both directions and, contiguous, planes that end in a part of a byte.
    x = normal(3, 11, 5, 7, layout=layout, dtype=dtype)
    r = normal(3, 11, 5, 7, seed=1, layout=layout, dtype=dtype) if residual else None
    dy = normal(3, 11, 5, 7, seed=2, layout=layout, dtype=dtype)
    w, b = normal(11, seed=3), normal(11, seed=4)
    rest = (training, 1e-5, code, 0.3)
    mean, var = plain._statistics_on_cpu(x, None, None, 0.1)
    y, mask = ops.batch_norm_act(x, mean, var, w, b, r, *rest)
    got = ops.batch_norm_act_backward(dy, x, mean, var, w, b, r, mask, *rest, residual)
    y0, mask0 = plain._act_on_cpu(x, mean, var, w, b, r, *rest)
    expected = plain._backward_on_cpu(dy, x, mean, var, w, b, r, mask0, *rest, residual)
    assert torch.equal(mask, mask0)  # to the bit, padding included
    assert (mask.numel() > 0) == (residual and activation in SIGNED)
    for mine, theirs in zip((y, *got), (y0, *expected), strict=True):
        assert (mine.dtype, mine.shape, mine.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert relative_l2(mine, theirs) <= 1e-3


def test_without_the_residuals_gradient():
    for activation in ("relu", "silu", "none"):
        x, r = normal(2, 5, 4, 4).requires_grad_(), normal(2, 5, 4, 4, seed=1)
        y = batch_norm_act(x, training=True, residual=r, activation=activation, backend="triton")
        x2 = x.detach().double().requires_grad_()
        expected = batch_norm_act_reference(x2, training=True, residual=r.double(), activation=activation)
        dy = normal(2, 5, 4, 4, seed=2)
        y.backward(dy)
        expected.backward(dy.double())
        assert relative_l2(x.grad, x2.grad) <= 2e-6


def test_gradients_twice():
    for activation in ("relu", "gelu"):
        inputs = [normal(3, 4, 5, 5, seed=i).requires_grad_() for i in range(2)]
        wide = [t.detach().double().requires_grad_() for t in inputs]
        second = []
        for (x, r), f in (
            (inputs, lambda *a, **k: batch_norm_act(*a, **k, backend="triton")),
            (wide, batch_norm_act_reference),
        ):
            y = f(x, training=True, residual=r, activation=activation)
            (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            second.append(torch.autograd.grad(first.square().sum(), (x, r)))
        for mine, theirs in zip(*second, strict=True):
            assert relative_l2(mine, theirs) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_large_mean_costs_nothing(layout, walk):
    # Sums of squares would be all rounding, and so would differences to a mean that is rounded too soon.
    x = (normal(6, 9, 11, 13) * 2.0**-3 + 4096).contiguous(memory_format=layout)
    mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert (mean - exact_mean).abs().max() <= 4096 * 2.0**-24 * 1.01
    assert relative_l2(var, exact_var) <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_outlier_in_front(layout, walk):
    x = normal(6, 9, 11, 13, layout=layout)
    x[0, :, 0, 0] = 3e4
    mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert relative_l2(mean, exact_mean) <= 3e4 / 16 / 35 * 2.0**-24  # it is a sixteenth of what is subtracted
    assert relative_l2(var, exact_var) <= 1e-6


def test_running_statistics_as_torch_moves_them(walk):
    x = normal(4, 6, 5, 5)
    mine, theirs = ([normal(6, seed=1), normal(6, seed=2).square()] for _ in range(2))
    for _ in range(2):
        versions = [t._version for t in mine]
        batch_norm_act(x, *mine, training=True, momentum=0.3, backend="triton")
        assert all(t._version > v for t, v in zip(mine, versions, strict=True))
        torch.nn.functional.batch_norm(x, *theirs, training=True, momentum=0.3)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    # Other dtypes go through a copy.
    half = [torch.zeros(6, dtype=torch.float16, device=DEVICE), torch.ones(6, dtype=torch.float16, device=DEVICE)]
    batch_norm_act(x, *half, training=True, momentum=1.0, backend="triton")
    var, mean = torch.var_mean(x, (0, 2, 3))
    torch.testing.assert_close(half, [mean.half(), var.half()])


def test_the_same_bits_every_time(walk):
    x, r, dy = (normal(3, 10, 5, 7, seed=i) for i in range(3))
    seen = []
    for _ in range(2):
        mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
        y, mask = ops.batch_norm_act(x, mean, var, None, None, r, True, 1e-5, 1, 0.0)
        back = ops.batch_norm_act_backward(dy, x, mean, var, None, None, r, mask, True, 1e-5, 1, 0.0, True)
        seen.append((mean, var, y, mask, *back))
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, by the interpreter
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_nan_and_infinity_stay_in_their_channel(layout, with_residual, walk):
    x = normal(3, 6, 5, 5, layout=layout)
    x[1, 2, 3, 3] = torch.nan
    x[0, 4, 1, 2] = torch.inf
    r = normal(3, 6, 5, 5, seed=1, layout=layout) if with_residual else None
    leaf = x.clone().requires_grad_()
    y = batch_norm_act(leaf, training=True, residual=r, activation="relu", backend="triton")
    broken = torch.tensor([False, False, True, False, True, False], device=DEVICE)
    assert y[:, broken].isnan().all()
    expected = batch_norm_act_reference(x.double(), training=True, residual=r, activation="relu")
    assert relative_l2(y[:, ~broken], expected[:, ~broken]) <= 1e-6
    y.sum().backward()
    assert leaf.grad[:, broken].isnan().all()
    assert leaf.grad[:, ~broken].isfinite().all()


def test_an_infinite_gradient_passes_where_relu_is_open():
    x = torch.tensor([[-1.0], [1.0], [3.0], [-3.0]], device=DEVICE).requires_grad_()
    mean, var = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    y = batch_norm_act(x, mean, var, eps=0.0, activation="relu", backend="triton")
    y.backward(torch.full_like(y, torch.inf))
    assert x.grad.flatten().tolist() == [0.0, torch.inf, torch.inf, 0.0]


def test_batch_0():
    x = torch.empty(0, 7, 3, 3, device=DEVICE, requires_grad=True)
    r = torch.empty(0, 7, 3, 3, device=DEVICE)
    state = [torch.full((7,), 2.0, device=DEVICE), torch.full((7,), 3.0, device=DEVICE)]
    w = torch.ones(7, device=DEVICE, requires_grad=True)
    y = batch_norm_act(x, *state, w, training=True, residual=r, backend="triton")
    assert y.shape == x.shape
    assert [t.unique().tolist() for t in state] == [[2.0], [3.0]]
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert w.grad.tolist() == [0.0] * 7


@pytest.mark.parametrize(
    ("layout", "activation", "residual"),
    [(LAYOUTS[0], "relu", True), (LAYOUTS[1], "relu", False), (LAYOUTS[1], "silu", True), (LAYOUTS[0], "none", True)],
)
def test_opcheck(layout, activation, residual):
    code = ACTIVATIONS.index(activation)
    x = normal(2, 11, 4, 3, layout=layout)
    r = normal(2, 11, 4, 3, seed=1, layout=layout) if residual else None
    w, b = normal(11, seed=2), normal(11, seed=3)
    running = torch.zeros(11, device=DEVICE), torch.ones(11, device=DEVICE)
    opcheck(ops.batch_norm_statistics, (x, *running, 0.1))
    opcheck(ops.batch_norm_statistics, (x, None, None, 0.1))
    mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
    rest = (True, 1e-5, code, 0.2)
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, w, b, r)]
    opcheck(ops.batch_norm_act, (leaves[0], mean, var, *leaves[1:], *rest))
    y, mask = ops.batch_norm_act(x, mean, var, w, b, r, *rest)
    kept = None if mask.numel() else r
    args = (torch.randn_like(y), x, mean, var, w, b, kept, mask, *rest, residual)
    opcheck(ops.batch_norm_act_backward, args)


def test_relu_keeps_bits_only_behind_a_residual_and_then_not_the_residual():
    x, saved = normal(2, 8, 4, 4).requires_grad_(), []
    r = normal(2, 8, 4, 4, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        batch_norm_act(x, training=True, residual=r, backend="triton")
    assert not any(t.data_ptr() == r.data_ptr() for t in saved)
    assert [t.numel() for t in saved if t.dtype == torch.uint8] == [x.numel() // 8]


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"activation": "silu", "bias": True}], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_module_trains_as_torchs_own_modules(options, with_residual):
    torch.manual_seed(0)
    block = pk.nn.ConvBNAct2d(8, 16, 3, **{"padding": 1, **options}).to(DEVICE).train()
    twin = copy.deepcopy(block).double()
    for step in range(2):
        x = (normal(2, 8, 6, 5, seed=step) + step).requires_grad_()
        residual = normal(2, 16, 6, 5, seed=7) if with_residual else None
        with pk.backend("triton"):
            y = block(x, residual)
        assert "batch_norm_act_triton" in type(y.grad_fn).__name__
        x64 = x.detach().double().requires_grad_()
        with pk.backend("reference"):
            expected = twin(x64, None if residual is None else residual.double())
        assert relative_l2(y, expected) <= 2e-6
        dy = normal(*y.shape, seed=3)
        y.backward(dy)
        expected.backward(dy.double())
        assert relative_l2(x.grad, x64.grad) <= 2e-5
    for (key, mine), theirs in zip(block.named_parameters(), twin.parameters(), strict=True):
        if key != "conv.bias":  # the batch norm takes it away: rounding alone is left
            assert relative_l2(mine.grad, theirs.grad) <= 2e-5, key
    for (key, mine), theirs in zip(block.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("training", [False, True])
def test_no_channels(training):
    x = torch.randn(3, 0, 2, 2, requires_grad=True)
    y = batch_norm_act(x, torch.zeros(0), torch.ones(0), training=training, backend="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == (3, 0, 2, 2)
