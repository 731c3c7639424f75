"""int8_conv2d: the reference against sums in int64, Triton's kernel (interpreted without a GPU), bad arguments."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import int8_conv2d
from pykernels.ops.int8_conv2d.reference import int8_conv2d_reference
from pykernels.ops.int8_conv2d.spec import INT8_CONV2D_SPEC
from tests.harness import inputs_of, needs_triton, tensors_of, triton_reason

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", pytest.param("triton", marks=[] if triton_reason() is None else pytest.mark.skip(
    triton_reason())))  # fmt: skip
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def integers(*shape, seed=0):
    t = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return t.to(DEVICE)


def sums_by_hand(x, weight, stride, padding):
    """In int64, one tap after the other."""
    n, c, _, _ = x.shape
    k, _, r, s = weight.shape
    x = F.pad(x.cpu().long(), (padding,) * 4)
    p, q = (x.shape[2] - r) // stride + 1, (x.shape[3] - s) // stride + 1
    y = torch.zeros(n, k, p, q, dtype=torch.int64)
    for i in range(r):
        for j in range(s):
            taken = x[:, :, i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride]
            for channel in range(c):
                y += taken[:, channel, None] * weight[:, channel, i, j].cpu().long()[:, None, None]
    return y


@each_backend
def test_sums_are_exact(backend):
    x, weight = integers(2, 5, 8, 7), integers(6, 5, 3, 3, seed=1)
    y = int8_conv2d(x, weight, stride=2, padding=1, out_dtype=torch.int32, backend=backend)
    assert y.dtype == torch.int32
    assert torch.equal(y.cpu().long(), sums_by_hand(x, weight, 2, 1))


@each_backend
def test_sums_that_float32_does_not_hold(backend):
    x = torch.full((1, 200, 3, 3), -128, dtype=torch.int8, device=DEVICE)
    weight = torch.full((2, 200, 3, 3), 127, dtype=torch.int8, device=DEVICE)
    weight[1, 0, 0, 0] = 126
    y = int8_conv2d(x, weight, out_dtype=torch.int32, backend=backend)
    exact = -128 * 127 * 1800
    assert y.flatten().tolist() == [exact, exact + 128]
    assert abs(exact) > 2**24


@each_backend
def test_rounding_saturation_and_nan(backend):
    values = [5, 7, -5, -7, 126, -126, 0]
    x = torch.tensor(values, dtype=torch.int8, device=DEVICE).reshape(1, 1, 1, -1)
    weight = torch.ones(3, 1, 1, 1, dtype=torch.int8, device=DEVICE)
    scale = torch.tensor([0.5, 2.0, torch.nan], device=DEVICE)
    y = int8_conv2d(x, weight, scale, out_dtype=torch.int8, backend=backend)
    assert y[0, :, 0].tolist() == [[2, 4, -2, -4, 63, -63, 0], [10, 14, -10, -14, 127, -128, 0], [0] * 7]


@each_backend
def test_the_whole_formula(backend):
    x, weight, residual = integers(2, 4, 5, 5), integers(3, 4, 3, 3, seed=1), integers(2, 3, 5, 5, seed=2)
    scale, bias = torch.tensor([1e-3, 2e-3, 3e-3]).to(DEVICE), torch.tensor([0.5, -1.0, 2.0]).to(DEVICE)
    y = int8_conv2d(
        x, weight, scale, bias, residual=residual, residual_scale=0.25, padding=1, activation="leaky_relu",
        negative_slope=0.5, out_scale=3.0, backend=backend,
    )  # fmt: skip
    z = sums_by_hand(x, weight, 1, 1).double() * scale.cpu()[:, None, None] + bias.cpu()[:, None, None]
    z = F.leaky_relu(z + 0.25 * residual.cpu(), 0.5) * 3
    torch.testing.assert_close(y.cpu().double(), z, rtol=2e-6, atol=2e-5)


@each_backend
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_and_unbatched(layout, backend):
    x, weight = integers(2, 4, 6, 5).contiguous(memory_format=layout), integers(8, 4, 3, 3, seed=1)
    y = int8_conv2d(x, weight, out_dtype=torch.int32, backend=backend)
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(int8_conv2d(x[1], weight, out_dtype=torch.int32, backend=backend), y[1])


@each_backend
def test_a_large_stride_of_the_batch_and_expanded_operands(backend):
    x, weight = integers(1, 4, 6, 5).expand(3, 4, 6, 5), integers(1, 4, 3, 3, seed=1).expand(8, 4, 3, 3)
    y = int8_conv2d(x, weight, torch.ones((), device=DEVICE), backend=backend)
    assert torch.equal(y.cpu().long(), sums_by_hand(x, weight, 1, 0))


@pytest.mark.parametrize("sample", [s for s in INT8_CONV2D_SPEC.samples if not s.bench], ids=lambda s: s.name)
def test_the_reference_in_float32_has_the_bits_of_float64s_integers(sample):
    args, kwargs = inputs_of(sample, torch.float32)
    if kwargs["out_dtype"] == torch.int8:
        wide = [t.double() if t is not None and t.is_floating_point() else t for t in args]
        assert torch.equal(int8_conv2d_reference(*args, **kwargs), int8_conv2d_reference(*wide, **kwargs))


@each_backend
def test_compiles_whole(backend):
    weight, scale = integers(8, 4, 3, 3, seed=1), torch.rand(8, device=DEVICE)

    def f(x):
        return int8_conv2d(x, weight, scale, padding=1, activation="relu", backend=backend)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for n in (2, 3):
        x = integers(n, 4, 6, 5)
        assert torch.equal(compiled(x), f(x))


@needs_triton
def test_opcheck():
    ops = importlib.import_module("pykernels.ops.int8_conv2d.triton")
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight = integers(2, 4, 6, 5).contiguous(memory_format=layout), integers(8, 4, 3, 3, seed=1)
        geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
        residual = torch.rand(2, 8, 6, 5, device=DEVICE).contiguous(memory_format=layout)
        end = (1, 0.01, 2.0, torch.float16)
        opcheck(ops.int8_conv2d, (x, weight, torch.rand(8, device=DEVICE), None, residual, 0.5, *geometry, *end))


def test_auto_runs_everywhere_and_a_cpu_says_why_not():
    x, weight = integers(1, 4, 5, 5), integers(3, 4, 3, 3, seed=1)
    assert int8_conv2d(x, weight).dtype == torch.float32
    assert pk.ops.int8_conv2d is int8_conv2d
    with pytest.raises(RuntimeError, match=r"int8_conv2d: backend='cpu' cannot run: its kernels are for GPUs alone"):
        int8_conv2d(x, weight, backend="cpu")


def test_float64_stays_wide():
    x, weight = integers(1, 4, 5, 5), integers(3, 4, 3, 3, seed=1)
    scale = torch.full((3,), 1 / 3, dtype=torch.float64, device=DEVICE)
    y = int8_conv2d(x, weight, scale)
    assert torch.equal(y, (int8_conv2d(x, weight, out_dtype=torch.int32).double() / 3).float())


X, W = torch.zeros(1, 4, 5, 5, dtype=torch.int8), torch.zeros(6, 4, 3, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": [1]}, TypeError, "x: expected a tensor, got list"),
        ({"x": X.float()}, TypeError, "x: expected torch.int8, got torch.float32"),
        ({"weight": W.half()}, TypeError, "weight: expected torch.int8"),
        ({"x": X[0, 0]}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\)"),
        ({"weight": W[0]}, ValueError, r"weight: expected \(K, C/groups, R, S\)"),
        ({"x": X[:, :3]}, ValueError, "x: expected 4 channels"),
        ({"x": X[..., :0]}, ValueError, "x: expected H and W of at least 1"),
        ({"x": X[..., :2]}, ValueError, "x: expected a padded input no smaller than the dilated kernel"),
        ({"weight": W[:0]}, ValueError, "weight: expected K, R and S of at least 1"),
        ({"weight": W[:, :2], "groups": 2, "stride": 0}, ValueError, "stride: expected an int or two ints >= 1"),
        ({"weight": W[:5, :2], "groups": 2}, ValueError, "weight: expected K divisible by groups = 2, got K = 5"),
        ({"groups": 0}, ValueError, "groups: expected an int >= 1"),
        ({"padding": "full"}, ValueError, "padding: expected an int, two ints, 'same' or 'valid'"),
        ({"dilation": "a"}, TypeError, "dilation: expected an int or two ints"),
        ({"weight": W.to("meta")}, ValueError, "weight: expected x's device cpu, got meta"),
        ({"weight": torch.zeros(1, 131072, 1, 1, dtype=torch.int8), "x": X[:, :1].expand(1, 131072, 5, 5)}, ValueError,
         "weight: expected at most 131071 numbers a filter"),
        ({"scale": torch.ones(5)}, ValueError, r"scale: expected one element, \(6,\)"),
        ({"scale": torch.ones(6, dtype=torch.int32)}, TypeError, "scale: expected a floating dtype"),
        ({"bias": torch.ones(1)}, ValueError, r"bias: expected shape \(6,\)"),
        ({"residual": torch.ones(1, 6, 3, 3, dtype=torch.int32)}, TypeError, "residual: expected torch.int8 or a floa"),
        ({"residual": torch.ones(1, 6, 5, 5)}, ValueError, r"residual: expected the output's shape \(1, 6, 3, 3\)"),
        ({"activation": "swish"}, ValueError, "activation: expected one of"),
        ({"out_dtype": torch.float64}, ValueError, "out_dtype: expected one of"),
        ({"out_dtype": torch.int32, "scale": torch.ones(6)}, ValueError, "out_dtype: expected .* plain sums"),
        ({"out_dtype": torch.int32, "activation": "relu"}, ValueError, "out_dtype: expected .* plain sums"),
        ({"scale": torch.ones(6, requires_grad=True)}, RuntimeError, "scale: expected a tensor that requires no grad"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.*{words}") as raised:
        int8_conv2d(**{"x": X, "weight": W, **arguments})
    assert "backend" in arguments or "pykernels.int8_conv2d: " in str(raised.value)


def test_samples_of_every_kind_of_output():
    kinds = {inputs_of(s, torch.float32)[1]["out_dtype"] for s in INT8_CONV2D_SPEC.samples if not s.bench}
    assert kinds == {torch.int32, torch.int8, torch.float32}
    assert all(t.is_floating_point() or t.dtype == torch.int8 for s in INT8_CONV2D_SPEC.samples if not s.bench
               for t in tensors_of(inputs_of(s, torch.float16)))  # fmt: skip
