"""Which forms of an activation are fused into the convolution before them, and which are something else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
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
}  # fmt: skip
OTHER = {
    "another bound": lambda x: x.clamp(0, 1), "from above": lambda x: x.clamp(max=6), "hardtanh": F.hardtanh,
    "by tensors": lambda x: torch.clamp(x, torch.zeros(8, 1, 1), torch.full((8, 1, 1), 6.0)),
    "from -6": lambda x: x.clamp(-6, 6), "gate kept": lambda x: torch.cat((x * torch.sigmoid(x), torch.sigmoid(x)), 1),
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
