"""Results have eager's strides, even those of dimensions of size 1, which say nothing of where elements lie."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import pykernels as pk
from pykernels.optimize import _layout
from tests.harness import relative_l2

FILTERS = torch.randn(8, 8, 3, 3)
ENDS = {
    "adaptive_avg_pool2d": lambda t: F.adaptive_avg_pool2d(t, 1),
    "adaptive_max_pool2d": lambda t: F.adaptive_max_pool2d(t, 1),
    "max_pool2d": lambda t: F.max_pool2d(t, 6),
    "interpolate": lambda t: F.interpolate(t, (1, 1)),
    "conv": lambda t: F.conv2d(t, FILTERS[:1], None, 1, 1),
    "conv of a pixel": lambda t: F.relu(F.conv2d(F.adaptive_avg_pool2d(t, 1), FILTERS[:, :, :1, :1])) * 2,
    "gate": lambda t: t * F.adaptive_avg_pool2d(t, 1).sigmoid(),
    "flatten": lambda t: F.adaptive_avg_pool2d(t, 1).flatten(1),
    "mean": lambda t: t.mean((2, 3), keepdim=True),
    "amax": lambda t: t.amax(1, keepdim=True),
    "sum": lambda t: t.sum((1, 2), keepdim=True) + 1,
    "whole": lambda t: t,
    "one image": lambda t: t[:1],
    "one channel": lambda t: t[:, :1],
    "one row": lambda t: t[:, :, :1],
    "one pixel": lambda t: t[:, :, :1, :1],
    "select": lambda t: t[:, 0],
    "unsqueeze": lambda t: t[:, :1].unsqueeze(0),
    "transpose": lambda t: t[:, :1].transpose(1, 2),
    "a pair": lambda t: (t, t[:, :1]),
}


class OfOne(nn.Module):
    def __init__(self, channels, end):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


def check(fast, model, x):
    expected, got = (pytree.tree_leaves(m(x)) for m in (model, fast))
    for a, b in zip(expected, got, strict=True):
        assert (a.shape, a.stride()) == (b.shape, b.stride())
        assert relative_l2(b, a) < 1e-5


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("name", ENDS)
@torch.no_grad()
def test_of_images(name, turns, monkeypatch):
    if turns:
        monkeypatch.setattr(_layout, "_TURN", 0)
    for batch, channels, form in itertools.product((1, 2), (1, 3), (torch.contiguous_format, torch.channels_last)):
        model = OfOne(channels, ENDS[name]).eval()
        fast = pk.optimize(model)
        x, larger = (torch.randn(batch, channels, n, 6).to(memory_format=form) for n in (6, 7))
        read = torch.randn(6, 6, channels).permute(2, 0, 1)[None]  # as files are read
        for image in (x, x, x, larger, larger, read, read):
            check(fast, model, image)


class Recurrent(nn.Module):
    def __init__(self, end, **options):
        super().__init__()
        self.lstm, self.end = nn.LSTM(8, 6, **options), end
        self.linear = nn.Linear(6 * (1 + self.lstm.bidirectional), 4)

    def forward(self, x):
        return self.end(self.linear, *self.lstm(x))


@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"batch_first": True, "bidirectional": True}])
@pytest.mark.parametrize(
    "end",
    [
        lambda linear, y, states: (y, states),
        lambda linear, y, states: y[:, -1],
        lambda linear, y, states: y * 2,
        lambda linear, y, states: linear(y),
        lambda linear, y, states: (linear(y), y.transpose(0, 1)),
        lambda linear, y, states: y[..., :1],
        lambda linear, y, states: y.flatten(1),
        lambda linear, y, states: y.mul_(2),
        lambda linear, y, states: torch.cat([y, y], 2).chunk(2, 1),
        lambda linear, y, states: y.softmax(2),
    ],
)
@torch.no_grad()
def test_of_recurrent_layers(end, options):
    model = Recurrent(end, **options).eval()
    fast = pk.optimize(model)
    for shape in ((3, 5, 8), (3, 5, 8), (2, 4, 8), (1, 5, 8), (3, 1, 8), (1, 1, 8)):
        for _ in range(2):
            check(fast, model, torch.randn(shape))
