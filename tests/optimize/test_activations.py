"""Which forms of an activation are fused into the convolution before them, and which are something else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.optimize import _rules
from tests.optimize.models import agree, image, kinds, randomise

SAME = {
    "relu6": F.relu6, "relu6 in place": lambda x: F.relu6(x, inplace=True), "module": nn.ReLU6(),
    "bounds": nn.Hardtanh(0, 6),
    "clamp": lambda x: x.clamp(0, 6), "clamp by name": lambda x: torch.clamp(x, min=0.0, max=6.0),
    "clamp in place": lambda x: x.clamp_(0, 6), "from below": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "hardsigmoid": F.hardsigmoid, "mish": F.mish, "mish module": nn.Mish(inplace=True),
    "gelu_tanh": nn.GELU(approximate="tanh"), "silu written out": lambda x: x * torch.sigmoid(x),
    "silu the other way": lambda x: x.sigmoid() * x,
    "other bounds": lambda x: x.clamp(0, 1), "from above": lambda x: x.clamp(max=6), "hardtanh": F.hardtanh,
    "from -6": lambda x: x.clamp(-6, 6), "clamp_max": lambda x: x.clamp_max(0.5),
    "bounds crossed": lambda x: x.clamp(2, 1),
    "elu": nn.ELU(0.3), "elu below 0": lambda x: F.elu(x, -2.5, inplace=True), "elu, 0": lambda x: F.elu(x, 0),
    "prelu": nn.PReLU(), "prelu by channel": nn.PReLU(8), "leaky_relu": nn.LeakyReLU(-1.5),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x), "quick gelu, reversed": lambda x: (x * 1.702).sigmoid() * x,
    "mish written out": lambda x: x * torch.tanh(F.softplus(x)),
    "mish by log1p": lambda x: torch.tanh(torch.log1p(x.exp())) * x,
    "softplus": F.softplus, "softplus module": nn.Softplus(beta=0.5),
    "softplus by name": lambda x: F.softplus(x, beta=3),
    "softplus to 30": lambda x: F.softplus(x, 2, 30),
    "hardswish by its gate": lambda x: x * F.hardsigmoid(x),
    "hardswish written out": lambda x: x * F.relu6(x + 3) / 6,
    "hardswish in place": lambda x: x * (F.relu6(x + 3, inplace=True) / 6),
    "hardswish by clamp": lambda x: x * torch.clamp(3 + x, 0, 6).mul(1 / 6),
}  # fmt: skip
OTHER = {
    "by tensors": lambda x: torch.clamp(x, torch.zeros(8, 1, 1), torch.full((8, 1, 1), 6.0)),
    "to NaN": lambda x: x.clamp(0, float("nan")).nan_to_num(), "selu": F.selu, "celu": lambda x: F.celu(x, 0.5),
    "joined with its gate": lambda x: torch.cat([x, torch.sigmoid(x)], 1),
    "softplus to 3": lambda x: F.softplus(x, 1, 3), "softplus, backwards": lambda x: F.softplus(x, -1),
    "slopes of the input": lambda x: F.prelu(x, x.mean((0, 2, 3))),
    "mish of another softplus": lambda x: x * torch.tanh(F.softplus(x, 2)),
    "another shift": lambda x: x * F.relu6(x + 2) / 6, "another divisor": lambda x: x * F.relu6(x + 3) / 5,
    "hardswish of two": lambda x: (x * F.relu6(x + 3)).chunk(2, 1)[0] / 6,
    "a gate of a gate": lambda x: x * torch.sigmoid(torch.sigmoid(x)),
    "gate kept": lambda x: torch.cat((x * torch.sigmoid(x), torch.sigmoid(x)), 1),
    "used besides": lambda x: x * torch.sigmoid(x) + x,
    "sigmoid written to": lambda x: x * torch.sigmoid(x).mul_(2),
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.bn, self.function = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), function

    def forward(self, x):
        return self.function(self.bn(self.conv(x)))


def fused(function):
    model = randomise(Model(function))
    if isinstance(function, nn.PReLU):
        function.weight.data.copy_(torch.linspace(-1.5, 2, function.num_parameters) + 0.25)
    with torch.no_grad():
        model.bn.bias.mul_(20)  # so that values go beyond 6
    fast, x = pk.optimize(model), image(2, 3, 9, 10)
    agree(fast, model, x)
    return kinds(fast)


@torch.no_grad()
@pytest.mark.parametrize("name", SAME)
def test_forms_that_are_fused(name):
    (step,) = fused(SAME[name])
    assert step.startswith("conv+bn+")


@torch.no_grad()
@pytest.mark.parametrize("name", OTHER)
def test_forms_that_are_something_else(name):
    assert fused(OTHER[name]) == ["conv+bn"]


@torch.no_grad()
def test_the_report_names_what_is_fused():
    found = {name: fused(SAME[name])[0].removeprefix("conv+bn+") for name in ("prelu", "elu", "quick gelu", "hardtanh")}
    assert found == {"prelu": "prelu", "elu": "elu", "quick gelu": "quick_gelu", "hardtanh": "clamp"}


@torch.no_grad()
@pytest.mark.parametrize("shape", [(), (1,), (8,)])
def test_slopes_that_change_are_followed(shape):
    model = randomise(Model(nn.PReLU()))
    model.function.weight = nn.Parameter(torch.full(shape, 0.5))
    fast, x = pk.optimize(model), image(2, 3, 9, 10)
    for write in (lambda: None, lambda: model.function.weight.mul_(-3), lambda: fast.function.weight.fill_(0.125)):
        write()
        agree(fast, model, x)


class Behind(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(12, 8), function

    def forward(self, x):
        return self.function(self.linear(x))


@torch.no_grad()
@pytest.mark.parametrize("function", [nn.PReLU(), nn.PReLU(8), SAME["quick gelu"], nn.ELU(0.3), F.hardtanh])
def test_activations_behind_a_linear_layer(function):
    model, x = randomise(Behind(function)), torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    fast = pk.optimize(model)
    agree(fast, model, x)
    assert kinds(fast)[0].startswith("linear+")


@torch.no_grad()
@pytest.mark.parametrize(("slopes", "fits"), [(1, True), (5, False)])
def test_slopes_of_what_is_no_feature(slopes, fits):
    """They are those of dimension 1, which of three dimensions is not the last."""
    model = randomise(Behind(nn.PReLU(slopes)))
    fast, x = pk.optimize(model), torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    agree(fast, model, x)
    assert kinds(fast) == (["linear+prelu"] if fits else [])


@torch.no_grad()
@pytest.mark.parametrize("name", ["prelu by channel", "elu", "other bounds", "quick gelu"])
def test_what_torch_runs_applies_the_same(name, monkeypatch):
    """A convolution that is left to torch has the activation behind it."""
    monkeypatch.setattr(_rules, "torchs_because", lambda *_: "for a test")
    fused(SAME[name])


@torch.no_grad()
@pytest.mark.parametrize("name", ["prelu by channel", "elu", "other bounds", "leaky_relu"])
def test_values_that_are_not_finite(name):
    model = randomise(Model(SAME[name]))
    fast, x = pk.optimize(model), image(1, 3, 9, 10)
    x[0, 1, 2, 3], x[0, 0, 6, 7], x[0, 2, 8, 0] = torch.nan, torch.inf, -torch.inf
    for _ in range(3):
        assert torch.equal(fast(x).isnan(), model(x).isnan())


@torch.no_grad()
@pytest.mark.parametrize("function", [nn.PReLU(8), SAME["quick gelu"], nn.ELU(0.3), F.hardtanh])
@pytest.mark.parametrize(
    "conv", [nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(3, 8, 3, 2), nn.ConvTranspose2d(3, 8, 4, 2), nn.Conv2d(3, 8, 3)]
)
def test_other_convolutions(conv, function, monkeypatch):
    monkeypatch.setattr(_rules, "transposed_torchs_because", lambda *_: "")
    model = Behind(function)
    model.linear = conv
    fast, x = pk.optimize(randomise(model)), image(*((2, 3, 17) if "1d" in type(conv).__name__ else (2, 3, 9, 10)))
    agree(fast, model, x)
    (step,) = kinds(fast)
    assert step.startswith("conv")
    assert "+" in step
