"""Triton's batch norm (interpreted where there is no GPU): the CPU's ops to the bit, accuracy, NaN, training."""

from __future__ import annotations

import importlib

import pytest
import torch

import pykernels as pk
from pykernels.ops import ACTIVATIONS, batch_norm_act
from pykernels.ops.batch_norm_act import autograd as plain
from pykernels.ops.batch_norm_act.spec import BATCH_NORM_ACT_SPEC, batch_norm_act_reference
from tests import harness
from tests.harness import DEVICE, FORMATS, relative_l2, triton_reason
from tests.nn.blocks import TRAINED, check_training

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
each_layout = pytest.mark.parametrize("layout", FORMATS, ids=str)
SIGNED = ("relu", "leaky_relu")

if triton_reason() is None:
    ops = importlib.import_module("pykernels.ops.batch_norm_act.triton")


def normal(*shape, **options):
    return harness.normal(*shape, **options, device=DEVICE)


def bound(x, dtype=torch.float32):
    """Of a batch norm of ``x``: its sums are over a channel."""
    return BATCH_NORM_ACT_SPEC.bound(dtype, x.numel() // x.shape[1] + 4)


@each_layout
@pytest.mark.parametrize(
    ("activation", "residual", "training", "small_tiles"),
    [
        *((a, residual, True, False) for a in ACTIVATIONS for residual in (False, True)),
        *((a, True, True, True) for a in ("relu", "gelu", "none")),
        ("leaky_relu", False, True, True),
        ("relu", True, False, True),
        ("silu", False, False, False),
    ],
)
def test_ops_are_those_of_the_cpu(layout, activation, residual, training, small_tiles, request):
    if small_tiles:
        request.getfixturevalue("divided")
    code, dtype = ACTIVATIONS.index(activation), torch.float16
    # Tails in both directions and, contiguous, planes that end in a part of a byte.
    x = normal(3, 11, 5, 7, layout=layout, dtype=dtype)
    r = normal(3, 11, 5, 7, seed=1, layout=layout, dtype=dtype) if residual else None
    grad_y = normal(3, 11, 5, 7, seed=2, layout=layout, dtype=dtype)
    w, b = normal(11, seed=3), normal(11, seed=4)
    rest = (training, 1e-5, code, 0.3)
    mean, var = plain._statistics_on_cpu(x, None, None, 0.1)
    y, mask = ops.batch_norm_act(x, mean, var, w, b, r, *rest)
    got = ops.batch_norm_act_backward(grad_y, x, mean, var, w, b, r, mask, *rest, residual)
    y0, mask0 = plain._act_on_cpu(x, mean, var, w, b, r, *rest)
    expected = plain._backward_on_cpu(grad_y, x, mean, var, w, b, r, mask0, *rest, residual)
    assert torch.equal(mask, mask0)  # to the bit, padding included
    assert (mask.numel() > 0) == (residual and activation in SIGNED)
    for mine, theirs in zip((y, *got), (y0, *expected), strict=True):
        assert (mine.dtype, mine.shape, mine.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert relative_l2(mine, theirs) <= bound(x, dtype)


def test_without_the_residuals_gradient():
    for activation in ("relu", "silu", "none"):
        x, r = normal(2, 5, 4, 4).requires_grad_(), normal(2, 5, 4, 4, seed=1)
        y = batch_norm_act(x, training=True, residual=r, activation=activation, backend="triton")
        x2 = x.detach().double().requires_grad_()
        expected = batch_norm_act_reference(x2, training=True, residual=r.double(), activation=activation)
        grad_y = normal(2, 5, 4, 4, seed=2)
        y.backward(grad_y)
        expected.backward(grad_y.double())
        assert relative_l2(x.grad, x2.grad) <= 4 * bound(x)


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
            assert relative_l2(mine, theirs) <= 8 * bound(x)


@each_layout
def test_a_large_mean_costs_nothing(layout, walk):
    # Sums of squares would be all rounding, and so would differences to a mean that is rounded too soon.
    x = (normal(6, 9, 11, 13) * 2.0**-3 + 4096).contiguous(memory_format=layout)
    mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert (mean - exact_mean).abs().max() <= 4096 * 2.0**-24 * 1.01
    assert relative_l2(var, exact_var) <= bound(x) / 2  # summed by tiles


@each_layout
def test_an_outlier_in_front(layout, walk):
    x = normal(6, 9, 11, 13, layout=layout)
    x[0, :, 0, 0] = 3e4
    mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert relative_l2(mean, exact_mean) <= 3e4 / 16 / 35 * 2.0**-24  # it is a sixteenth of what is subtracted
    assert relative_l2(var, exact_var) <= bound(x) / 2  # summed by tiles


def test_the_same_bits_every_time(walk):
    x, r, grad_y = (normal(3, 10, 5, 7, seed=i) for i in range(3))
    seen = []
    for _ in range(2):
        mean, var = ops.batch_norm_statistics(x, None, None, 0.1)
        y, mask = ops.batch_norm_act(x, mean, var, None, None, r, True, 1e-5, 1, 0.0)
        back = ops.batch_norm_act_backward(grad_y, x, mean, var, None, None, r, mask, True, 1e-5, 1, 0.0, True)
        seen.append((mean, var, y, mask, *back))
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, by the interpreter
@each_layout
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
    wide = None if r is None else r.double()
    expected = batch_norm_act_reference(x.double(), training=True, residual=wide, activation="relu")
    assert relative_l2(y[:, ~broken], expected[:, ~broken]) <= bound(x)
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


@pytest.mark.parametrize("options", [*TRAINED[:2], {"activation": "silu", "bias": True}], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_module_trains_as_torchs_own_modules(options, with_residual):
    def run(block, x, residual):
        with pk.backend("triton"):
            y = block(x, residual)
        assert "batch_norm_act_triton" in type(y.grad_fn).__name__
        return y

    check_training(run, options, with_residual, DEVICE)


@pytest.mark.parametrize("training", [False, True])
def test_no_channels(training):
    x = torch.randn(3, 0, 2, 2, requires_grad=True)
    y = batch_norm_act(x, torch.zeros(0), torch.ones(0), training=training, backend="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == (3, 0, 2, 2)
