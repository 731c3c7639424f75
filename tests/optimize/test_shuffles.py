"""Shuffles of channels and pixels as our steps: eager's values, shapes and strides."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import FORMATS, native, normal, relative_l2
from tests.models.bounds import model_bound
from tests.optimize.models import checked, functions, kinds, near, programs

pytestmark = native


def by_view(x, groups):
    """As torchvision's ShuffleNetV2."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def by_reshape(x, groups):
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


def by_flatten(x, groups):
    assert x.shape[1] % groups == 0
    return x.unflatten(1, (groups, -1)).transpose(2, 1).flatten(1, 2)


WAYS = {"view": by_view, "reshape": by_reshape, "flatten": by_flatten, "torch": F.channel_shuffle}


class Unit(nn.Module):
    """ShuffleNetV2's: the first half goes by, the second through convolutions, and both are shuffled."""

    def __init__(self, way, c=24):
        super().__init__()
        self.way = way
        self.a, self.b = nn.Conv2d(c // 2, c // 2, 1), nn.Conv2d(c // 2, c // 2, 3, padding=1, groups=c // 2)

    def forward(self, x):
        first, second = x.chunk(2, 1)
        return WAYS[self.way](torch.cat((first, F.relu(self.b(self.a(second)))), 1), 2)


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.stem, self.units = nn.Conv2d(3, 24, 3, padding=1), nn.Sequential(*(Unit(way) for _ in range(3)))

    def forward(self, x):
        return (self.units(self.stem(x)),)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_unit_is_one_pass_after_its_convolutions(way, layout):
    fast = checked(Net(way), normal(2, 3, 12, 13, layout=layout), normal(1, 3, 10, 8, layout=layout))
    if layout == torch.channels_last and way in ("view", "reshape", "flatten"):
        return  # eager's views of channels_last images may be of other strides
    assert kinds(fast).count("cat+channel_shuffle") % 3 == 0
    assert "cat+channel_shuffle" in kinds(fast)
    assert "pk.ops.channel_shuffle" in {r.by for r in fast.report().replaced}
    assert not {"cat", "transpose", "permute", "view", "reshape"} & functions(fast).keys()


class Resized(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.up, self.down = nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def forward(self, x):
        y = self.up(F.relu(self.a(x)))
        z = self.b(self.down(y))
        return F.channel_shuffle(z, 4) + 1, F.pixel_shuffle(z, 2), torch.pixel_unshuffle(x, 2)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchs_own_functions(dtype, layout):
    model = Resized().to(dtype).eval()
    fast = pk.optimize(model)
    for shape in ((2, 3, 8, 10), (1, 3, 6, 4), (2, 3, 8, 10)):
        for _ in range(2):
            near(fast, model, normal(*shape, layout=layout, dtype=dtype), model_bound(model, dtype))
    assert {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle"} <= set(kinds(fast))


class Otherwise(nn.Module):
    """What looks like a shuffle and is none, or is needed besides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        n, c, h, w = y.shape
        five = y.view(n, 3, 4, h, w)
        a = five.transpose(1, 2)
        b = five.transpose(1, 3).reshape(n, c, h, w)
        d = a.reshape(n, c, h, w)
        joined = torch.cat((y, y + 1), 1)
        e = by_view(joined, 2) + joined
        f = torch.cat((y, y[:, :6]), 1)
        return b, d, a, e, by_view(f, 2), by_view(y, 2).view(n, c * h, w)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_others_stay(layout):
    fast = checked(Otherwise(), normal(2, 3, 6, 6, layout=layout), normal(1, 3, 8, 6, layout=layout))
    kept = {name: count // len(programs(fast)) for name, count in functions(fast).items()}
    assert kept["channel_shuffle"] == 3
    assert [kept[name] for name in ("view", "transpose", "reshape", "cat")] == [2, 2, 2, 2]


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        z = by_view(y, 2)
        n, c, h, w = y.shape
        view = y.view(n, 2, 4, h, w).transpose(1, 2)
        copy = y.view(n, 2, 4, h, w).transpose(1, 2).contiguous()
        joined = torch.cat((y, y), 1)
        y.add_(1)
        return z, view.reshape(n, c, h, w), by_view(y, 4).mul_(2), copy.view(n, c, h, w), by_view(joined, 2)


def test_what_is_written_to_is_seen():
    checked(Written(), normal(2, 3, 6, 6))


def test_more_groups_than_the_kernels_take():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 192, 1)

        def forward(self, x):
            return F.channel_shuffle(self.conv(x), 96), F.pixel_shuffle(self.conv(x)[:, :100], 10)

    fast = checked(Many(), normal(1, 3, 6, 6))
    assert not [k for k in kinds(fast) if "shuffle" in k]


def test_an_export_has_our_ops():
    model, x = Net("view").eval(), normal(1, 3, 12, 12)
    fast = pk.optimize(model)
    with torch.no_grad():
        fast(x)
        program = torch.export.export(fast, (x,))
        near(program.module(), model, x, model_bound(model))
    assert any("pykernels.shuffle" in str(n.target) for n in program.graph.nodes)


def test_dynamo_gives_the_same():
    model, x = Net("view").eval(), normal(1, 3, 12, 12)
    fast = torch.compile(model, backend="pykernels")
    with torch.no_grad():
        for _ in range(3):
            near(fast, model, x, model_bound(model))


def test_gradients_of_the_image_pass_through():
    model = Net("torch").eval()
    fast, double = pk.optimize(model), copy.deepcopy(model).double()
    for _ in range(3):
        x = normal(1, 3, 8, 8).requires_grad_()
        wide = x.detach().double().requires_grad_()
        got, exact = (torch.autograd.grad(f(a)[0].square().sum(), a)[0] for f, a in ((fast, x), (double, wide)))
        assert relative_l2(got, exact) <= 2 * model_bound(model)  # as many sums again, backwards
