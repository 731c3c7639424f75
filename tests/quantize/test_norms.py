"""Batch norms that no convolution takes: before one, of what is joined, or after an activation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from tests.harness import forced_isa, host_isas
from tests.quantize.models import batches, error, rounding, run, worn


class Dense(nn.Module):
    """Three layers of a DenseNet, and one whose batch norm comes after the activation."""

    def __init__(self, act: str = "relu") -> None:
        super().__init__()
        self.act = getattr(F, act)
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        widths = (20, 32, 44)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in widths)
        self.convs = nn.ModuleList(nn.Conv2d(c, 12, 3, padding=1) for c in widths)
        self.after, self.head = nn.BatchNorm2d(56), nn.Conv2d(56, 5, 1)

    def forward(self, x):
        """(N, 3, H, W) to (N, 5)."""
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(self.act(norm(torch.cat(features, 1)))))
        x = self.after(F.relu(torch.cat(features, 1)))
        return self.head(x).mean((2, 3))


def _dense(act="relu"):
    torch.manual_seed(0)
    return worn(Dense(act))


def _whats(quantized):
    return [s.what for s in quantized.report().counted()]


@pytest.mark.parametrize("act", ["relu", "relu6", "leaky_relu"])
def test_they_run_in_int8_and_join_what_lies_on_other_grids(act):
    model, data = _dense(act), batches()
    quantized = pk.quantize(model, data)
    assert 1e-4 < error(run(quantized, data[0]), model(data[0]).detach()) < rounding(9)
    whats = _whats(quantized)
    assert sum(w.startswith("int8 bn") for w in whats) == 4
    assert whats.count("quantize") == 1
    assert "dequantize" not in whats
    assert whats.count("cat") == 1  # before the activation; the others are joined by the batch norms


def test_each_piece_keeps_its_own_grid():
    """On one grid the small numbers of one branch would be noughts."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            return self.head(F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1))))

    model = worn(Joined())
    with torch.no_grad():
        model.left.weight *= 1e-4
        model.left.bias.zero_()
        for scale, rows in ((1e-4, slice(8)), (1, slice(8, 16))):
            model.norm.running_mean[rows] *= scale
            model.norm.running_var[rows] *= scale**2
        model.norm.eps = 1e-12
        model.head.weight[:, 8:] = 0
    x = batches(1)[0]
    assert error(run(pk.quantize(model, [x]), x), model(x)) < rounding(3)


def test_a_curved_activation_stays_in_float():
    model, data = _dense("silu"), batches()
    quantized = pk.quantize(model, data)
    assert error(run(quantized, data[0]), model(data[0])) < rounding(9)
    assert sum(w.startswith("int8 bn") for w in _whats(quantized)) == 1


def test_every_instruction_set_and_layout_gives_the_same_bits():
    model, data = _dense(), batches()
    quantized = pk.quantize(model, data)
    expected = run(quantized, data[0])
    for isa in host_isas():
        with forced_isa(isa):
            for layout in (torch.contiguous_format, torch.channels_last):
                # The mean at the end is of float32.
                found = run(quantized, data[0].contiguous(memory_format=layout))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_they_follow_their_statistics_and_weights():
    model, data = _dense(), batches()
    quantized = pk.quantize(model, data)
    before = run(quantized, data[0])
    with torch.no_grad():
        model.norms[1].weight *= 0.5
        model.norms[2].running_mean += 0.1
    after = run(quantized, data[0])
    assert error(after, before) > 1e-3
    assert error(after, model(data[0])) < rounding(9)


def test_training_with_the_rounding_computes_what_they_do():
    model, data = _dense(), batches()
    aware = pk.quantize(model, data, qat=True)
    y = aware(data[0])
    y.square().sum().backward()
    assert all(p.grad is not None for p in aware.parameters())
    assert error(run(aware.convert(), data[0]), y.detach()) < 2e-3
    assert error(y.detach(), model(data[0])) > 1e-3


def test_they_are_exported():
    model, data = _dense(), batches()
    quantized = pk.quantize(model, data)
    expected = run(quantized, data[0])
    with torch.inference_mode():
        program = torch.export.export(quantized, (data[0],))
        assert "int8_affine" in str(program.graph)
        torch.testing.assert_close(program.module()(data[0]), expected, rtol=0, atol=1e-5)


def test_threads_of_torch_change_nothing():
    model, data = _dense(), batches(1, 48)
    quantized = pk.quantize(model, data)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(quantized, data[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, found[0]) for y in found)
