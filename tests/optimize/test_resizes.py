"""Upsampling as our steps: the numbers, shapes and strides of eager's, and which stay torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import FORMATS, native, normal
from tests.optimize.models import called, checked, kinds, programs

pytestmark = native


class Resized(nn.Module):
    """An upsampling between two steps, and by itself."""

    def __init__(self, resize):
        super().__init__()
        self.resize, self.conv = resize, nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        y = self.resize(F.relu(self.conv(x)))
        return y * 2, self.resize(x)


OURS = {
    "doubled": lambda t: F.interpolate(t, scale_factor=2),
    "nearest": lambda t: F.interpolate(t, scale_factor=(1.5, 3.0), mode="nearest"),
    "nearest-exact": lambda t: F.interpolate(t, (7, 30), mode="nearest-exact"),
    "bilinear": lambda t: F.interpolate(t, None, 2.0, "bilinear", False),
    "corners": lambda t: F.interpolate(input=t, size=[20, 21], mode="bilinear", align_corners=True),
    "size of another": lambda t: F.interpolate(t, t.shape[2:], mode="bilinear"),
    "module": nn.Upsample(scale_factor=2),
    "bilinear module": nn.UpsamplingBilinear2d(scale_factor=2),
}  # fmt: skip
TORCHS = {
    "bicubic": lambda t: F.interpolate(t, scale_factor=2, mode="bicubic"),
    "area": lambda t: F.interpolate(t, 5, mode="area"),
    "antialias": lambda t: F.interpolate(t, 5, mode="bilinear", antialias=True),
    "recomputed": lambda t: F.interpolate(t, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    "of sequences": lambda t: F.interpolate(t[0], scale_factor=2),
}


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_ours(name, layout):
    fast = checked(Resized(OURS[name]), normal(2, 3, 12, 13, layout=layout))
    assert kinds(fast).count("interpolate") == 2
    assert "pk.ops.upsample2d" in {r.by for r in fast.report().replaced}


@pytest.mark.parametrize("name", TORCHS)
def test_torchs(name):
    fast = checked(Resized(TORCHS[name]), normal(2, 3, 12, 12))
    assert "pk.ops.upsample2d" not in {r.by for r in fast.report().replaced}


def test_other_sizes_and_other_dtypes():
    checked(Resized(OURS["nearest"]), normal(2, 3, 12, 13), normal(1, 3, 9, 8), normal(3, 3, 12, 13))
    checked(Resized(OURS["size of another"]), normal(2, 3, 12, 13), normal(1, 3, 9, 8))
    checked(Resized(OURS["doubled"]).double(), normal(2, 3, 12, 13, dtype=torch.float64))


def test_an_image_that_vanishes_is_refused_by_torch():
    fast = checked(Resized(lambda t: F.interpolate(t, scale_factor=0.2)), normal(1, 3, 8, 8))
    with torch.no_grad(), pytest.raises(RuntimeError, match="output sizes"):
        fast(normal(1, 3, 4, 8))


class Joined(nn.Module):
    """YOLO's: an upsampled map joined to one of the same size."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.a, self.b = nn.Conv2d(3, 24, 3, 1, 1), nn.Conv2d(24, 32, 3, 2, 1)
        self.c = nn.Conv2d(56, 8, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        return (self.c(torch.cat((F.interpolate(F.relu(self.b(a)), scale_factor=2, mode=self.mode), a), 1)),)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_an_upsampled_map_is_written_into_what_cat_joins(mode, layout):
    model = Joined(mode)
    fast = checked(model, normal(1, 3, 20, 20, layout=layout), normal(2, 3, 12, 16, layout=layout))
    (program, *_) = programs(fast)
    assert "cat" not in called(program)
    assert ".copy_" not in program.text()


def test_gradients_of_the_image_pass_through():
    model = Resized(nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    fast = pk.optimize(model)
    for _ in range(3):
        x = normal(1, 3, 8, 8).requires_grad_()
        got, expected = (torch.autograd.grad(sum(t.square().sum() for t in f(x)), x)[0] for f in (fast, model))
        torch.testing.assert_close(got, expected)
