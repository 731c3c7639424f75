"""conv_transpose_bn_act against torch's functions in float64: geometries, gradients, traces, bad arguments."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

import pykernels as pk
from pykernels.ops import conv_transpose_bn_act
from pykernels.ops.conv_bn_act.spec import CONV_BN_ACT_SPEC
from tests.harness import forced_isa, host_isas, normal, relative_l2

NAMES = "stride", "padding", "output_padding", "groups", "dilation"


def by_torch(x, weight, vectors, residual, options, activation=torch.relu):
    """In float64."""
    x, weight, residual, *vectors = (None if t is None else t.double() for t in (x, weight, residual, *vectors))
    bias, mean, var, gain, shift = vectors
    transposed = F.conv_transpose2d if weight.dim() == 4 else F.conv_transpose1d
    z = transposed(x, weight, bias, *(options[n] for n in NAMES))
    if mean is not None:
        batch = z if z.dim() == weight.dim() else z[None]
        z = F.batch_norm(batch, mean, var, gain, shift).reshape(z.shape)
    return activation(z if residual is None else z + residual)


def geometries(count):
    """Random ones, those that torch refuses left out: shape of x and of the weight, options."""
    r = random.Random(0)
    while count:
        groups = r.choice((1, 1, 2, 3))
        c, k = groups * r.randint(1, 5), r.randint(1, 5)
        taps, stride, dilation = ((r.randint(1, most), r.randint(1, most)) for most in (5, 4, 3))
        padding, image = (r.randint(0, 4), r.randint(0, 4)), (r.randint(1, 7), r.randint(1, 7))
        more = tuple(r.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        axes = zip(image, taps, stride, padding, more, dilation, strict=True)
        if min((n - 1) * s - 2 * p + d * (t - 1) + o + 1 for n, t, s, p, o, d in axes) < 1:
            continue
        count -= 1
        options = dict(zip(NAMES, (stride, padding, more, groups, dilation), strict=True))
        yield (2, c, *image), (c, k, *taps), options


def arguments(x_shape, weight_shape, options, dtype=torch.float32):
    k = weight_shape[1] * options["groups"]
    x, weight = normal(*x_shape, seed=1).to(dtype), (normal(*weight_shape, seed=2) * 0.5).to(dtype)
    vectors = normal(k, seed=3), normal(k, seed=4), 0.5 + normal(k, seed=5).abs(), normal(k, seed=6), normal(k, seed=7)
    none = [None] * 5
    residual = normal(*by_torch(x, weight, none, None, options).shape, seed=8).to(dtype)
    return x, weight, vectors, residual


def assert_near(got, expected, weight, dtype=torch.float32):
    assert got.shape == expected.shape
    assert relative_l2(got, expected) <= CONV_BN_ACT_SPEC.bound(dtype, weight.numel() + 4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_random_geometries(backend, last):
    for x_shape, weight_shape, options in geometries(60):
        x, weight, vectors, residual = arguments(x_shape, weight_shape, options)
        if last:
            x, residual = (t.to(memory_format=torch.channels_last) for t in (x, residual))
        y = conv_transpose_bn_act(x, weight, *vectors, residual=residual, activation="none", backend=backend, **options)
        assert_near(y, by_torch(x, weight, vectors, residual, options, lambda z: z), weight)
        theirs = F.conv_transpose2d(x, weight, None, *options.values())
        assert y.is_contiguous() == theirs.is_contiguous() or 1 in y.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
def test_isas_and_dtypes(dtype):
    options = dict(zip(NAMES, ((2, 2), (1, 1), (0, 0), 1, (1, 1)), strict=True))
    x, weight, vectors, residual = arguments((2, 19, 9, 11), (19, 21, 4, 4), options, dtype)
    for isa in host_isas():
        with forced_isa(isa):
            y = conv_transpose_bn_act(x, weight, *vectors, residual=residual, activation="silu", **options)
            assert y.dtype is dtype
            assert_near(y, by_torch(x, weight, vectors, residual, options, F.silu), weight, dtype)


@pytest.mark.parametrize("batch", [(2,), (0,), ()], ids=str)
def test_sequences_and_batches(batch):
    options = dict(zip(NAMES, (3, 1, 2, 2, 2), strict=True))
    x, weight = normal(*batch, 6, 8, seed=1), normal(6, 5, 4, seed=2)
    residual = torch.ones_like(F.conv_transpose1d(x, weight, None, *options.values()))
    y = conv_transpose_bn_act(x, weight, residual=residual, **options)
    assert_near(y, by_torch(x, weight, [None] * 5, residual, options), weight) if y.numel() else None
    image = conv_transpose_bn_act(x[..., None], weight[..., None], stride=(3, 1), groups=2)
    assert image.shape == F.conv_transpose2d(x[..., None], weight[..., None], None, (3, 1), 0, 0, 2).shape


def test_infinity_stays_where_torch_has_it():
    x, weight = torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    x[0, 0, 1, 1] = torch.inf
    y = conv_transpose_bn_act(x, weight, stride=3, activation="none")  # rows and columns of zeros alone
    assert torch.equal(y, F.conv_transpose2d(x, weight, None, 3))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gradients(stride):
    options = dict(zip(NAMES, (stride, 1, 0, 2, 1), strict=True))
    x, weight, vectors, residual = arguments((2, 4, 5, 4), (4, 3, 3, 3), options)
    found = []
    for wide in (False, True):
        inputs = [(t.double() if wide else t).detach().requires_grad_() for t in (x, weight, *vectors, residual)]
        backend = "reference" if wide else "auto"
        y = conv_transpose_bn_act(*inputs[:7], residual=inputs[7], activation="silu", backend=backend, **options)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True, allow_unused=True)
        again = torch.autograd.grad(sum(g.square().sum() for g in first if g is not None), inputs[:2])
        found.append([*(g for g in first if g is not None), *again])
    for got, expected in zip(*found, strict=False):
        assert relative_l2(got, expected) <= 64 * CONV_BN_ACT_SPEC.bound(torch.float32, y.numel())


def test_vmap_autocast_and_compile():
    x, weight = normal(3, 2, 4, 5, 5, seed=1), normal(4, 3, 3, 3, seed=2)
    one = lambda t: conv_transpose_bn_act(t, weight, stride=2)  # noqa: E731
    torch.testing.assert_close(torch.vmap(one)(x), torch.stack([one(t) for t in x]))
    with torch.autocast("cpu", torch.bfloat16):
        assert one(x[0]).dtype is torch.bfloat16
    torch.testing.assert_close(torch.compile(one, fullgraph=True, backend="aot_eager")(x[0]), one(x[0]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 3, 4, 4)}, ValueError, "x: expected 4 channels"),
        ({"x": torch.ones(4)}, ValueError, r"x: expected \(N, C, H, W\)"),
        ({"x": torch.ones(2, 4, 0, 4)}, ValueError, "x: expected H and W of at least 1"),
        ({"x": torch.ones(2, 4, 4, 4, dtype=torch.int32)}, TypeError, "x: expected a floating dtype"),
        ({"x": None}, TypeError, "x: expected a tensor"),
        ({"weight": torch.ones(4, 3)}, ValueError, r"weight: expected \(C, K/groups, R, S\)"),
        ({"weight": torch.ones(4, 0, 3, 3)}, ValueError, "weight: expected sizes of at least 1"),
        ({"weight": torch.ones(4, 3, 3, 3).double()}, TypeError, "weight: expected x's dtype"),
        ({"bias": torch.ones(4)}, ValueError, r"bias: expected shape \(3,\)"),
        ({"running_mean": torch.ones(3)}, ValueError, "running_var"),
        ({"residual": torch.ones(2, 3, 4, 4)}, ValueError, "residual: expected the output's shape"),
        ({"stride": 0}, ValueError, "stride: expected"),
        ({"stride": "2"}, TypeError, "stride: expected"),
        ({"padding": -1}, ValueError, "padding: expected"),
        ({"padding": 9}, ValueError, "padding: expected an output of at least 1 x 1"),
        ({"output_padding": 2}, ValueError, "output_padding: expected less than stride"),
        ({"groups": 3}, ValueError, "weight: expected C divisible by groups = 3"),
        ({"dilation": (1, 2, 3)}, ValueError, "dilation: expected"),
        ({"activation": "nonsense"}, ValueError, "activation: expected"),
        ({"negative_slope": "x"}, TypeError, "negative_slope: expected"),
        ({"backend": "nonsense"}, ValueError, "backend: expected"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_bad_arguments_are_named(change, error, message):
    given = {"x": torch.ones(2, 4, 4, 4), "weight": torch.ones(4, 3, 3, 3), "stride": 2} | change
    with pytest.raises(error, match=f"pykernels.conv_transpose_bn_act: {message}"):
        conv_transpose_bn_act(**given)


def test_flops_are_those_of_its_products():
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.ones(1, 8, 6, 6), torch.ones(8, 4, 4, 4)
    with FlopCounterMode(display=False) as counter:
        pk.ops.conv_transpose_bn_act(x, weight, stride=2, padding=1)
    assert counter.get_total_flops() == 2 * 144 * 4 * 4 * 8  # 12 x 12 pixels of 2 x 2 taps
