"""Convolutions of sequences as fused steps: the numbers, whoever runs them, the strides, and what is fused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.optimize import _rules
from pykernels.optimize._report import OURS, TORCH
from tests.harness import native, normal, strided
from tests.optimize.models import randomise
from tests.optimize.test_linear import right, steps

pytestmark = native


@pytest.fixture(params=["ours", "torch"])
def who(request, monkeypatch):
    """Everything by our kernels, then everything by torch's."""
    why = "" if request.param == "ours" else "torch's is faster"
    monkeypatch.setattr(_rules, "torchs_because", lambda *_: why)
    return request.param


class Layer(nn.Module):
    """A convolution, then what ``then`` says."""

    def __init__(self, *args, then=lambda y, x: y, norm=False, **options):
        super().__init__()
        self.conv = nn.Conv1d(*args, **options)
        self.bn = nn.BatchNorm1d(self.conv.out_channels) if norm else nn.Identity()
        self.then = then

    def forward(self, x):
        return self.then(self.bn(self.conv(x)), x)


GEOMETRIES = {
    "plain": ((6, 9, 3), {}),
    "stride": ((6, 9, 5), {"stride": 2, "padding": 2}),
    "dilated": ((6, 9, 3), {"dilation": 4, "padding": 4}),
    "same": ((6, 9, 4), {"padding": "same"}),
    "valid": ((6, 9, 4), {"padding": "valid"}),
    "grouped": ((6, 8, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((6, 6, 5), {"groups": 6, "padding": 2, "dilation": 2}),
    "pointwise": ((6, 9, 1), {}),
    "from one channel": ((1, 9, 10), {"stride": 5}),
    "to one channel": ((6, 1, 3), {}),
    "reflect": ((6, 9, 3), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": ((6, 9, 3), {"padding": 2, "padding_mode": "replicate"}),
    "circular": ((6, 9, 4), {"padding": "same", "padding_mode": "circular"}),
    "no bias": ((6, 9, 3), {"bias": False}),
    "tuples": ((6, 9, (3,)), {"stride": (2,), "padding": (1,), "dilation": (2,)}),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("norm", [False, True])
def test_geometry(who, name, norm):
    args, options = GEOMETRIES[name]
    model = randomise(Layer(*args, norm=norm, then=lambda y, x: F.relu(y), **options))
    fast = pk.optimize(model)
    for n, length in ((2, 31), (1, 40), (0, 31)):
        right(fast, model, normal(n, args[0], length))
    assert f"conv1d{'+bn' * norm}+relu" in steps(fast)
    assert {s.who for s in fast.report().steps if s.what.startswith("conv1d")} == {OURS if who == "ours" else TORCH}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_inputs_of_any_stride_and_single_elements(dtype):
    tolerance = 1e-6 if dtype is torch.float32 else 6e-3
    model = randomise(Layer(6, 6, 3, padding=1, norm=dtype is torch.float32, then=lambda y, x: F.relu(y + x)))
    model = model.to(dtype)
    fast = pk.optimize(model)
    for shape in ((2, 6, 9), (1, 6, 9), (2, 6, 1)):
        x = normal(*shape, dtype=dtype)
        turned = x.transpose(1, 2).contiguous().transpose(1, 2)
        for t in (*(t.to(dtype) for t in strided(x)), turned, x[:1].expand_as(x)):
            right(fast, model, t, tolerance=tolerance)
    one = randomise(Layer(1, 1, 1))
    fast = pk.optimize(one)
    for t in (normal(2, 1, 9), normal(2, 9, 1).transpose(1, 2), normal(1, 1, 1)):
        right(fast, one, t)


@torch.no_grad()
def test_an_unbatched_sequence_is_torchs():
    model = Layer(6, 9, 3).eval()
    fast = pk.optimize(model)
    right(fast, model, normal(6, 20))
    assert fast.report().left[0].why.startswith("has a dtype, a device or a rank")


class Residual(nn.Module):
    """A block of causal convolutions; ``cut`` says how: zeros before them, or too many on both sides and a slice."""

    def __init__(self, c, dilation, cut):
        super().__init__()
        self.reach, self.cut = 2 * dilation, cut
        self.a, self.b = (nn.Conv1d(c, c, 3, 1, self.reach if cut else 0, dilation) for _ in range(2))
        self.norm = nn.BatchNorm1d(c)

    def causal(self, conv, x):
        return self.cut(conv(x), self.reach) if self.cut else conv(F.pad(x, (self.reach, 0)))

    def forward(self, x):
        y = F.relu(self.norm(self.causal(self.a, x)))
        return F.relu(self.causal(self.b, y) + x)


CUTS = {
    "pad": None,
    "slice": lambda y, p: y[:, :, :-p].contiguous(),
    "ellipsis": lambda y, p: y[..., :-p].contiguous(),
}


@pytest.mark.parametrize("cut", CUTS)
def test_causal_stacks_keep_one_format(who, cut):
    model = randomise(nn.Sequential(*(Residual(16, 2**i, CUTS[cut]) for i in range(3))))
    fast = pk.optimize(model)
    for length in (40, 25):
        right(fast, model, normal(2, 16, length))
    assert steps(fast) == ["conv1d+bn+relu", "conv1d+add+relu"] * 3
    assert fast.report().conversions == {"to channels last": 1, "to contiguous": 1}


CUT_AND = {
    "norm": (lambda m, y: F.relu(m.bn(y[:, :, :-4])), "conv1d+bn+relu"),
    "activation": (lambda m, y: F.silu(y[:, :, :-4]), "conv1d+silu"),
    "nothing": (lambda m, y: y[:, :, :-4], "conv1d"),
    "too much": (lambda m, y: F.relu(y[:, :, :-5]), "conv1d"),
    "the front": (lambda m, y: F.relu(y[:, :, 4:]), "conv1d"),
    "every other": (lambda m, y: F.relu(y[:, :, :-4:2]), "conv1d"),
    "channels": (lambda m, y: F.relu(y[:, :-4]), "conv1d"),
    "read again": (lambda m, y: F.relu(y[:, :, :-4]) + y.sum(), "conv1d"),
    "in place": (lambda m, y: F.relu(y[:, :, :-4], inplace=True), "conv1d"),
}


@pytest.mark.parametrize("name", CUT_AND)
def test_what_is_cut_off(who, name):
    then, first = CUT_AND[name]
    model = randomise(Cut(then))
    fast = pk.optimize(model)
    right(fast, model, normal(2, 8, 30))
    assert steps(fast)[0] == first


class Cut(nn.Module):
    """A convolution with more zeros than it needs, then what ``then`` says."""

    def __init__(self, then):
        super().__init__()
        self.conv, self.bn, self.then = nn.Conv1d(8, 8, 3, padding=4, dilation=2), nn.BatchNorm1d(8), then

    def forward(self, x):
        return self.then(self, self.conv(x))


class Mixed(nn.Module):
    """Convolutions with all that may stand between them."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3), between

    def forward(self, x):
        y = self.a(x)
        return self.b(self.between(y)), y


_LSTM = nn.LSTM(8, 4, bidirectional=True, batch_first=True).requires_grad_(False)
BETWEEN = {
    "pool": lambda y: F.max_pool1d(y, 2),
    "average": lambda y: F.avg_pool1d(y, 2),
    "gate": lambda y: torch.tanh(y) * torch.sigmoid(y),
    "glu": lambda y: F.glu(torch.cat((y, y), 1), 1),
    "norm": lambda y: F.layer_norm(y.transpose(1, 2), (8,)).transpose(1, 2),
    "group norm": lambda y: F.group_norm(y, 2),
    "softmax": lambda y: F.softmax(y, 1),
    "reflect": lambda y: F.pad(y, (1, 2), mode="reflect"),
    "upsample": lambda y: F.interpolate(y, scale_factor=2),
    "shuffle": lambda y: y.view(y.shape[0], 2, 4, -1).transpose(1, 2).reshape(y.shape),
    "linear": lambda y: F.linear(y, torch.ones(y.shape[-1], y.shape[-1])),
    "as an image": lambda y: F.conv2d(y[:, None], torch.ones(1, 1, 3, 3), padding=1)[:, 0],
    "lstm": lambda y: _LSTM(y.transpose(1, 2))[0].transpose(1, 2),
    "in place": lambda y: y.mul_(2),
    "a view is written to": lambda y: (y[:, :4].zero_(), y)[1],
    "cumulated": lambda y: y.cumsum(2),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_between(name):
    model = randomise(Mixed(BETWEEN[name]))
    fast = pk.optimize(model)
    with torch.no_grad():
        for length in (20, 26):
            x = normal(2, 8, length)
            for _ in range(3):
                for got, expected in zip(fast(x), model(x), strict=True):
                    assert got.stride() == expected.stride()
                    assert torch.allclose(got, expected, atol=1e-5)


def test_new_weights_count(who):
    model = randomise(Layer(6, 9, 3, norm=True))
    fast, x = pk.optimize(model), normal(2, 6, 20)
    right(fast, model, x)
    with torch.no_grad():
        model.conv.weight.mul_(2)
        model.bn.running_mean.add_(1)
    right(fast, model, x)


def test_weight_norm_is_folded():
    model = randomise(Layer(6, 9, 3))
    nn.utils.parametrizations.weight_norm(model.conv)
    fast = pk.optimize(model)
    right(fast, model, normal(2, 6, 20))
    assert steps(fast)[0] == "conv1d"


def test_with_torch_compile():
    model = randomise(nn.Sequential(Layer(6, 9, 3, norm=True), nn.ReLU(), Layer(9, 9, 5, padding=2, norm=True)))
    right(torch.compile(model, backend="pykernels"), model, normal(2, 6, 20))
