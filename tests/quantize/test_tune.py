"""`pk.quantize(..., equalize=True, correct_bias=True)`."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from pykernels.quantize._tune import Channels, Tuning
from tests.quantize.models import batches, error, run, worn

_BOTH = {"equalize": True, "correct_bias": True}


def _inverted(channels: int, act: type) -> nn.Module:
    wide = 4 * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act(),
        nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), act(),
        nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
    )  # fmt: skip


class Mobile(nn.Module):
    """Two inverted residuals, whose channels have ranges as unequal as training makes them."""

    def __init__(self, act: type = nn.ReLU) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), _inverted(16, act), _inverted(16, act)
        self.last, self.fc = nn.Conv2d(16, 32, 1), nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.a(x)
        return self.fc(self.last(x + self.b(x)).mean((2, 3)))


def _mobile(act: type = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    model = worn(Mobile(act))
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                spread = torch.randn(m.num_features).exp()
                m.weight *= spread
                m.bias *= spread
    return model


def _errors(model, data, **options):
    torch.manual_seed(1)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        exact = model(x)
    given = ({}, {"equalize": True}, {"correct_bias": True}, _BOTH)
    return [error(run(pk.quantize(model, data, **more, **options), x), exact) for more in given]


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
def test_unequal_channels_cost_less(act):
    model, data = _mobile(act), batches(4, 32)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    plain, equal, _, both = _errors(model, data, per_channel=False)
    assert both < 0.85 * plain
    assert both < 0.85 * equal  # the means of what equal weights lose are what costs most
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_scales_for_each_row_profit_too():
    plain, equal, _, both = _errors(_mobile(), batches(4, 32))
    assert equal < 0.9 * plain
    assert both < 0.9 * plain


@pytest.mark.parametrize("groups", [1, 4])
def test_scaled_layers_compute_the_same(groups):
    torch.manual_seed(0)
    x, s = torch.randn(2, 8, 9, 9), torch.rand(16) + 0.2
    v, a, w, b = torch.randn(16, 8, 1, 1), torch.randn(16), torch.randn(12, 16 // groups, 3, 3), torch.randn(12)
    exact = F.conv2d(F.relu(F.conv2d(x, v, a)), w, b, groups=groups)
    v, a = Tuning(rows=s).scaled(v, a)
    w, b = Tuning(columns=s).scaled(w, b)
    assert error(F.conv2d(F.relu(F.conv2d(x, v, a)), w, b, groups=groups), exact) < 1e-6


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_corrected_bias_keeps_the_mean(groups):
    torch.manual_seed(0)
    x, s = torch.randn(4, 16, 9, 9).relu(), torch.rand(16) + 0.2
    weight, bias = torch.randn(32, 16 // groups, 1, 1), torch.randn(32)
    channels = Channels(1)
    for part in x.split(2):
        channels.see(part)
    assert torch.allclose(channels.mean(), x.mean((0, 2, 3)))
    assert torch.equal(channels.largest(), x.abs().amax((0, 2, 3)))
    tuning = Tuning(columns=s, means=channels.mean())
    scaled, _ = tuning.scaled(weight, bias)
    rounded = (scaled * 4).round() / 4
    fixed = tuning.corrected(scaled, rounded, bias)
    got = F.conv2d(x / s.view(-1, 1, 1), rounded, fixed, groups=groups)
    exact = F.conv2d(x, weight, bias, groups=groups)
    assert torch.allclose(got.mean((0, 2, 3)), exact.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose((got - (fixed - bias).view(-1, 1, 1)).mean((0, 2, 3)), exact.mean((0, 2, 3)), atol=1e-2)


def test_the_clamp_of_a_relu6_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU6(), nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[:8] *= 20  # of these some reach 6
        model[0].weight[8:] *= 0.01
    x = torch.randn(2, 3, 32, 32)
    assert error(run(pk.quantize(model, [x], equalize=True), x), model(x)) < 0.02


def test_copies_states_and_updates_keep_it():
    model, data = _mobile(), batches(4, 32)
    quantized, x = pk.quantize(model, data, per_channel=False, **_BOTH), data[0]
    expected = run(quantized, x)
    assert error(expected, model(x)) < 0.03
    file = io.BytesIO()
    torch.save(quantized.state_dict(), file)
    file.seek(0)
    other = pk.quantize(_mobile())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(other, x), expected)
    assert torch.equal(run(copy.deepcopy(quantized), x), expected)
    with torch.no_grad():
        model.b[0].weight *= 0.5
    assert not torch.equal(run(quantized, x), expected)
    assert error(run(quantized, x), model(x)) < 0.03


def test_the_report_measures_what_channels_stand_for():
    model, data = _mobile(), batches(4, 32)
    quantized = pk.quantize(model, data, **_BOTH)
    run(quantized, data[0])
    assert min(layer.sqnr for layer in quantized.report().layers) > 20


def test_training_sees_the_same_numbers():
    model, x = _mobile(), batches(1, 32)[0]
    aware = pk.quantize(model, [x], qat=True, per_channel=False, **_BOTH)
    with torch.no_grad():
        got = aware(x)
    assert error(got, run(aware.convert(), x)) < 0.005


def test_skipped_readers_get_what_the_model_computes():
    model, data = _mobile(), batches(2, 32)
    quantized = pk.quantize(model, data, skip=["a.3", "b.6"], per_channel=False, **_BOTH)
    assert error(run(quantized, data[0]), model(data[0])) < 0.1


def test_without_a_calibration_it_is_refused():
    model = _mobile()
    with pytest.raises(
        ValueError, match=r"equalize: expected False, because there is nothing to calibrate on, got True"
    ):
        pk.quantize(model, dynamic=True, equalize=True)
    with pytest.raises(ValueError, match=r"correct_bias: expected False, because there is nothing to calibrate on"):
        pk.quantize(model, correct_bias=True)
