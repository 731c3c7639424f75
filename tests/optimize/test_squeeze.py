"""Squeeze-and-excitation as one step: as torchvision, timm and others write it, and what is not one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.optimize._squeeze import is_squeeze
from tests.harness import FORMATS, native, normal, relative_l2
from tests.optimize.models import kinds, programs

pytestmark = native

C, M = 24, 8


class Timm(nn.Module):
    """Both of timm's."""

    def __init__(self, act=nn.ReLU, gate=nn.Sigmoid, bias=True):
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(C, M, 1, bias=bias), nn.Conv2d(M, C, 1, bias=bias)
        self.act1, self.gate = act(inplace=True), gate()

    def forward(self, x):
        x_se = x.mean((2, 3), keepdim=True)
        x_se = self.conv_reduce(x_se)
        x_se = self.act1(x_se)
        x_se = self.conv_expand(x_se)
        return x * self.gate(x_se)


class Torchvision(nn.Module):
    def __init__(self, activation=nn.ReLU, scale_activation=nn.Sigmoid):
        super().__init__()
        self.avgpool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, M, 1), nn.Conv2d(M, C, 1)
        self.activation, self.scale_activation = activation(), scale_activation()

    def forward(self, x):
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class Linear(nn.Module):
    """The first implementations': reading the sizes, or not."""

    def __init__(self, reads=True):
        super().__init__()
        self.pool, self.reads = nn.AdaptiveAvgPool2d(1), reads
        self.fc = nn.Sequential(
            nn.Linear(C, M, bias=False), nn.ReLU(inplace=True), nn.Linear(M, C, bias=False), nn.Sigmoid()
        )

    def forward(self, x):
        if not self.reads:
            return x * self.fc(self.pool(x).flatten(1))[:, :, None, None]
        b, c, _, _ = x.size()
        y = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y


class Written(nn.Module):
    """A module of one expression of x and the two layers."""

    def __init__(self, expression):
        super().__init__()
        self.a, self.b, self.expression = nn.Conv2d(C, M, 1), nn.Conv2d(M, C, 1), expression

    def forward(self, x):
        return self.expression(self, x)


class Between(nn.Module):
    """One of them between convolutions, as in a network."""

    def __init__(self, inner):
        super().__init__()
        self.before, self.inner, self.after = nn.Conv2d(3, C, 3, padding=1), inner, nn.Conv2d(C, 8, 1)

    def forward(self, x):
        return self.after(self.inner(F.silu(self.before(x))))


def checked(model, *inputs, times=3):
    """The optimised model, with eager's values, sizes and strides."""
    model = model.eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for _ in range(times):
            for x in inputs:
                got, expected = fast(x), model(x)
                assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)
                assert relative_l2(got, expected) < 1e-6
    return fast


OURS = {
    "timm": Timm,
    "timm's mobilenet": lambda: Timm(nn.ReLU, nn.Hardsigmoid),
    "timm's efficientnet": lambda: Timm(nn.SiLU),
    "without bias": lambda: Timm(bias=False),
    "torchvision": Torchvision,
    "torchvision's efficientnet": lambda: Torchvision(nn.SiLU),
    "torchvision's mobilenet": lambda: Torchvision(scale_activation=nn.Hardsigmoid),
    "linear": Linear,
    "linear that reads no sizes": lambda: Linear(False),
    "written out": lambda: Written(
        lambda s, x: torch.mul(torch.sigmoid(s.b(F.hardswish(s.a(F.adaptive_avg_pool2d(x, (1, 1)))))), x)
    ),
    "in place": lambda: Written(lambda s, x: x * s.b(s.a(x.mean([-1, -2], True)).relu_()).sigmoid_()),
    "by views": lambda: Written(
        lambda s, x: x * s.b(s.a(x.mean((2, 3)).view(-1, C, 1, 1)).relu()).flatten(1).unsqueeze(-1).unsqueeze(-1).tanh()
    ),
}
TORCHS = {
    "without an activation": lambda s, x: x * s.b(s.a(x.mean((2, 3), True))).sigmoid(),
    "without a gate": lambda s, x: x * s.b(s.a(x.mean((2, 3), True)).relu()),
    "of another image": lambda s, x: (x + 1) * s.b(s.a(x.mean((2, 3), True)).relu()).sigmoid(),
    "a sum": lambda s, x: x + s.b(s.a(x.mean((2, 3), True)).relu()).sigmoid(),
    "the gate is needed elsewhere": lambda s, x: x * (g := s.b(s.a(x.mean((2, 3), True)).relu()).sigmoid()) + g,
    "the mean is needed elsewhere": lambda s, x: x * s.b(s.a(g := x.mean((2, 3), True)).relu()).sigmoid() + g,
    "a maximum": lambda s, x: x * s.b(s.a(F.adaptive_max_pool2d(x, 1)).relu()).sigmoid(),
    "the mean of columns": lambda s, x: x * s.b(s.a(x.mean((2,), True)).relu()).sigmoid(),
    "another slope": lambda s, x: x * s.b(F.leaky_relu(s.a(x.mean((2, 3), True)), 0.2)).sigmoid(),
    "x written to": lambda s, x: (
        y := x * 1, g := y.mean((2, 3), True), y.add_(1), y * s.b(s.a(g).relu()).sigmoid(),
    )[-1],
}  # fmt: skip


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_ours(name, layout):
    inner = OURS[name]()
    x = normal(2, C, 9, 7, layout=layout)
    assert [k for k in kinds(checked(inner, x)) if not k.startswith("to ")] == [found(inner)]
    images = [normal(n, 3, *size, layout=layout) for n, *size in ((1, 9, 11), (2, 12, 8), (1, 9, 11))]
    fast = checked(Between(inner), *images)
    assert kinds(fast).count(found(inner)) == 1
    assert not any("mul" in k or "mean" in k or "pool" in k for k in kinds(fast))


