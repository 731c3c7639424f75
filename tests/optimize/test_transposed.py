"""Transposed convolutions as fused steps: the numbers, whoever runs them, the strides, and what is fused."""

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
    monkeypatch.setattr(_rules, "transposed_torchs_because", lambda *_: why)
    return request.param


class Layer(nn.Module):
    """A transposed convolution, then what ``then`` says."""

    def __init__(self, *args, then=lambda y, x: y, norm=False, **options):
        super().__init__()
        self.conv = nn.ConvTranspose2d(*args, **options)
        self.bn = nn.BatchNorm2d(self.conv.out_channels) if norm else nn.Identity()
        self.then = then

    def forward(self, x):
        return self.then(self.bn(self.conv(x)), x)


GEOMETRIES = {
    "plain": ((6, 9, 3), {}),
    "padded": ((6, 9, 3), {"padding": 1}),
    "dcgan": ((6, 9, 4), {"stride": 2, "padding": 1}),
    "unet": ((6, 9, 2), {"stride": 2}),
    "output padding": ((6, 9, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "stride 3": ((6, 9, 5), {"stride": 3, "padding": 2, "output_padding": (2, 0)}),
    "of two sizes": ((6, 9, (3, 5)), {"stride": (1, 2), "padding": (2, 1)}),
    "dilated": ((6, 9, 3), {"dilation": 2, "padding": 1}),
    "dilated with a stride": ((6, 9, 3), {"dilation": 3, "stride": 2, "padding": 2}),
    "wide": ((6, 9, 8), {"stride": 4, "padding": 2}),
    "cropped": ((6, 9, 3), {"padding": 4}),
    "cropped with a stride": ((6, 9, 4), {"stride": 2, "padding": 5}),
    "grouped": ((6, 8, 4), {"stride": 2, "padding": 1, "groups": 2}),
    "depthwise": ((6, 6, 4), {"stride": 2, "padding": 1, "groups": 6}),
    "to more groups": ((6, 12, 3), {"groups": 6}),
    "pointwise": ((6, 9, 1), {}),
    "from one channel": ((1, 9, 3), {"stride": 2}),
    "to one channel": ((6, 1, 4), {"stride": 2, "padding": 1}),
    "no bias": ((6, 9, 4), {"stride": 2, "padding": 1, "bias": False}),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("norm", [False, True])
def test_geometry(who, name, norm):
    args, options = GEOMETRIES[name]
    model = randomise(Layer(*args, norm=norm, then=lambda y, x: F.relu(y), **options))
    fast = pk.optimize(model)
    for n, h, w in ((2, 9, 11), (1, 9, 9), (0, 9, 9)):
        right(fast, model, normal(n, args[0], h, w))
        right(fast, model, normal(n, args[0], h, w).contiguous(memory_format=torch.channels_last))
    assert f"conv_transpose{'+bn' * norm}+relu" in steps(fast)
    told = {s.who for s in fast.report().steps if s.what.startswith("conv_transpose")}
    assert told == {OURS if who == "ours" else TORCH}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_inputs_of_any_stride_and_single_elements(who, dtype):
    model = randomise(Layer(6, 9, 4, 2, 1, then=lambda y, x: F.silu(y))).to(dtype)
    fast = pk.optimize(model)
    for shape in ((2, 6, 5, 4), (1, 6, 1, 1), (2, 6, 1, 4)):
        x = normal(*shape, dtype=dtype)
        for t in (*(t.to(dtype) for t in strided(x)), x[:1].expand_as(x)):
            right(fast, model, t, tolerance=1e-6 if dtype is torch.float32 else 6e-3)


@pytest.mark.parametrize(
    ("args", "ours"),
    [
        (((1, 512, 4, 4), (512, 256, 4, 4), (2, 2), 1, "contiguous"), True),
        (((1, 128, 28, 28), (128, 64, 3, 3), (2, 2), 1, "contiguous"), True),
        (((1, 128, 32, 32), (128, 64, 2, 2), (2, 2), 1, "channels_last"), True),
        (((1, 128, 32, 32), (128, 64, 2, 2), (2, 2), 1, "contiguous"), False),
        (((1, 64, 64, 64), (64, 32, 2, 2), (2, 2), 1, "channels_last"), False),
        (((1, 128, 64, 64), (128, 1, 4, 4), (2, 2), 1, "channels_last"), False),
        (((1, 64, 32, 32), (64, 32, 4, 4), (2, 2), 1, "contiguous"), False),
        (((1, 64, 32, 32), (64, 32, 4, 4), (2, 2), 1, "channels_last"), True),
        (((1, 64, 16, 16), (64, 1, 4, 4), (2, 2), 64, "contiguous"), True),
        (((1, 21, 8, 8), (21, 1, 64, 64), (32, 32), 21, "contiguous"), False),
    ],
)
def test_who_wins(args, ours):
    assert (_rules.transposed_torchs_because(*args) == "") is ours


@torch.no_grad()
def test_what_stays_torchs(monkeypatch):
    monkeypatch.setattr(_rules, "transposed_torchs_because", lambda *_: "")
    gaps = Layer(6, 9, 1, 2).eval()  # three of four phases are the bias alone
    fast = pk.optimize(gaps)
    right(fast, gaps, normal(2, 6, 5, 5))
    assert fast.report().replaced == []
    far = Layer(6, 9, 4, stride=4, padding=1, dilation=3).eval()
    for shape, who in (((2, 6, 1, 1), TORCH), ((2, 6, 3, 3), OURS)):  # a phase of the first reads nothing but zeros
        fast = pk.optimize(far)
        right(fast, far, normal(*shape))
        assert fast.report().steps[0].who == who
    unbatched = Layer(6, 9, 4, 2, 1).eval()
    fast = pk.optimize(unbatched)
    right(fast, unbatched, normal(6, 5, 5))
    assert fast.report().replaced == []


def test_output_size():
    model = Layer(6, 9, 3, 2, 1)
    model.then = lambda y, x: model.conv(x, output_size=(10, 9))
    model = randomise(model)
    fast = pk.optimize(model)
    with torch.no_grad():
        x = normal(2, 6, 5, 5)
        for _ in range(3):
            assert torch.allclose(fast(x), model(x), atol=1e-5)


class Add(nn.Module):
    """Adds what comes from elsewhere, and zeros around what goes in, which are no padding of a transposed one's."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        y = F.relu(self.up(self.down(x)) + x)
        return self.up(F.pad(y, (1, 1, 1, 1)))


def test_in_a_network(who):
    model = randomise(Add())
    fast = pk.optimize(model)
    right(fast, model, normal(2, 8, 12, 12))
    assert steps(fast)[:4] == ["conv", "conv_transpose+add+relu", "pad", "conv_transpose"]


class Join(nn.Module):
    """What a U-Net does: its result is one part of a tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(8, 8, 3, 1, 1), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 8, 3, 1, 1)

    def forward(self, x):
        y = self.a(x)
        return self.b(torch.cat((self.up(F.max_pool2d(y, 2)), y), 1))


def test_joined(who):
    model = randomise(Join())
    fast = pk.optimize(model)
    right(fast, model, normal(2, 8, 12, 12))
    right(fast, model, normal(1, 8, 20, 8))


def test_new_weights_count(who):
    model = randomise(Layer(6, 9, 4, 2, 1, norm=True))
    fast, x = pk.optimize(model), normal(2, 6, 5, 5)
    right(fast, model, x)
    with torch.no_grad():
        model.conv.weight.mul_(2)
        model.bn.running_mean.add_(1)
    right(fast, model, x)


def test_operations_and_memory(monkeypatch):
    monkeypatch.setattr(_rules, "transposed_torchs_because", lambda *_: "")
    model = randomise(Layer(6, 9, 4, 2, 1))
    fast = pk.optimize(model)
    right(fast, model, normal(2, 6, 5, 7))
    report = fast.report()
    assert report.steps[0].flops == 2 * 2 * 6 * 5 * 7 * 9 * 16
    assert report.packed_bytes >= model.conv.weight.nbytes


def test_with_torch_compile():
    model = randomise(nn.Sequential(Layer(6, 9, 4, 2, 1, norm=True), nn.ReLU(), Layer(9, 3, 2, 2)))
    right(torch.compile(model, backend="pykernels"), model, normal(2, 6, 5, 5))


SEQUENCES = {
    "plain": ((6, 9, 3), {}),
    "vocoder": ((6, 9, 16), {"stride": 8, "padding": 4}),
    "output padding": ((6, 9, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "one tap a phase": ((6, 9, 2), {"stride": 2}),
    "dilated": ((6, 9, 3), {"dilation": 3, "stride": 2, "padding": 2}),
    "grouped": ((6, 8, 4), {"stride": 2, "padding": 1, "groups": 2}),
    "depthwise": ((6, 6, 4), {"stride": 2, "padding": 1, "groups": 6}),
    "to one channel": ((6, 1, 4), {"stride": 2, "padding": 1}),
}


class Sequences(nn.Module):
    """Convolutions of sequences on both sides of a transposed one."""

    def __init__(self, *args, **options):
        super().__init__()
        self.a, self.up = nn.Conv1d(6, 6, 3, padding=1), nn.ConvTranspose1d(*args, **options)
        k = self.up.out_channels
        self.bn, self.b = nn.BatchNorm1d(k), nn.Conv1d(k, 5, 3)

    def forward(self, x):
        y = F.leaky_relu(self.bn(self.up(self.a(x))), 0.1)
        return self.b(y), self.up(x)[..., :-1]


@pytest.mark.parametrize("name", SEQUENCES)
@torch.no_grad()
def test_sequences(who, name):
    args, options = SEQUENCES[name]
    model = randomise(Sequences(*args, **options))
    fast = pk.optimize(model)
    for n, length in ((2, 20), (1, 13), (0, 20)):
        x = normal(n, 6, length)
        for _ in range(3):
            for got, expected in zip(fast(x), model(x), strict=True):
                assert got.stride() == expected.stride()
                assert torch.allclose(got, expected, atol=1e-5)
    assert "conv_transpose+bn+leaky_relu" in steps(fast)


@torch.no_grad()
def test_an_unbatched_sequence_is_torchs():
    model = nn.ConvTranspose1d(6, 9, 4, 2, 1).eval()
    fast = pk.optimize(model)
    right(fast, model, normal(6, 20))
    assert fast.report().replaced == []
