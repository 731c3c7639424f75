"""Gradients of conv_bn_act: of the reference by differences, of the kernels against the reference's, torch.func."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pykernels.ops import ACTIVATIONS, conv_bn_act
from pykernels.ops.conv_bn_act.spec import conv_bn_act_reference
from tests.harness import inputs_of, leaves, native, normal, on_cpu_and_triton, relative_l2, to_double
from tests.ops.conv_bn_act.cases import SAMPLES, bound, each_sample, gradient_bound


@pytest.mark.parametrize(
    ("activation", "geometry"),
    [
        *((a, {"padding": "same", "groups": 2}) for a in ACTIVATIONS),
        ("silu", {"stride": 2, "padding": 1}),
        ("relu", {"dilation": 2}),
    ],
)
def test_reference_gradients(activation, geometry):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight = normal(2, 2, 5, 6), normal(2, 2 // geometry.get("groups", 1), 3, 2)
    vectors = [normal(2) for _ in range(5)]
    vectors[2] = (vectors[2].detach().square() + 0.5).requires_grad_()
    residual = normal(*conv_bn_act(x, weight, *vectors, **geometry).shape)

    def f(x, weight, residual, *vectors):
        options = {"activation": activation, "negative_slope": 0.2, **geometry}
        return conv_bn_act(x, weight, *vectors, residual=residual, **options)

    assert torch.autograd.gradcheck(f, (x, weight, residual, *vectors), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, weight, residual, *vectors), fast_mode=True)


@native
@each_sample
def test_native_gradients_of_every_order_are_the_references(name):
    args, kwargs = inputs_of(SAMPLES[name], torch.float32)
    generator = torch.Generator().manual_seed(1)
    args1, kwargs1, inputs = leaves(args, kwargs)
    args2, kwargs2, wide = leaves(to_double(args), to_double(kwargs))
    y, expected = conv_bn_act(*args1, backend="cpu", **kwargs1), conv_bn_act_reference(*args2, **kwargs2)
    gy = torch.randn(y.shape, generator=generator)
    first = torch.autograd.grad(y, inputs, gy, create_graph=True)
    first_wide = torch.autograd.grad(expected, wide, gy.double(), create_graph=True)
    for got, want in zip(first, first_wide, strict=True):
        assert got.dtype == torch.float32
        assert relative_l2(got, want) <= gradient_bound(args[1], y)
    directions = [torch.randn(g.shape, generator=generator) for g in first]

    def second_order(gradients, inputs, directions):
        # Without an activation the residual's gradient is the incoming one, and depends on nothing.
        pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
        return torch.autograd.grad([g for g, _ in pairs], inputs, [d for _, d in pairs], allow_unused=True)

    second = second_order(first, inputs, directions)
    second_wide = second_order(first_wide, wide, to_double(directions))
    for got, want, t in zip(second, second_wide, inputs, strict=True):
        got = torch.zeros_like(t) if got is None else got
        assert relative_l2(got, torch.zeros_like(t) if want is None else want) <= gradient_bound(args[1], y, order=2)


@native
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_gradients(activation):
    sample = SAMPLES[activation]
    args, kwargs, inputs = leaves(*inputs_of(sample, torch.bfloat16))
    args2, kwargs2, wide = leaves(to_double(args), to_double(kwargs))
    y = conv_bn_act(*args, **kwargs)
    got = torch.autograd.grad(y.sum(), inputs)
    want = torch.autograd.grad(conv_bn_act_reference(*args2, **kwargs2).sum(), wide)
    # hardswish's slope jumps by a half at -3 and 3, and rounding puts z on their other sides.
    tolerance = (3.8 if activation == "hardswish" else 1) * gradient_bound(args[1], y)
    if activation == "hardsigmoid":  # there its slope jumps from 0: what is on the other side is wrong as a whole
        z = conv_bn_act_reference(*args2, **{**kwargs2, "activation": "none"}).abs()
        tolerance += float(((z - 3).abs() < 3 * 2**-7).sum() / (z < 3).sum()) ** 0.5
    for g, w, t in zip(got, want, inputs, strict=True):
        assert g.dtype == t.dtype
        assert relative_l2(g, w) <= tolerance


@on_cpu_and_triton
@pytest.mark.parametrize("activation", ["none", "relu", "silu", "leaky_relu"])
def test_gradients_with_a_stride_and_a_negative_slope(activation, backend, device):
    x, w, bn = normal(2, 6, 7, 8), normal(9, 6, 3, 3, seed=1), [normal(9, seed=i).abs() + 0.5 for i in range(2, 6)]
    residual = normal(2, 9, 4, 4, seed=7)
    found = {}
    for name, how in ((backend, {"device": device}), ("reference", {"dtype": torch.float64})):
        x1, w1, *bn1, residual1 = inputs = [t.to(**how).requires_grad_() for t in (x, w, *bn, residual)]
        y = conv_bn_act(
            x1, w1, None, *bn1, residual=residual1, stride=2, padding=1, activation=activation, negative_slope=-0.5,
            backend=name,
        )  # fmt: skip
        found[name] = [g.cpu() for g in torch.autograd.grad(y.square().sum(), inputs)]
    for got, expected in zip(*found.values(), strict=True):
        assert relative_l2(got, expected) <= gradient_bound(w, y)


@on_cpu_and_triton
def test_second_gradients(backend, device):
    x, w = normal(1, 4, 5, 5), normal(4, 4, 3, 3, seed=1)
    found = {}
    for name, how in ((backend, {"device": device}), ("reference", {"dtype": torch.float64})):
        inputs = [t.to(**how).requires_grad_() for t in (x, w)]
        y = conv_bn_act(*inputs, padding=1, activation="tanh", backend=name)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        found[name] = [g.cpu() for g in torch.autograd.grad(sum(g.square().sum() for g in first), inputs)]
    for got, expected in zip(*found.values(), strict=True):
        # Of an order more twice: the loss squares what went before, and so doubles its error.
        assert relative_l2(got, expected) <= gradient_bound(w, y, order=4)


@native
@pytest.mark.parametrize("needed", range(4))
def test_only_the_gradients_that_are_asked_for(needed):
    x, weight, scale = torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3), torch.rand(8)
    tensors = [x, weight, scale, torch.randn(8)]
    tensors[needed].requires_grad_()
    y = torch.ops.pykernels.conv_bn_act(*tensors, None, [1, 1], [1, 0, 2, 1], [1, 1], 1, 6, 0.0)
    y.sum().backward()
    assert [t.grad is not None for t in tensors] == [i == needed for i in range(4)]


def test_torch_func_and_forward_mode():
    x, weight = normal(3, 2, 4, 5, 5), normal(6, 4, 3, 3, seed=1)
    y = torch.stack([conv_bn_act(v, weight) for v in x])
    assert relative_l2(torch.func.vmap(lambda v: conv_bn_act(v, weight))(x), y) <= bound(weight)
    got = torch.func.grad(lambda w: conv_bn_act(x[0], w).square().sum())(weight)
    want = torch.func.grad(lambda w: F.conv2d(x[0], w).relu().square().sum())(weight)
    assert relative_l2(got, want) <= gradient_bound(weight, y[0])
    _, got = torch.func.jvp(lambda v: conv_bn_act(v, weight), (x[0],), (x[1],))
    _, want = torch.func.jvp(lambda v: F.conv2d(v, weight).relu(), (x[0],), (x[1],))
    assert relative_l2(got, want) <= bound(weight)
    assert got.abs().max() > 0
