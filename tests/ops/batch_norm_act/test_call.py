"""batch_norm_act: oracle against torch, the ops (plain PyTorch on a CPU) against the oracle, bad arguments."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import pykernels as pk
from pykernels import _native
from pykernels.ops import ACTIVATIONS, batch_norm_act
from pykernels.ops._activation import apply_activation
from pykernels.ops.batch_norm_act.reference import batch_norm_act_reference
from pykernels.ops.batch_norm_act.spec import BATCH_NORM_ACT_SPEC
from tests.harness import inputs_of, map_tensors, relative_l2, tensors_of, to_double

native = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))
public = importlib.import_module("pykernels.ops.batch_norm_act")  # the name is the function's
SAMPLES = {s.name: s for s in BATCH_NORM_ACT_SPEC.samples if not s.bench}
each_sample = pytest.mark.parametrize("name", SAMPLES)
STATES = ("running_mean", "running_var")


@pytest.fixture
def through_the_ops(monkeypatch):
    """On a CPU, too, the public function calls the ops, as it does on CUDA."""
    monkeypatch.setattr(public, "choose", lambda *_: "cuda")


def copies(value):
    return map_tensors(value, torch.clone)


def torchs_own(x, mean, var, weight, bias, *, training, residual=None, activation, negative_slope):
    z = F.batch_norm(x, mean, var, weight, bias, training)
    return apply_activation(z if residual is None else z + residual, activation, negative_slope)


@each_sample
def test_reference_is_torchs_own_functions(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.float64)
    mine, theirs = copies(args), copies(args)
    assert relative_l2(batch_norm_act_reference(*mine, **kwargs), torchs_own(*theirs, **kwargs)) < 1e-14
    for a, b in zip(tensors_of(mine), tensors_of(theirs), strict=True):
        assert torch.equal(a, b)  # the running statistics too


@native
@each_sample
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ops_against_the_reference(name, dtype, through_the_ops):
    sample = SAMPLES[name]
    args, kwargs = inputs_of(sample, dtype)
    mine, theirs = copies(args), copies(to_double(args))
    for tensors, options in ((mine, kwargs), (theirs, to_double(kwargs))):
        for t in (tensors[0], tensors[3], tensors[4], options.get("residual")):
            if t is not None:
                t.requires_grad_()
    wide = to_double(kwargs)
    if "residual" in wide:
        wide["residual"] = wide["residual"].detach().requires_grad_()
    y = batch_norm_act(*mine, **kwargs)
    expected = batch_norm_act_reference(*theirs, **wide)
    tolerance = BATCH_NORM_ACT_SPEC.tolerance(dtype, sample)
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert relative_l2(y, expected) <= tolerance
    for a, b in zip(mine[1:3], theirs[1:3], strict=True):
        assert a is None or relative_l2(a, b) <= max(tolerance, 1e-6)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    y.backward(dy)
    expected.backward(dy.double())
    pairs = [(mine[i], theirs[i]) for i in (0, 3, 4)] + [(kwargs.get("residual"), wide.get("residual"))]
    for i, (a, b) in enumerate(pairs):
        if a is None:
            continue
        assert a.grad.dtype == a.dtype
        if name == "two-values" and i == 0:
            continue  # of two values nothing but rounding is left
        assert relative_l2(a.grad, b.grad) <= 8 * tolerance, i


@native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_twice(activation, residual, training, through_the_ops, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    vectors = [normal(3).requires_grad_(), normal(3).requires_grad_()]
    state = [normal(3), normal(3).square() + 0.5]
    extra = [normal(2, 3, 2, 3).requires_grad_()] if residual else []
    cast = torch.Tensor.float

    def f(x, weight, bias, *rest):
        options = {"training": training, "activation": activation, "negative_slope": 0.3}
        return batch_norm_act(
            x, *(t.clone() for t in state), weight, bias, residual=rest[0] if rest else None, **options
        )

    # The vectors of the ops are float32 but where x is float64, which only this test gives them.
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else cast(t))
    inputs = (normal(2, 3, 2, 3).requires_grad_(), *vectors, *extra)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@native
@pytest.mark.parametrize(
    ("layout", "activation", "residual"),
    [
        (torch.channels_last, "relu", True),
        (torch.contiguous_format, "leaky_relu", True),
        (torch.channels_last, "silu", True),
        (torch.contiguous_format, "relu", False),
        (torch.channels_last, "none", True),
    ],
)
def test_opcheck(layout, activation, residual):
    code = ACTIVATIONS.index(activation)
    x = torch.randn(2, 11, 4, 3).contiguous(memory_format=layout)
    r = torch.randn(2, 11, 4, 3).contiguous(memory_format=layout) if residual else None
    w, b = torch.rand(11) + 0.5, torch.randn(11)
    opcheck(torch.ops.pykernels.batch_norm_statistics, (x, torch.zeros(11), torch.ones(11), 0.1))
    opcheck(torch.ops.pykernels.batch_norm_statistics, (x, None, None, 0.1))
    mean, var = torch.ops.pykernels.batch_norm_statistics(x, None, None, 0.1)
    rest = (True, 1e-5, code, 0.2)
    grads = [None if t is None else t.clone().requires_grad_() for t in (x, w, b, r)]
    opcheck(torch.ops.pykernels.batch_norm_act, (grads[0], mean, var, *grads[1:], *rest))
    y, mask = torch.ops.pykernels.batch_norm_act(x, mean, var, w, b, r, *rest)
    assert (mask.numel() > 0) == (residual and activation in ("relu", "leaky_relu"))
    dy = torch.randn_like(y)
    kept = None if mask.numel() else r
    opcheck(torch.ops.pykernels.batch_norm_act_backward, (dy, x, mean, var, w, b, kept, mask, *rest, residual))


@native
def test_compiles_whole_and_once_for_any_batch(through_the_ops):
    counter = CompileCounterWithBackend("aot_eager")
    w, b = (torch.rand(6) + 0.5).requires_grad_(), torch.randn(6).requires_grad_()
    state = [torch.zeros(6), torch.ones(6)]

    def f(x, r, mean, var):
        return batch_norm_act(x, mean, var, w, b, training=True, residual=r)

    compiled = torch.compile(f, backend=counter, fullgraph=True)
    for n in (2, 3, 5, 9):
        x, r = torch.randn(n, 6, 4, 4), torch.randn(n, 6, 4, 4)
        x.requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(r, 0)
        mine, theirs = copies(state), copies(state)
        y = compiled(x, r, *mine)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        expected = f(x, r, *theirs)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), x)[0])
        torch.testing.assert_close(mine, theirs)
    assert counter.frame_count == 1


@native
def test_the_running_statistics_count_as_changed(through_the_ops):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        mean, var = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
        versions = mean._version, var._version
        batch_norm_act(torch.randn(8, 4), mean, var, training=True)
        assert mean._version > versions[0]
        assert var._version > versions[1]
        assert mean.abs().min() > 0


@native
def test_relu_keeps_bits_only_behind_a_residual_and_then_not_the_residual(through_the_ops):
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        r = torch.randn(2, 8, 4, 4)
        batch_norm_act(x, training=True, residual=r)
    assert not any(t is r or t.data_ptr() == r.data_ptr() for t in saved)
    assert [t.numel() for t in saved if t.dtype == torch.uint8] == [x.numel() // 8]


def test_autocast_keeps_x_and_casts_the_residual():
    x, r = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_norm_act(x, training=True, residual=r).dtype == torch.float32


def test_a_cpu_has_no_kernels_and_says_so():
    with pytest.raises(RuntimeError, match=r"batch_norm_act: backend='cpu' cannot run: its kernels are for GPUs alone"):
        batch_norm_act(torch.randn(4, 3), training=True, backend="cpu")
    with pk.backend("reference"):
        batch_norm_act(torch.randn(4, 3), training=True)


X, V = torch.randn(4, 3, 2, 2), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"x": X.int()}, TypeError, "x: expected a floating dtype"),
        ({"x": X[:, 0, 0, 0]}, ValueError, r"x: expected \(N, C, ...\)"),
        ({"x": X.to_sparse()}, ValueError, "x: expected a dense tensor"),
        ({"x": X[:1, :, :1, :1]}, ValueError, "x: expected more than 1 value per channel"),
        ({"weight": torch.ones(4)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
        ({"bias": torch.ones(3, 1)}, ValueError, r"bias: expected shape \(3,\)"),
        ({"running_mean": V.clone()}, ValueError, "running_var: expected a tensor"),
        ({"running_mean": V.int(), "running_var": V}, TypeError, "running_mean: expected a floating dtype"),
        ({"training": False}, ValueError, "running_mean: expected a tensor where training is False"),
        ({"eps": 0.0}, ValueError, "eps: expected a number > 0"),
        ({"residual": X[:2]}, ValueError, r"residual: expected x's shape"),
        ({"residual": X.double()}, TypeError, "residual: expected x's dtype"),
        ({"weight": V.to("meta")}, ValueError, "weight: expected x's device cpu, got meta"),
        ({"activation": "swish"}, ValueError, "activation: expected one of"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.*{words}"):
        batch_norm_act(**{"x": X, "training": True, **arguments})
