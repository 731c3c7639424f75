"""Pools as our steps: the numbers, shapes and strides of eager's, and which stay torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import FORMATS, native, normal
from tests.optimize.models import called, checked, kinds, programs

pytestmark = native


class Pooled(nn.Module):
    """A pool between two steps, and by itself."""

    def __init__(self, pool):
        super().__init__()
        self.pool, self.conv = pool, nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.pool(F.relu(self.conv(x)))
        return y * 2, self.pool(x)


OURS = {
    "max_pool2d": lambda t: F.max_pool2d(t, 3, 2, 1),
    "torch.max_pool2d": lambda t: torch.max_pool2d(t, 2),
    "by name": lambda t: F.max_pool2d(input=t, kernel_size=(2, 3), stride=(1, 2), dilation=2, ceil_mode=True),
    "module": nn.MaxPool2d(2, ceil_mode=True),
    "avg_pool2d": lambda t: F.avg_pool2d(t, 3, 2, 1, count_include_pad=False),
    "divisor": lambda t: F.avg_pool2d(t, [2, 2], stride=1, divisor_override=3),
    "avg module": nn.AvgPool2d(2),
    "adaptive": lambda t: F.adaptive_avg_pool2d(t, (1, 1)),
    "adaptive module": nn.AdaptiveAvgPool2d(1),
    "mean": lambda t: t.mean((2, 3)),
    "mean of the last": lambda t: torch.mean(t, [-1, -2]),
    "mean that keeps": lambda t: t.mean(dim=(2, 3), keepdim=True),
}  # fmt: skip
TORCHS = {
    "indices": lambda t: F.max_pool2d(t, 2, return_indices=True)[0],
    "to 2 by 2": lambda t: F.adaptive_avg_pool2d(t, 2),
    "another mean": lambda t: t.mean((1, 2)),
    "mean in float64": lambda t: t.mean((2, 3), dtype=torch.float64),
    "of a matrix": lambda t: F.max_pool2d(t[0], 2),
}


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_ours(name, layout):
    fast = checked(Pooled(OURS[name]), normal(2, 3, 12, 13, layout=layout))
    assert sum("pool2d" in k or k == "mean" for k in kinds(fast)) == 2


@pytest.mark.parametrize("name", TORCHS)
def test_torchs(name):
    fast = checked(Pooled(TORCHS[name]), normal(2, 3, 12, 12))
    assert not any("pool2d" in k or k == "mean" for k in kinds(fast))


def test_other_sizes_and_other_dtypes():
    pool = OURS["max_pool2d"]
    checked(Pooled(pool), normal(2, 3, 12, 13), normal(1, 3, 9, 8), normal(3, 3, 12, 13))
    fast = checked(Pooled(pool).double(), normal(2, 3, 12, 13, dtype=torch.float64))
    assert "max_pool2d" not in kinds(fast)


def test_an_image_that_is_too_small_is_refused_by_torch():
    fast = checked(Pooled(OURS["torch.max_pool2d"]), normal(1, 3, 8, 8))
    with torch.no_grad(), pytest.raises(RuntimeError, match="Output size is too small"):
        fast(normal(1, 3, 1, 8))
    checked(Pooled(OURS["torch.max_pool2d"]), normal(1, 3, 8, 8))


def test_nan_is_the_maximum():
    x = normal(1, 3, 8, 8)
    x[0, 1, 2, 3] = torch.nan
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1)).eval()
    fast = pk.optimize(model)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x), equal_nan=True)


class Joined(nn.Module):
    """Inception's: a pool among the branches that torch.cat joins, and one of the joined."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.stem(x))
        y = torch.cat((F.relu(self.a(y)), F.max_pool2d(y, 3, 1, 1), F.relu(self.b(y))), 1)
        return (F.avg_pool2d(y, 2).sigmoid(),)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_a_pool_writes_into_what_cat_joins(layout):
    model = Joined()
    fast = checked(model, normal(1, 3, 20, 20, layout=layout))
    checked(model, normal(1, 3, 20, 20, layout=layout), normal(2, 3, 17, 15, layout=layout))
    (program, *_) = programs(fast)
    assert "cat" not in called(program)
    assert ".copy_" not in program.text()


def test_gradients_of_the_image_pass_through():
    model = Pooled(nn.MaxPool2d(2)).eval()
    fast = pk.optimize(model)
    for _ in range(3):
        x = normal(1, 3, 8, 8).requires_grad_()
        got, expected = (torch.autograd.grad(sum(t.square().sum() for t in f(x)), x)[0] for f in (fast, model))
        torch.testing.assert_close(got, expected)
