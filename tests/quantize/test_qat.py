"""Training with the rounding of int8."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.quantize.models import batches, error, neighbours, residual, rounding, run


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_it_computes_what_the_int8_model_does(act):
    model, data = residual(act), batches()
    aware = pk.quantize(model, data, qat=True)
    with torch.no_grad():
        expected = aware(data[0])
    assert error(run(aware.convert(), data[0]), expected) < neighbours(8)
    assert neighbours(8) < error(expected, model(data[0])) < rounding(8)


def test_it_trains():
    torch.manual_seed(0)
    model, data = residual(), batches(4)
    labels = [torch.randint(7, (len(x),)) for x in data]
    aware = pk.quantize(model, data, qat=True)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam([p for p in aware.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(aware(x), y) for x, y in zip(data, labels, strict=True))
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in aware.parameters() if p.requires_grad)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        assert error(run(aware.convert(), data[0]), aware(data[0])) < neighbours(8)


def test_gradients_are_those_of_the_float_model_but_for_the_rounding():
    model, data = residual(), batches()
    aware = pk.quantize(model, data, qat=True)
    aware(data[0]).square().sum().backward()
    for p in model.parameters():
        p.requires_grad_(True)
    model(data[0]).square().sum().backward()
    own = dict(aware.model.named_parameters())
    # A ReLU passes a gradient by the sign of a number that may be off by half a step, 4 / 255 deviations. Near 0 lie
    # 0.4 of the normal numbers a deviation; half of those within that distance on both sides change their sign.
    flipped = 0.4 * 4 / 255
    for name, p in model.named_parameters():
        assert error(own[name].grad, p.grad) < math.sqrt(7 * flipped) + rounding(16), name


def test_copies_and_states():
    model, data = residual(), batches()
    aware = pk.quantize(model, data, qat=True)
    with torch.no_grad():
        expected = aware(data[0])
        assert torch.equal(copy.deepcopy(aware)(data[0]), expected)
        other = pk.quantize(residual(), data, qat=True)
        for p in other.parameters():
            p.zero_()
        other.load_state_dict(aware.state_dict())
        assert torch.equal(other(data[0]), expected)


def test_what_cannot_be_followed_is_refused():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) * float(x.sum())

    aware = pk.quantize(Hidden().eval(), batches(), qat=True)
    with pytest.raises(RuntimeError, match="qat: the model cannot be followed as a whole"):
        aware(batches(1)[0])
    with pytest.raises(ValueError, match="qat: expected batches to calibrate on, got none"):
        pk.quantize(residual(), qat=True)


def test_an_lstm_trains_in_float():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.lstm, self.fc = nn.Linear(6, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, xs):
            return self.fc(self.lstm(torch.relu(self.first(xs["x"])))[0][:, -1])

    torch.manual_seed(0)
    model, x = Reads().eval(), torch.randn(4, 10, 6)
    aware = pk.quantize(model, [({"x": x},)], qat=True)
    y = aware({"x": x})
    y.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in aware.parameters())
    with torch.no_grad():
        assert error(aware.convert()({"x": x}), y) < rounding(3)  # the LSTM's rows, alone


class Parts(nn.Module):
    """A scale, a sum after a ReLU, a norm with a clamp behind it, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.norm, self.scale = nn.BatchNorm2d(8), nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x):
        y = torch.relu(self.first(x)) + x[:, :1]
        y = y + self.up(F.avg_pool2d(y, 2)) * self.scale
        return F.hardtanh(self.norm(F.max_pool2d(y, 2)), -0.5, 0.7).mean((2, 3))


def test_all_that_a_model_is_made_of_gets_gradients():
    torch.manual_seed(0)
    model, x = Parts().eval(), torch.randn(2, 3, 8, 8)
    aware = pk.quantize(model, [x], qat=True)
    y = aware(x)
    y.square().sum().backward()
    assert [name for name, p in aware.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert error(run(aware.convert(), x), y) < neighbours(3)


def test_a_state_carries_the_grids():
    model, data = residual(), batches()
    aware = pk.quantize(model, data, qat=True)
    other = pk.quantize(model, [x * 3 for x in data], qat=True)
    with torch.no_grad():
        expected = aware(data[0])
        assert not torch.equal(other(data[0]), expected)
        other.load_state_dict(aware.state_dict())
        assert torch.equal(other(data[0]), expected)


def test_a_last_time_step_trains_too():
    model = pk.models.CNNLSTM(10, 256, 64, 1).eval()
    x = torch.randn(64, 1, 16, 16)
    aware = pk.quantize(model, [x[:8]], qat=True)
    y = aware(x)
    y.square().sum().backward()
    assert y.shape == (64, 10)
    assert [name for name, p in aware.named_parameters() if p.grad is None] == []
    assert error(run(aware.convert(), x), y) < rounding(2)


@pytest.mark.parametrize("options", [{}, {"equalize": True}, {"observer": "mse"}])
def test_grids_follow_what_they_have_to_cover(options):
    model, data = residual(), batches()
    aware = pk.quantize(model, data, qat=True, **options)
    with torch.no_grad():
        for p in aware.parameters():
            p.mul_(2)  # what is trained for long moves as far
    exact = copy.deepcopy(aware.model)
    x = data[0]
    aware(x)
    with torch.no_grad():
        expected, y = exact(x), aware(x)
        assert error(y, expected) < 2 * rounding(8)  # channels that were made equal are not quite so any more
        assert error(run(aware.convert(), x), y) < neighbours(8)


def test_grids_stay_where_nothing_trains():
    model, data = residual(), batches()
    aware = pk.quantize(model, data, qat=True)
    before = aware.get_extra_state()
    with torch.no_grad():
        aware(data[0] * 3)
    aware.eval()(data[0] * 3)
    assert torch.equal(aware.get_extra_state(), before)
    aware.train()(data[0] * 3)
    assert not torch.equal(aware.get_extra_state(), before)


def test_it_trains_as_the_float_model_does():
    labels = [torch.randint(7, (len(x),), generator=torch.Generator().manual_seed(i)) for i, x in enumerate(batches(4))]
    losses = {}
    for qat in (True, False):
        model = residual()
        trained = pk.quantize(model, batches(4), qat=True) if qat else model.requires_grad_(True)
        optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], 0.003)
        for step in range(40):
            optimizer.zero_grad()
            loss = sum(F.cross_entropy(trained(x), y) for x, y in zip(batches(4), labels, strict=True))
            loss.backward()
            optimizer.step()
            losses[qat, step] = float(loss.detach())
    first, last = losses[False, 0], losses[False, 39]
    assert last < 0.7 * first
    assert losses[True, 39] < last + 0.2 * (first - last)


