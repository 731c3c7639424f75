"""batch_norm_act: the oracle against torch, both ways against the oracle, running statistics, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import pykernels as pk
from pykernels.ops import batch_norm_act
from pykernels.ops._activation import apply_activation
from pykernels.ops.batch_norm_act.spec import BATCH_NORM_ACT_SPEC, batch_norm_act_reference
from tests.harness import inputs_of, map_tensors, normal, relative_l2, samples_of, tensors_of, to_double

SAMPLES = samples_of(BATCH_NORM_ACT_SPEC)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def torchs_own(x, mean, var, weight, bias, *, training, residual=None, activation, negative_slope):
    z = F.batch_norm(x, mean, var, weight, bias, training)
    return apply_activation(z if residual is None else z + residual, activation, negative_slope)


@pytest.mark.parametrize("name", SAMPLES)
def test_reference_is_torchs_own_functions(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.float64)
    mine, theirs = (map_tensors(args, torch.clone) for _ in range(2))
    assert relative_l2(batch_norm_act_reference(*mine, **kwargs), torchs_own(*theirs, **kwargs)) < 1e-14
    for a, b in zip(tensors_of(mine), tensors_of(theirs), strict=True):
        assert torch.equal(a, b)  # the running statistics too


def with_gradients(sample, dtype, device):
    """The sample's arguments, those that can have one requiring a gradient, and these by name; and all in float64."""
    for convert in (lambda v: v, to_double):
        args, kwargs = map_tensors(convert(inputs_of(sample, dtype)), lambda t: t.clone().to(device))
        named = {"x": args[0], "weight": args[3], "bias": args[4], "residual": kwargs.get("residual")}
        yield args, kwargs, {name: t.requires_grad_() for name, t in named.items() if t is not None}


CASES = [(name, dtype, "plain") for name in SAMPLES for dtype in DTYPES]
CASES += [(name, torch.bfloat16 if name.startswith("c") else torch.float32, "triton") for name in SAMPLES]


@pytest.mark.parametrize(("name", "dtype", "way"), CASES, indirect=["way"], ids=str)
def test_values_gradients_and_running_statistics(name, dtype, way):
    sample = SAMPLES[name]
    (args, kwargs, mine), (wide_args, wide_kwargs, theirs) = with_gradients(sample, dtype, way.device)
    y = way.call(*args, **kwargs)
    expected = batch_norm_act_reference(*wide_args, **wide_kwargs)
    tolerance = BATCH_NORM_ACT_SPEC.tolerance(dtype, sample)
    assert y.dtype == dtype
    assert relative_l2(y, expected) <= tolerance
    for a, b in zip(args[1:3], wide_args[1:3], strict=True):
        # They are float32 whatever x is.
        assert a is None or relative_l2(a, b) <= BATCH_NORM_ACT_SPEC.tolerance(torch.float32, sample)
    grad_y = normal(*y.shape, seed=1, dtype=dtype, device=way.device)
    y.backward(grad_y)
    expected.backward(grad_y.double())
    for key, t in mine.items():
        assert t.grad.dtype == t.dtype
        if (name, key) != ("two-values", "x"):  # of two values nothing but rounding is left
            assert relative_l2(t.grad, theirs[key].grad) <= 8 * tolerance, key


def test_running_statistics_as_torch_moves_them(way, walk):
    x = normal(4, 6, 5, 5, device=way.device)
    mine, theirs = ([normal(6, seed=i, device=way.device).abs() for i in (1, 2)] for _ in range(2))
    for _ in range(2):
        versions = [t._version for t in mine]
        way.call(x, *mine, training=True, momentum=0.3)
        assert all(t._version > v for t, v in zip(mine, versions, strict=True))
        F.batch_norm(x, *theirs, training=True, momentum=0.3)
    for a, b in zip(mine, theirs, strict=True):
        assert relative_l2(a, b) <= BATCH_NORM_ACT_SPEC.bound(torch.float32, 100)
    var, mean = torch.var_mean(x, (0, 2, 3))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):  # through a copy
        copied = [torch.zeros(6, dtype=dtype, device=way.device), torch.ones(6, dtype=dtype, device=way.device)]
        way.call(x, *copied, training=True, momentum=1.0)
        assert all(t._version > 0 for t in copied)
        for a, b in zip(copied, (mean, var), strict=True):
            assert relative_l2(a, b) <= BATCH_NORM_ACT_SPEC.bound(dtype if dtype.itemsize == 2 else torch.float32, 100)


def test_relu_keeps_bits_only_behind_a_residual_and_then_not_the_residual(way):
    x, saved = normal(2, 8, 4, 4, device=way.device).requires_grad_(), []
    r = normal(2, 8, 4, 4, seed=1, device=way.device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        way.call(x, training=True, residual=r)
    assert not any(t is r or t.data_ptr() == r.data_ptr() for t in saved)
    assert [t.numel() for t in saved if t.dtype == torch.uint8] == [x.numel() // 8]


def test_autocast_keeps_x_and_casts_the_residual():
    x, r = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_norm_act(x, training=True, residual=r).dtype == torch.float32


def test_a_cpu_has_no_kernels_and_says_so():
    with pytest.raises(RuntimeError, match=r"batch_norm_act: backend='cpu' cannot run: it has kernels for GPUs only"):
        batch_norm_act(torch.randn(4, 3), training=True, backend="cpu")
    with pk.backend("reference"):
        batch_norm_act(torch.randn(4, 3), training=True)


X, V = torch.randn(4, 3, 2, 2), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"x": X[:, 0, 0, 0]}, ValueError, r"x: expected \(N, C, ...\)"),
        ({"x": X[:1, :, :1, :1]}, ValueError, "x: expected more than 1 value per channel"),
        ({"weight": torch.ones(4)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
        ({"bias": torch.ones(3, 1)}, ValueError, r"bias: expected shape \(3,\)"),
        ({"running_mean": V.int(), "running_var": V}, TypeError, "running_mean: expected a floating dtype"),
        ({"training": False}, ValueError, "running_mean: expected a tensor where training is False"),
        ({"eps": 0.0}, ValueError, "eps: expected a number > 0"),
        ({"residual": X[:2]}, ValueError, r"residual: expected x's shape"),
        ({"residual": X.double()}, TypeError, "residual: expected x's dtype"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.*{words}"):
        batch_norm_act(**{"x": X, "training": True, **arguments})
