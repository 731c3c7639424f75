"""`pk.quantize(weight_only=True)`: int8 weights, and float rows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.ops.lstm.spec import LSTM_SPEC
from tests.quantize.models import error, run


def _layers(model):
    return model.report().layers


def test_weight_only_rounds_nothing_that_flows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(3, 7, 64)
    quantized = pk.quantize(model, weight_only=True)
    got = run(quantized, x)
    rounded = copy.deepcopy(model)
    for layer in (rounded[0], rounded[2], rounded[4]):
        q, scale, _ = pk.ops.quantize_int8(layer.weight.detach(), axis=0)
        layer.weight.data = q * scale[:, None]
    # Three sums of float32, each of whose errors the next takes on.
    assert error(got, rounded.double()(x.double())) < 3 * 96**0.5 * 2.0**-24
    assert 0 < error(got, model(x)) < error(run(pk.quantize(model, dynamic=True), x), model(x))
    assert all(s.what.startswith("weight-only int8 linear") for s in quantized.report().steps)
    assert "weight-only int8 linear -> pk.ops.weight_only_linear" in str(quantized.report())
    assert all(not layer.why for layer in _layers(quantized))
    # It follows the weights, and keeps to the mode when its state is loaded.
    fresh = pk.quantize(copy.deepcopy(model))
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(run(fresh, x), got)
    with torch.no_grad():
        model[0].weight *= 0.5
    assert torch.equal(run(quantized, x), run(pk.quantize(model, weight_only=True), x))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    other = pk.quantize(conv, weight_only=True, skip="2")
    run(other, torch.randn(1, 3, 8, 8))
    assert [layer.why for layer in _layers(other)] == [
        "without batches linear layers and LSTMs are quantised, and no others", "it is named in skip",
    ]  # fmt: skip


@pytest.mark.parametrize("bidirectional", [False, True])
def test_weight_only_lstms(bidirectional):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(64, 96, 2, batch_first=True, bidirectional=bidirectional)
            self.fc = nn.Linear(96 * (1 + bidirectional), 5)

        def forward(self, x):
            return self.fc(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Reads().eval(), torch.randn(2, 40, 64)
    quantized = pk.quantize(model, weight_only=True)
    got = run(quantized, x)
    rounded = copy.deepcopy(model)
    for p in rounded.parameters():
        if p.dim() == 2:
            q, scale, _ = pk.ops.quantize_int8(p.detach(), axis=0)
            p.data = q * scale[:, None]
    limit = LSTM_SPEC.bound(torch.float32, 2 * (192 + 96 + 2)) + LSTM_SPEC.bound(torch.float32, 192)
    assert error(got, rounded.double()(x.double())) < limit
    assert "weight-only Int8LSTM -> pk.nn.Int8LSTM" in str(quantized.report())
    exported = torch.export.export(quantized, (x,))
    # A graph holds no packed weights: a row of the last layer may be summed in another order.
    assert error(exported.module()(x), got) < limit
    with torch.no_grad():
        model.lstm.weight_hh_l0 *= 0.3
    assert torch.equal(run(quantized, x), run(pk.quantize(model, weight_only=True), x))


def test_weight_only_goes_alone():
    model = nn.Linear(3, 4)
    for named, says in (
        ({"dynamic": True}, r"weight_only: expected False, because of dynamic=True, got True"),
        ({"qat": True}, r"qat: expected False, because of weight_only=True, got True"),
        ({"batches": [torch.ones(1, 3)]}, r"batches: expected None, because weight_only=True needs no ranges"),
        ({"correct_bias": True}, r"correct_bias: expected False"),
    ):
        with pytest.raises(ValueError, match=rf"^pykernels.quantize: {says}"):
            pk.quantize(model, weight_only=True, **named)