def found(inner):
    """What the report calls the step."""
    fast = pk.optimize(inner.eval())
    with torch.no_grad():
        fast(normal(1, C, 4, 4))
    (name,) = [k for k in kinds(fast) if k.startswith("squeeze_excite")]
    return name


@pytest.mark.parametrize("name", TORCHS)
def test_others_stay_as_they_are(name):
    fast = checked(Written(TORCHS[name]), normal(2, C, 9, 9))
    assert not any(k.startswith("squeeze_excite") for k in kinds(fast))


def test_writes_into_the_image_where_nothing_reads_it_again():
    def writes(fast):
        return [bool(s.writes) for s in programs(fast)[0].graph.steps if is_squeeze(s)]

    assert writes(checked(Between(Timm()), normal(1, 3, 8, 8))) == [True]
    kept = Between(Written(lambda s, x: x * s.b(s.a(x.mean((2, 3), True)).relu()).sigmoid() + x))
    assert writes(checked(kept, normal(1, 3, 8, 8))) == [False]


def test_large_weights_are_copied_and_followed():
    torch.manual_seed(0)
    inner = Timm()
    inner.conv_reduce, inner.conv_expand = nn.Conv2d(512, 64, 1), nn.Conv2d(64, 512, 1)
    model = nn.Sequential(nn.Conv2d(3, 512, 1), nn.ReLU(), inner, nn.Conv2d(512, 8, 1))
    fast, x = checked(model, normal(1, 3, 8, 8)), normal(1, 3, 8, 8)
    (program,) = programs(fast)
    (step,) = [s for s in program.graph.steps if is_squeeze(s)]
    assert [v.kind for v in step.args[1:5]] == ["step", "source", "step", "source"]
    with torch.no_grad():
        inner.conv_expand.weight.neg_()
        assert relative_l2(fast(x), model(x)) < 1e-6
        fast[2].conv_reduce.weight = model[2].conv_reduce.weight = nn.Parameter(inner.conv_reduce.weight * 2)
        assert relative_l2(fast(x), model(x)) < 1e-6


def test_an_input_is_not_written_to():
    model = Timm().eval()
    fast, x = pk.optimize(model), normal(1, C, 8, 8)
    before = x.clone()
    with torch.no_grad():
        for _ in range(3):
            fast(x)
    assert torch.equal(x, before)


def test_new_weights_are_seen():
    model = Between(Timm()).eval()
    fast, x = checked(model, normal(1, 3, 8, 8)), normal(1, 3, 8, 8)
    with torch.no_grad():
        model.inner.conv_reduce.weight.mul_(-2)
        model.inner.conv_expand.bias.data.add_(1)
        assert relative_l2(fast(x), model(x)) < 1e-6
        fast.inner.conv_expand.weight = model.inner.conv_expand.weight = nn.Parameter(normal(C, M, 1, 1))
        assert relative_l2(fast(x), model(x)) < 1e-6
        assert relative_l2(fast(x), model(x)) < 1e-6


def test_bfloat16_and_float64():
    x = normal(1, 3, 8, 8)
    model = Between(Timm()).eval()
    expected = model(x)
    fast = pk.optimize(model.bfloat16())
    with torch.no_grad():
        for _ in range(3):
            assert relative_l2(fast(x.bfloat16()), expected) < 2e-2
    assert any(k.startswith("squeeze_excite") for k in kinds(fast))
    double = checked(Between(Timm()).double(), x.double())
    assert not any(k.startswith("squeeze_excite") for k in kinds(double))


def test_packed_weights_are_kept_beside_it():
    model = Between(Timm()).eval()
    x = normal(1, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        fast = pk.optimize(model, keep="packed")
        for _ in range(4):
            assert relative_l2(fast(x), expected) < 1e-6


def test_the_report_counts_its_products():
    fast = checked(Timm(), normal(2, C, 8, 8))
    (step,) = [s for s in fast.report().to_dict()["steps"] if s["what"].startswith("squeeze_excite")]
    assert (step["what"], step["who"], step["flops"]) == ("squeeze_excite+relu+sigmoid", "pykernels", 2 * 2 * 2 * C * M)


def test_gradients_of_the_image_pass_through():
    model = Between(Timm(nn.SiLU)).eval()
    fast = pk.optimize(model)
    for _ in range(3):
        x = normal(1, 3, 8, 8).requires_grad_()
        got, expected = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (fast, model))
        torch.testing.assert_close(got, expected)