def test_grids_narrow_slowly():
    data = batches()
    wide, fit = (pk.quantize(residual(), [x * scale for x in data], qat=True) for scale in (3, 1))
    with torch.no_grad():
        x, exact = data[0], residual()(data[0])
        before = error(wide(x), exact)
    for _ in range(100):
        wide(x)
    with torch.no_grad():
        assert error(wide(x), exact) < (before + error(fit(x), exact)) / 2


class Tagger(nn.Module):
    """Embeddings, an LSTM from states that train, and a class for each word."""

    def __init__(self):
        super().__init__()
        self.words, self.scale = nn.Embedding(50, 16), nn.Parameter(torch.ones(16))
        self.lstm, self.fc = nn.LSTM(16, 12, batch_first=True, bidirectional=True), nn.Linear(24, 5)
        self.h, self.c = (nn.Parameter(torch.zeros(2, 1, 12)) for _ in range(2))

    def forward(self, x):
        states = [s.expand(-1, x.shape[0], -1).contiguous() for s in (self.h, self.c)]
        return self.fc(self.lstm(self.words(x) * self.scale, tuple(states))[0])


def test_a_tagger_trains_step_by_step():
    torch.manual_seed(0)
    x = torch.randint(50, (4, 9))
    aware = pk.quantize(Tagger(), [x], qat=True)
    optimizer = torch.optim.Adam(aware.parameters(), 0.02)
    losses = []
    for _ in range(20):  # the second one was refused: "an input requires gradients"
        optimizer.zero_grad()
        loss = F.cross_entropy(aware(x).flatten(0, 1), x.flatten() % 5)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and bool(p.grad.any()) for p in aware.parameters())
    with torch.no_grad():
        assert error(run(aware.convert(), x), aware(x)) < rounding(2)


def test_sequences_train():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 12, 3), nn.ReLU(), nn.Conv1d(12, 4, 3, groups=2), nn.ReLU(), nn.Conv1d(4, 4, 1))
    x = torch.randn(2, 8, 40)
    aware = pk.quantize(model, [x], qat=True)
    aware(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in aware.parameters())
    with torch.no_grad():
        assert error(run(aware.convert(), x), aware(x)) < neighbours(3)


def patched(model):
    model[0].forward = lambda x: x[:, :1, 2:, 2:].expand(-1, 8, -1, -1) * 0


def restrided(model):
    model[0].stride = (2, 2)


@pytest.mark.parametrize("edit", [patched, restrided])
def test_what_is_changed_about_the_model_is_followed(edit):
    x = batches(1)[0]
    aware = pk.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), [x], qat=True)
    with torch.no_grad():
        before = aware(x)
        edit(aware.model)
        y = aware(x)
        assert y.shape != before.shape or error(y, before) > 0.1
        assert error(run(aware.convert(), x), y) < rounding(2)


def test_a_hook_is_refused():
    x = batches(1)[0]
    aware = pk.quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), [x], qat=True)
    aware(x)
    hook = aware.model[0].register_forward_hook(lambda module, given, result: result * 0)
    with pytest.raises(RuntimeError, match="cannot be followed as a whole"):
        aware(x)
    hook.remove()
    aware(x)


@pytest.mark.parametrize("of", ["weight", "input"])
def test_nan_is_seen_in_the_loss(of):
    x = batches(1)[0]
    aware = pk.quantize(residual(), [x], qat=True)
    if of == "weight":
        with torch.no_grad():
            next(aware.parameters()).fill_(math.nan)
    else:
        x = torch.full_like(x, math.nan)
    assert bool(aware(x).isnan().all())
